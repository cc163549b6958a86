"""Trajectories as rows of numbers of one scale, for a generative model; and back."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from habitus.core.experience import Transition
from habitus.nets.normalise import Standardiser

EDGE = 0.999  # of the actions, as tanh reaches 1 nowhere


class Columns(eqx.Module):
    """`[observation, atanh(action), reward, terminated]`, each column standardised.

    Attributes:
        scale: mean and standard deviation of each column; 1 where a column is constant.
        low, high: range of the logged rewards, to which those that come back are cut.
        obs_size, action_size: columns of each.
    """

    scale: Standardiser
    low: Float[Array, ""]
    high: Float[Array, ""]
    obs_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    @classmethod
    def of(cls, rows: Transition) -> Columns:
        """For transitions [rows] in canonical form, with real observations and actions in [-1, 1]."""
        return cls(
            Standardiser.moments(_raw(rows)),
            rows.reward.min(),
            rows.reward.max(),
            rows.obs.shape[-1],
            rows.action.shape[-1],
        )

    @property
    def size(self) -> int:
        """How many columns there are."""
        return self.obs_size + self.action_size + 2

    @property
    def actions(self) -> slice:
        """Where the actions are."""
        return slice(self.obs_size, self.obs_size + self.action_size)

    def pack(self, rows: Transition) -> Float[Array, "*rows columns"]:
        """Transitions as rows of a generative model."""
        return self.scale(_raw(rows))

    def obs(self, x: Float[Array, "*rows columns"]) -> Float[Array, "*rows obs"]:
        """The observations in such rows."""
        return self.scale.undo(x)[..., : self.obs_size]

    def action(self, x: Float[Array, "*rows columns"]) -> Float[Array, "*rows actions"]:
        """The actions in such rows."""
        return jnp.tanh(self.scale.undo(x)[..., self.actions])

    def unpack(self, x: Float[Array, "time columns"]) -> tuple[Transition, Bool[Array, "time"]]:
        """The transitions in one window of rows, and which of them are whole.

        The next row shows what follows. The last row has none, so it is whole only if it terminates, as what
        follows then counts for nothing (its own observation stands there). A row after one that terminates is not.
        """
        values = self.scale.undo(x)
        obs, reward, flag = values[:, : self.obs_size], values[:, -2], values[:, -1]
        terminated = flag > 0.5
        ended = jnp.concatenate([jnp.zeros(1, bool), jnp.cumsum(terminated)[:-1] > 0])
        last = jnp.arange(len(x)) == len(x) - 1
        steps = Transition(
            obs=obs,
            action=jnp.tanh(values[:, self.actions]),
            reward=jnp.clip(reward, self.low, self.high),
            terminated=terminated,
            truncated=jnp.zeros_like(terminated),
            next_obs=jnp.concatenate([obs[1:], obs[-1:]]),
        )
        return steps, jnp.isfinite(x).all() & ~ended & (terminated | ~last)


def _raw(rows: Transition) -> Float[Array, "*rows columns"]:
    parts = (rows.obs, jnp.arctanh(jnp.clip(rows.action, -EDGE, EDGE)), rows.reward[..., None])
    return jnp.concatenate([*parts, rows.terminated[..., None].astype(jnp.float32)], axis=-1)
