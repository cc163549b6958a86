"""From one canonical observation to a feature vector."""

from __future__ import annotations

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.errors import SpaceMismatch
from habitus.core.spec import Spec


class Encoder(eqx.Module):
    """Turns one canonical observation into `size` features."""

    size: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, obs: Array) -> Float[Array, "features"]:
        """The features of one observation."""


class VectorEncoder(Encoder):
    """A vector is its own features."""

    size: int = eqx.field(static=True)

    def __call__(self, obs: Float[Array, "features"]) -> Float[Array, "features"]:
        return obs


class OneHotEncoder(Encoder):
    """An integer becomes its one-hot code."""

    size: int = eqx.field(static=True)

    def __call__(self, obs: Int[Array, ""]) -> Float[Array, "features"]:
        return jax.nn.one_hot(obs, self.size)


class ConvEncoder(Encoder):
    """Three convolutions of strides 4, 2, 1 (Mnih et al. 2015), scaled down for small images.

    Takes [height, width, channels], in 0..255 if the image is of integers.

    Raises:
        SpaceMismatch: for images below 5 by 5, of which nothing would be left.
    """

    layers: tuple[eqx.nn.Conv2d, ...]
    size: int = eqx.field(static=True)
    integers: bool = eqx.field(static=True)

    def __init__(self, shape: tuple[int, int, int], integers: bool, key: PRNGKeyArray):
        height, width, channels = shape
        if min(height, width) < 5:
            raise SpaceMismatch(f"images are {height} by {width}, but must be at least 5 by 5; flatten smaller ones.")
        plan = [(32, 8, 4), (64, 4, 2), (64, 3, 1)] if min(height, width) >= 36 else [(16, 3, 1), (32, 3, 2)]
        layers = []
        for k, (out, kernel, stride) in zip(jax.random.split(key, len(plan)), plan, strict=True):
            layers.append(eqx.nn.Conv2d(channels, out, kernel, stride, key=k))
            height, width, channels = (height - kernel) // stride + 1, (width - kernel) // stride + 1, out
        self.layers, self.size, self.integers = tuple(layers), height * width * channels, integers

    def __call__(self, obs: Array) -> Float[Array, "features"]:
        x = jnp.asarray(obs, jnp.float32).transpose(2, 0, 1)
        x = x / 255 if self.integers else x
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return x.ravel()


class ActionEncoder(Encoder):
    """Turns one canonical action into features: real ones as they are, integers as one-hot codes."""

    size: int = eqx.field(static=True)
    sizes: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def of(cls, spec: Spec) -> ActionEncoder:
        """For the actions of `spec`."""
        if spec.multi_discrete:
            return cls(spec.action_size, tuple(int(n) for n in spec.action_space.nvec.ravel()))  # type: ignore[attr-defined]
        return cls(spec.action_size, (spec.num_actions,) if spec.discrete else ())

    def __call__(self, action: Array) -> Float[Array, "features"]:
        if not self.sizes:
            return action
        return jnp.concatenate([jax.nn.one_hot(a, n) for a, n in zip(jnp.atleast_1d(action), self.sizes, strict=True)])


def make_encoder(spec: Spec, key: PRNGKeyArray) -> Encoder:
    """The encoder for the observations of `spec`."""
    if spec.image:
        return ConvEncoder(spec.obs_shape, spec.obs_dtype.kind in "ui", key)  # type: ignore[arg-type]
    return OneHotEncoder(spec.obs_size) if spec.tabular else VectorEncoder(spec.obs_size)
