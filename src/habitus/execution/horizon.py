"""Receding horizon: a plan is made, some of its rows are executed, and a new one is made."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.experience import Obs
from habitus.core.protocols import Policy
from habitus.core.trees import Metrics
from habitus.execution.planner import Planner, check_horizon, empty_window, seen, when_due


class Underway(eqx.Module):
    """What an executor remembers within an episode.

    Attributes:
        window: the last observations [observe, ...], the newest one last.
        queue: rows of the plan that are executed.
        used: how many of them were.
        memory: what the executor keeps from plan to plan.
        started: whether the episode has begun.
        calls, plans: network calls and plans so far.
    """

    window: Any
    queue: Float[Array, "execute columns"]
    used: Int[Array, ""]
    memory: Any
    started: Bool[Array, ""]
    calls: Int[Array, ""]
    plans: Int[Array, ""]


class Executor(Policy):
    """Executes the rows `observe - 1` to `observe - 2 + execute` of each plan.

    Attributes:
        planner: what plans.
        execute: steps between two plans.
        observe: observations that a plan is made from. The first one of an episode stands for those before it.

    Raises:
        ConfigError: if a plan has too few rows.
    """

    planner: Planner
    execute: int = eqx.field(static=True)
    observe: int = eqx.field(default=1, static=True)

    def __check_init__(self) -> None:
        check_horizon(self.planner, self.execute, self.observe)

    @abc.abstractmethod
    def fresh(self) -> Any:
        """What is kept from plan to plan, before the first one."""

    @abc.abstractmethod
    def replan(
        self, window: Obs, memory: Any, started: Bool[Array, ""], key: PRNGKeyArray
    ) -> tuple[Float[Array, "rows columns"], Any, Int[Array, ""]]:
        """The next plan, what to keep, and the network calls it took."""

    def executed(self, row: Float[Array, "columns"]) -> Float[Array, "columns"]:
        """The action that a row of the plan stands for."""
        return row

    def init(self) -> Underway:
        zero = jnp.zeros((), jnp.int32)
        return Underway(
            window=empty_window(self.planner, self.observe),
            queue=jnp.zeros((self.execute, self.planner.shape[1])),
            used=jnp.full((), self.execute, jnp.int32),
            memory=self.fresh(),
            started=jnp.zeros((), bool),
            calls=zero,
            plans=zero,
        )

    def __call__(self, obs: Obs, carry: Underway, key: PRNGKeyArray) -> tuple[Array, Underway]:
        window, due = seen(carry.window, obs, carry.started), carry.used >= self.execute

        def again() -> tuple[Array, Any, Array]:
            chunk, memory, calls = self.replan(window, carry.memory, carry.started, key)
            return chunk[self.observe - 1 : self.observe - 1 + self.execute], memory, carry.calls + calls

        queue, memory, calls = when_due(due, again, (carry.queue, carry.memory, carry.calls))
        used = jnp.where(due, 0, carry.used)
        after = Underway(window, queue, used + 1, memory, jnp.ones((), bool), calls, carry.plans + due)
        return self.executed(queue[used]), after

    def report(self, carry: Underway) -> Metrics:
        """`staleness` (steps since the plan in use was made), `calls` and `plans` of this episode."""
        age = jnp.where(carry.started, carry.used - 1, 0)
        return {"staleness": age, "calls": carry.calls, "plans": carry.plans}


class RecedingHorizon(Executor):
    """Plans from nothing every `execute` steps (Chi et al. 2023, "Diffusion Policy", RSS)."""

    def fresh(self) -> tuple[()]:
        return ()

    def replan(self, window: Obs, memory: Any, started: Bool[Array, ""], key: PRNGKeyArray) -> tuple[Array, Any, Array]:
        plan = self.planner(window, key)
        return plan.chunk, memory, plan.calls
