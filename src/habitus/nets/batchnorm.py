"""Dense layers with batch normalisation: statistics of the batch in training, running ones afterwards.

The running statistics are no parameters, so they live beside the network and are handed on explicitly:
`train` answers with those after the batch, and a network in use is called with the last of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.protocols import require
from habitus.nets.mlp import Linear, dense

EPS = 1e-5
MOMENTUM = 0.1  # share of the newest batch in the running statistics; PyTorch's default


class Moments(eqx.Module):
    """Running mean and variance of the inputs of one normalisation."""

    mean: Float[Array, "units"]
    var: Float[Array, "units"]

    @classmethod
    def start(cls, units: int) -> Moments:
        """Those of a standard Gaussian."""
        return cls(jnp.zeros(units), jnp.ones(units))

    def moved(self, x: Float[Array, "batch units"]) -> Moments:
        """After one more batch; its variance enters unbiased (Ioffe and Szegedy 2015, algorithm 2)."""
        var = x.var(0) * len(x) / max(len(x) - 1, 1)
        return Moments((1 - MOMENTUM) * self.mean + MOMENTUM * x.mean(0), (1 - MOMENTUM) * self.var + MOMENTUM * var)


class BatchNorm(eqx.Module):
    """`scale (x - mean) / sqrt(var + eps) + offset`, per unit."""

    scale: Float[Array, "units"]
    offset: Float[Array, "units"]

    @classmethod
    def start(cls, units: int) -> BatchNorm:
        """The identity on standardised inputs."""
        return cls(jnp.ones(units), jnp.zeros(units))

    def __call__(self, x: Float[Array, "*batch units"], moments: Moments) -> Float[Array, "*batch units"]:
        return self.scale * (x - moments.mean) * jax.lax.rsqrt(moments.var + EPS) + self.offset

    def train(self, x: Float[Array, "batch units"], moments: Moments) -> tuple[Float[Array, "batch units"], Moments]:
        """Normalised by the batch itself, through which gradients flow; and the running statistics after it."""
        after = jax.tree.map(jax.lax.stop_gradient, moments.moved(x))
        return self(x, Moments(x.mean(0), x.var(0))), after


class BatchNormMLP(eqx.Module):
    """Dense layers, each but the last followed by a PReLU (a slope a unit) and a batch normalisation."""

    layers: tuple[Linear, ...]
    slopes: tuple[Float[Array, "_"], ...]
    norms: tuple[BatchNorm, ...]

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, key: PRNGKeyArray):
        """Raises `ConfigError` for a hidden layer without units."""
        require(all(width >= 1 for width in hidden), f"widths of hidden layers must be 1 or more, but are {hidden}.")
        sizes = [inputs, *hidden, outputs]
        keys = jax.random.split(key, len(sizes) - 1)
        self.layers = dense(list(pairwise(sizes)), keys)
        self.slopes = tuple(jnp.full(width, 0.25) for width in hidden)
        self.norms = tuple(BatchNorm.start(width) for width in hidden)

    def start(self) -> tuple[Moments, ...]:
        """The running statistics before any batch."""
        return tuple(Moments.start(len(slope)) for slope in self.slopes)

    def __call__(self, x: Float[Array, "inputs"], moments: Sequence[Moments]) -> Float[Array, "outputs"]:
        for layer, slope, norm, now in zip(self.layers, self.slopes, self.norms, moments, strict=False):
            y = layer(x)
            x = norm(jnp.where(y > 0, y, slope * y), now)
        return self.layers[-1](x)

    def train(
        self, x: Float[Array, "batch inputs"], moments: Sequence[Moments]
    ) -> tuple[Float[Array, "batch outputs"], tuple[Moments, ...]]:
        """The answers to a batch in training, and the running statistics after it."""
        after = []
        for layer, slope, norm, now in zip(self.layers, self.slopes, self.norms, moments, strict=False):
            y = jax.vmap(layer)(x)
            x, moved = norm.train(jnp.where(y > 0, y, slope * y), now)
            after.append(moved)
        return jax.vmap(self.layers[-1])(x), tuple(after)
