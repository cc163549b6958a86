"""What flows from a Source to a Learner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Obs = Any
Action = Any
# What learners see are JAX arrays, and so type checkers; while a host world is stepped they are NumPy's.
if TYPE_CHECKING:
    Column = Array
else:
    Column = Array | np.ndarray


class Step(eqx.Module):
    """What a world answers to an action.

    `obs` is the true successor, also when the episode ends here: resetting is the collector's work.
    `terminated` says that the future is worth nothing; `truncated` that only the recording stopped.
    `info` may hold "success", and for a world with costs "cost", [costs].
    """

    obs: Obs
    reward: Float[Column, "*batch"]
    terminated: Bool[Column, "*batch"]
    truncated: Bool[Column, "*batch"]
    info: dict[str, Any] = eqx.field(default_factory=dict)


class Transition(eqx.Module):
    """One decision and its consequence; with leading axes, a batch or a roll-out of them.

    `next_obs` is always the true successor of `obs`, never the first observation of the next
    episode, so a value learner bootstraps from it unless `terminated`. `cost` is there if the world
    or the log reports costs: what must be kept low whatever the reward.
    """

    obs: Obs
    action: Action
    reward: Float[Column, "*batch"]
    terminated: Bool[Column, "*batch"]
    truncated: Bool[Column, "*batch"]
    next_obs: Obs
    cost: Float[Column, "*batch costs"] | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """The fields by name, without the cost where there is none."""
        return {name: column for name, column in vars(self).items() if column is not None}

    @property
    def done(self) -> Bool[Array, "*batch"]:
        """Whether the episode ends with this transition, for either reason."""
        return self.terminated | self.truncated

    @property
    def size(self) -> int:
        """Length of the leading axis."""
        return self.reward.shape[0]


class Sides(eqx.Module):
    """A batch whose two origins a learner must tell apart.

    Attributes:
        own: collected by the explorer.
        logged: from a log; windows of it if whole episodes are asked for.
    """

    own: Transition
    logged: Transition | Trajectory

    @property
    def union(self) -> Transition:
        """All rows, those of the explorer first."""
        return jax.tree.map(lambda *xs: jnp.concatenate(xs), self.own, self.logged)


class Trajectory(eqx.Module):
    """Windows of consecutive transitions of one episode each.

    Where the episode ends sooner than the window, or begins later, its last or first transition is repeated and not
    `valid`.

    Attributes:
        steps: transitions with leading axes [*batch, time].
        valid: False where a row is padding.
        time: the place of each row within its episode, from 0.
        to_go: undiscounted sum of the rewards from each row to the end of its episode (to the end of
            the record, where that was cut).
        left: transitions of its episode after each row, where the log is known to its end.
    """

    steps: Transition
    valid: Bool[Array, "*batch time"]
    time: Int[Array, "*batch time"]
    to_go: Float[Array, "*batch time"]
    left: Int[Array, "*batch time"] | None = None

    @classmethod
    def of_rollout(cls, rollout: Transition) -> Trajectory:
        """The first episodes [env, time] of a roll-out [time, env] that begins where episodes do."""
        steps = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rollout)
        valid = jnp.cumsum(steps.done, 1) - steps.done == 0
        time = jnp.broadcast_to(jnp.arange(valid.shape[1], dtype=jnp.int32), valid.shape)
        paid = jnp.where(valid, steps.reward, 0.0)
        return cls(steps, valid, time, jnp.cumsum(paid[:, ::-1], 1)[:, ::-1])


class Weighted(eqx.Module):
    """A batch whose rows were not drawn uniformly.

    A learner answers it with one more metric, `PRIORITY` [batch]: how much it has to learn from each row.

    Attributes:
        rows: the batch.
        weight: of each row in a loss, so that its mean is that of uniform draws; 1 at most.
    """

    rows: Transition | Trajectory
    weight: Float[Array, "batch"]


PRIORITY = "priority"


def flatten_time(rollout: Transition) -> Transition:
    """Merges the first two axes [time, env, ...] of a roll-out into one of size time * env."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)
