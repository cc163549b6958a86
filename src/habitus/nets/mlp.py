"""Dense networks, written for one example."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray

from habitus.core.domains import require
from habitus.core.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "selu": jax.nn.selu,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
    "silu": jax.nn.silu,
    "leaky_relu": jax.nn.leaky_relu,
    "mish": jax.nn.mish,
}


def draws(
    draw: Callable[..., Array], keys: Key[Array, "arrays"], shapes: Sequence[tuple[int, ...]]
) -> list[Float[Array, "..."]]:
    """`draw(key, shape)` for each pair, to the bit, as one operation: programs that make many arrays of random
    numbers one by one compile for seconds."""
    rows = jax.vmap(lambda key: draw(key, (max(map(math.prod, shapes)),)))(keys)
    return [row[: math.prod(shape)].reshape(shape) for row, shape in zip(rows, shapes, strict=True)]


def orthogonal(
    keys: Key[Array, "matrices"], shapes: Sequence[tuple[int, int]], gains: Sequence[float]
) -> list[Float[Array, "inputs outputs"]]:
    """Random matrices of orthonormal rows or columns, whichever are fewer, times a gain: uniformly
    distributed (Saxe et al., 2014), and equal to those of `jax.nn.initializers.orthogonal` up to rounding.

    Gram-Schmidt, twice for the precision, in place of LAPACK's QR: under `vmap` on a machine of few
    cores those calls can fill XLA's threads while each waits for a thread, for ever.
    """
    tall = [(max(shape), min(shape)) for shape in shapes]
    rows, width = (max(sizes) for sizes in zip(*tall, strict=True))
    columns = jnp.stack(
        [jnp.pad(x, ((0, rows - x.shape[0]), (0, width - x.shape[1]))) for x in draws(jax.random.normal, keys, tall)]
    )

    def orthonormalise(i: Array, bases: Array) -> Array:
        column = columns[:, :, i]
        for _ in range(2):
            column = column - jnp.einsum("mrc,mc->mr", bases, jnp.einsum("mrc,mr->mc", bases, column))
        size = jnp.linalg.norm(column, axis=1, keepdims=True)
        return bases.at[:, :, i].set(column / jnp.where(size > 0, size, 1.0))  # 0 in what is padding

    bases = jax.lax.fori_loop(0, width, orthonormalise, jnp.zeros_like(columns))
    cut = [gain * basis[:r, :c] for basis, (r, c), gain in zip(bases, tall, gains, strict=True)]
    return [x if shape[0] >= shape[1] else x.T for x, shape in zip(cut, shapes, strict=True)]


class Linear(eqx.Module):
    """`x @ weight + bias`, with the weight as [in, out] so that a batch is one plain product."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, "outputs"]

    @classmethod
    def random(cls, inputs: int, outputs: int, key: PRNGKeyArray, gain: float | None = None) -> Linear:
        """One alone; see `dense`."""
        return dense([(inputs, outputs)], key[None], None if gain is None else [gain])[0]

    def __call__(self, x: Float[Array, "*rows inputs"]) -> Float[Array, "*rows outputs"]:
        return x @ self.weight + self.bias


def dense(
    shapes: Sequence[tuple[int, int]], keys: Key[Array, "layers"], gains: Sequence[float] | None = None
) -> tuple[Linear, ...]:
    """Random layers of these sizes [inputs, outputs].

    Args:
        gains: orthogonal initialisation with these gains and zero biases; None for uniform within
            +-1/sqrt(inputs), weights and biases alike (the default of PyTorch).
    """
    if not shapes:
        return ()
    biases = [(outputs,) for _, outputs in shapes]
    if gains is not None:
        return tuple(map(Linear, orthogonal(keys, shapes, gains), map(jnp.zeros, biases)))
    unit = partial(jax.random.uniform, minval=-1.0, maxval=1.0)
    w_keys, b_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    bounds = [1 / max(inputs, 1) ** 0.5 for inputs, _ in shapes]
    drawn = zip(bounds, draws(unit, w_keys, shapes), draws(unit, b_keys, biases), strict=True)
    return tuple(Linear(bound * weight, bound * bias) for bound, weight, bias in drawn)


class MLP(eqx.Module):
    """Dense layers with one activation between them and none at the end."""

    layers: tuple[Linear, ...]
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        key: PRNGKeyArray,
        activation: str = "relu",
        final_gain: float | None = None,
    ):
        """Args:
            hidden: widths of the hidden layers.
            activation: one of `ACTIVATIONS`.
            final_gain: orthogonal initialisation throughout, with gain sqrt(2) in the hidden layers
                and this gain in the last; None for PyTorch's default initialisation.

        Raises:
            ConfigError: for an unknown activation, or a hidden layer without units.
        """
        require(all(width >= 1 for width in hidden), f"widths of hidden layers must be 1 or more, but are {hidden}.")
        if activation not in ACTIVATIONS:
            raise ConfigError(f"activation must be one of {', '.join(ACTIVATIONS)}, but is {activation!r}.")
        self.activation = activation
        sizes = [inputs, *hidden, outputs]
        keys = jax.random.split(key, len(sizes) - 1)
        gains = None if final_gain is None else [2**0.5] * len(hidden) + [final_gain]
        self.layers = dense(list(pairwise(sizes)), keys, gains)

    def __call__(self, x: Float[Array, "inputs"]) -> Float[Array, "outputs"]:
        activate = ACTIVATIONS[self.activation]
        for layer in self.layers[:-1]:
            x = activate(layer(x))
        return self.layers[-1](x)
