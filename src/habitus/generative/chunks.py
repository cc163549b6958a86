"""Chunks of actions: which steps of a log's windows are seen and which predicted, and acting chunk by chunk.

C. Chi et al., "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion", RSS 2023, section 2.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.domains import require
from habitus.core.experience import Trajectory
from habitus.core.protocols import Policy
from habitus.core.trees import seldom, select, take


class Chunking(eqx.Module):
    """How far back a policy sees, how far it predicts, and how much of that it executes.

    At step s it sees the observations of steps `s - To + 1 .. s` and predicts the actions of
    `s - To + 1 .. s - To + Tp`, those of the past included; it executes the `Ta` from step s on, and then plans anew.
    Steps outside the episode stand for its nearest one.

    Attributes:
        predicted: `Tp`.
        observed: `To`.
        executed: `Ta`.

    Raises:
        ConfigError: if a number is below 1, or `Tp` below `To - 1 + Ta`.
    """

    predicted: int = eqx.field(static=True)
    observed: int = eqx.field(static=True, default=2)
    executed: int = eqx.field(static=True, default=8)

    def __check_init__(self) -> None:
        for name in ("predicted", "observed", "executed"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more, but is {getattr(self, name)}.")
        least = self.before + self.executed
        require(
            self.predicted >= least,
            f"{self.predicted} predicted steps do not hold {self.before} of the past and the {self.executed} that are "
            f"executed; predict {least} or more.",
        )

    @property
    def before(self) -> int:
        """Steps of a window that lie before the row it belongs to: of `Dataset.windows(Tp, rows, before)`."""
        return self.observed - 1

    @property
    def now(self) -> slice:
        """Which of the predicted actions are executed."""
        return slice(self.before, self.before + self.executed)

    def seen(self, windows: Trajectory) -> Any:
        """The observations [*batch, To, ...] of windows [*batch, Tp]."""
        return self._first(windows, windows.steps.obs, self.observed)

    def actions(self, windows: Trajectory) -> Float[Array, "*batch predicted actions"]:
        """The actions of windows [*batch, Tp], what is to be predicted."""
        return self._first(windows, windows.steps.action, self.predicted)

    @staticmethod
    def _first(windows: Trajectory, column: Any, steps: int) -> Any:
        """The first rows in time; windows may be longer, and may have any axes before that of time."""
        axes = (slice(None),) * (windows.valid.ndim - 1)
        return take(column, (*axes, slice(steps)))


class ChunkCarry(eqx.Module):
    """What is remembered between the steps of an episode.

    Attributes:
        seen: the last observations, oldest first.
        actions: the chunk in execution.
        at: how many of its actions are done; all of them before the first step.
        steps: of the episode so far.
    """

    seen: Float[Array, "observed *obs"]
    actions: Float[Array, "executed actions"]
    at: Int[Array, ""]
    steps: Int[Array, ""]


class Chunked(Policy):
    """Plans from the last observations, executes a part of the plan, and plans anew: a receding horizon.

    Before the first step the first observation stands for those that are not there.
    """

    plan: Callable[[Float[Array, "observed *obs"], PRNGKeyArray], Float[Array, "predicted actions"]]
    chunking: Chunking
    obs_shape: tuple[int, ...] = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    def init(self) -> ChunkCarry:
        cut = self.chunking
        seen, actions = jnp.zeros((cut.observed, *self.obs_shape)), jnp.zeros((cut.executed, self.action_size))
        return ChunkCarry(seen, actions, jnp.full((), cut.executed, jnp.int32), jnp.zeros((), jnp.int32))

    def __call__(self, obs: Array, carry: ChunkCarry, key: PRNGKeyArray) -> tuple[Array, ChunkCarry]:
        repeated = jnp.broadcast_to(obs, carry.seen.shape).astype(carry.seen.dtype)
        shifted = jnp.concatenate([carry.seen[1:], repeated[:1]])
        seen = select(carry.steps == 0, repeated, shifted)
        due = carry.at >= self.chunking.executed
        actions = seldom(due, _planned, carry.actions, self, seen, key)
        at = jnp.where(due, 0, carry.at)
        return actions[at], ChunkCarry(seen, actions, at + 1, carry.steps + 1)


def _planned(actions: Array, policy: Chunked, seen: Array, key: PRNGKeyArray) -> Array:
    """The part of a new plan that is executed."""
    del actions
    return policy.plan(seen, key)[policy.chunking.now]
