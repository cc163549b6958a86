"""Normalisers: part of the learner's state and of the policy, so that they travel with it."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from habitus.core.experience import Transition
from habitus.core.spec import Spec


class Standardiser(eqx.Module):
    """`(obs - mean) / std`, with statistics that no gradient reaches."""

    mean: Float[Array, "..."]
    std: Float[Array, "..."]

    @classmethod
    def identity(cls) -> Standardiser:
        """Changes nothing."""
        return cls(jnp.zeros(()), jnp.ones(()))

    @classmethod
    def of(cls, spec: Spec, eps: float = 1e-3) -> Standardiser:
        """From the log of `spec`: its mean, and its population standard deviation plus `eps`.

        The identity where there is no log, or where observations are integers or images.
        """
        if spec.dataset is None or spec.tabular or spec.image:
            return cls.identity()
        return cls(jnp.asarray(spec.dataset.mean, jnp.float32), jnp.asarray(spec.dataset.std + eps, jnp.float32))

    @classmethod
    def moments(cls, values: np.ndarray | Array, eps: float = 1e-6) -> Standardiser:
        """To mean 0 and standard deviation 1, of rows [rows, ...]; a column of a spread below `eps` is only shifted."""
        values = np.asarray(values, np.float64)
        mean, std = values.mean(0), values.std(0)
        return cls(jnp.asarray(mean, jnp.float32), jnp.asarray(np.where(std < eps, 1.0, std), jnp.float32))

    @classmethod
    def extent(cls, values: np.ndarray | Array, eps: float = 1e-4) -> Standardiser:
        """To [-1, 1]: `(x - (low + high) / 2) / ((high - low) / 2)`, with the extremes of each column.

        Of rows [rows, ...]. A column whose range is below `eps` is only shifted, so that its lowest value is 0 (Chi et
        al., "Diffusion Policy", RSS 2023, authors' code).
        """
        values = np.asarray(values, np.float64)
        low, high = values.min(0), values.max(0)
        still = high - low < eps
        middle, half = np.where(still, low, (low + high) / 2), np.where(still, 1.0, (high - low) / 2)
        return cls(jnp.asarray(middle, jnp.float32), jnp.asarray(half, jnp.float32))

    def __call__(self, obs: Array) -> Array:
        if not jnp.issubdtype(obs.dtype, jnp.floating):
            return obs
        return (obs - jax.lax.stop_gradient(self.mean)) / jax.lax.stop_gradient(self.std)

    def undo(self, x: Array) -> Array:
        """`mean + std * x`: the inverse."""
        return jax.lax.stop_gradient(self.mean) + jax.lax.stop_gradient(self.std) * x

    def transition(self, batch: Transition) -> Transition:
        """The same batch with `obs` and `next_obs` standardised."""
        return eqx.tree_at(lambda b: (b.obs, b.next_obs), batch, (self(batch.obs), self(batch.next_obs)))


class RunningMoments(eqx.Module):
    """Mean and variance of a stream, merged batch by batch (Chan et al. 1979)."""

    count: Float[Array, ""]
    mean: Float[Array, "*shape"]
    var: Float[Array, "*shape"]

    @classmethod
    def start(cls, shape: tuple[int, ...]) -> RunningMoments:
        """Nothing seen yet."""
        return cls(jnp.full((), 1e-4), jnp.zeros(shape), jnp.ones(shape))

    def update(self, batch: Float[Array, "n *shape"]) -> RunningMoments:
        """The moments after `n` more values."""
        n = batch.shape[0]
        mean, var = batch.mean(0), batch.var(0)
        total = self.count + n
        delta = mean - self.mean
        merged = self.var * self.count + var * n + delta**2 * self.count * n / total
        return type(self)(total, self.mean + delta * n / total, merged / total)

    @property
    def standardiser(self) -> Standardiser:
        """The normaliser with the statistics so far."""
        return Standardiser(self.mean, jnp.sqrt(self.var + 1e-8))
