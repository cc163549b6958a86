"""Normalisers: part of the learner's state and of the policy, so that they travel with it."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
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
