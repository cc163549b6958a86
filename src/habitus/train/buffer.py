"""A uniform ring buffer, compiled, as three pure functions."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from habitus.core.experience import Transition
from habitus.core.spec import Spec


def empty_transitions(spec: Spec, size: int) -> Transition:
    """`size` rows of zeros in the canonical form of `spec`."""
    obs = jnp.zeros((size, *spec.obs_shape), spec.obs_dtype)
    return Transition(
        obs=obs,
        action=jnp.zeros((size, *spec.action_shape), spec.action_dtype),
        reward=jnp.zeros(size),
        terminated=jnp.zeros(size, bool),
        truncated=jnp.zeros(size, bool),
        next_obs=jnp.copy(obs),
        cost=jnp.zeros((size, len(spec.costs))) if spec.costs else None,
    )


def stored(rows: Transition, data: Transition) -> Transition:
    """The rows without their costs where a buffer has no room for them."""
    return rows if data.cost is not None or rows.cost is None else dataclasses.replace(rows, cost=None)


class Buffer(eqx.Module):
    """The last `capacity` transitions, in no particular order."""

    data: Transition
    position: Int[Array, ""]
    size: Int[Array, ""]

    @classmethod
    def empty(cls, spec: Spec, capacity: int) -> Buffer:
        """Room for `capacity` transitions."""
        return cls(empty_transitions(spec, capacity), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    @property
    def capacity(self) -> int:
        """How many transitions fit."""
        return self.data.reward.shape[0]

    def add(self, rows: Transition) -> Buffer:
        """Overwrites the oldest rows. The number of rows must divide the capacity."""
        rows, n = stored(rows, self.data), rows.size

        def write(store: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(store, new.astype(store.dtype), self.position, 0)

        data = jax.tree.map(write, self.data, rows)
        return Buffer(data, (self.position + n) % self.capacity, jnp.minimum(self.size + n, self.capacity))

    def sample(self, key: PRNGKeyArray, n: int) -> Transition:
        """`n` rows, uniformly and with replacement."""
        rows = jax.random.randint(key, (n,), 0, self.size)
        return jax.tree.map(lambda x: x[rows], self.data)
