"""A slow planner and a fast policy that reads its last plan.

H. Xue et al., "Reactive Diffusion Policy", RSS 2025; H. Song et al., "Hume", 2025. The time that the slow part needs is
counted in steps of the world, so that a simulation shows what it costs.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.domains import require
from habitus.core.experience import Action, Obs
from habitus.core.protocols import Policy
from habitus.core.trees import Metrics, prefixed, select
from habitus.execution.planner import Planner, empty_window, seen, when_due


class Advised(eqx.Module):
    """What the fast policy sees.

    Attributes:
        obs: the observation of now.
        chunk: the plan in use; zeros where none has arrived.
        base: the observation that it was asked for with.
        age: steps since then.
        known: whether one has arrived.
        new: whether it arrived in this very step, so that a fast policy with a memory begins anew.
    """

    obs: Any
    chunk: Float[Array, "rows columns"]
    base: Any
    age: Int[Array, ""]
    known: Bool[Array, ""]
    new: Bool[Array, ""]


class Thought(eqx.Module):
    """A plan, the observation that it was asked for with, and the step of the episode in which it was."""

    chunk: Float[Array, "rows columns"]
    base: Any
    asked: Int[Array, ""]


class Rates(eqx.Module):
    """What `TwoRate` remembers within an episode.

    Attributes:
        window: the last observations [observe, ...].
        fast: carry of the fast policy.
        pending: what the slow part was last asked for.
        active: what the fast policy reads.
        known: whether anything has arrived.
        tick: steps so far.
        age: staleness of the plan that the last action was made with, in steps.
        worst: greatest staleness of the episode.
        calls, plans: of the slow part: network calls, and how often it was asked.
    """

    window: Any
    fast: Any
    pending: Thought
    active: Thought
    known: Bool[Array, ""]
    tick: Int[Array, ""]
    age: Int[Array, ""]
    worst: Int[Array, ""]
    calls: Int[Array, ""]
    plans: Int[Array, ""]


class Follow(Policy):
    """A fast policy without a mind of its own: executes row `offset + age` of the plan, or its last one.

    Attributes:
        offset: the row of the step in which the plan was asked for: its `observe - 1`.
    """

    offset: int = eqx.field(default=0, static=True)

    def __check_init__(self) -> None:
        require(self.offset >= 0, f"offset must be 0 or more, but is {self.offset}.")

    def __call__(self, obs: Advised, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        return obs.chunk[jnp.minimum(self.offset + obs.age, obs.chunk.shape[0] - 1)], carry


class Plans(eqx.Module):
    """What `Blend` remembers: the last plans, the newest first, and their ages in steps."""

    chunks: Float[Array, "keep rows columns"]
    ages: Int[Array, "keep"]


class Blend(Policy):
    """A fast policy that averages what all plans that reach so far say of now: temporal ensembling.

    The i-th newest plan weighs `exp(-decay i)` (T. Z. Zhao et al., "Learning Fine-Grained Bimanual Manipulation with
    Low-Cost Hardware", RSS 2023, with the order turned round, so that a larger decay trusts the newest more).

    Attributes:
        shape: rows and columns of a plan.
        keep: how many plans are remembered.
        offset: the row of the step in which a plan was asked for.
        decay: 0 for a plain mean.

    Raises:
        ConfigError: if a number is out of its domain.
    """

    shape: tuple[int, int] = eqx.field(static=True)
    keep: int = eqx.field(static=True)
    offset: int = eqx.field(default=0, static=True)
    decay: float = 0.8

    def __check_init__(self) -> None:
        require(self.keep >= 1, f"keep must be 1 or more, but is {self.keep}.")
        require(self.offset >= 0, f"offset must be 0 or more, but is {self.offset}.")
        require(self.decay >= 0, f"decay must be 0 or more, but is {self.decay}.")

    def init(self) -> Plans:
        beyond = jnp.full((self.keep,), self.shape[0], jnp.int32)
        return Plans(jnp.zeros((self.keep, *self.shape)), beyond)

    def __call__(self, obs: Advised, carry: Plans, key: PRNGKeyArray) -> tuple[Array, Plans]:
        chunks = jnp.concatenate([obs.chunk[None], carry.chunks])[:-1]
        older = carry.ages + 1
        ages = jnp.concatenate([obs.age[None], older])[:-1]
        plans = select(obs.new, Plans(chunks, ages), Plans(carry.chunks, older))
        row = self.offset + plans.ages
        reaches = row < self.shape[0]
        weight = jnp.where(reaches, jnp.exp(-self.decay * jnp.arange(self.keep)), 0.0)
        told = plans.chunks[jnp.arange(self.keep), jnp.where(reaches, row, 0)]
        return weight @ told / jnp.maximum(weight.sum(), 1e-9), plans


class TwoRate(Policy):
    """Asks the slow part every `period` steps; what it answers arrives `latency` steps later.

    The fast policy acts in every step, on the newest observation and on the newest plan that has arrived
    (`Advised`), which is from `latency` to `period + latency - 1` steps old.

    Attributes:
        slow: what plans; its chunk may be of actions, or anything that the fast policy can read.
        fast: what acts. Its observations are `Advised`.
        period: steps between two questions.
        latency: steps that an answer takes; a new question waits for the last answer, so `period` at most.
        observe: observations that the slow part is shown.
        wait: whether an episode begins only once the first plan is there, so that it has no age; else the fast policy
            acts without one (`known` is False) for `latency` steps.

    Raises:
        ConfigError: if a number is out of its domain, or a plan to `Follow` ends before the next one can arrive.
    """

    slow: Planner
    fast: Policy
    period: int = eqx.field(static=True)
    latency: int = eqx.field(default=0, static=True)
    observe: int = eqx.field(default=1, static=True)
    wait: bool = eqx.field(default=True, static=True)

    def __check_init__(self) -> None:
        require(self.period >= 1, f"period must be 1 or more, but is {self.period}.")
        require(self.observe >= 1, f"observe must be 1 or more, but is {self.observe}.")
        require(
            0 <= self.latency <= self.period,
            f"latency must be from 0 to the period of {self.period} steps, but is {self.latency}: a slow part that "
            "needs longer cannot be asked so often.",
        )
        if isinstance(self.fast, Follow):
            needed = self.fast.offset + self.period + self.latency
            require(
                self.slow.shape[0] >= needed,
                f"a plan of {self.slow.shape[0]} rows ends before the next one can arrive: with offset "
                f"{self.fast.offset}, period {self.period} and latency {self.latency} it needs {needed} rows.",
            )

    def init(self) -> Rates:
        zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        blank = jax.tree.map(jnp.asarray, self.slow.blank())
        nothing = Thought(jnp.zeros(self.slow.shape), blank, zero)
        window = empty_window(self.slow, self.observe)
        return Rates(window, self.fast.init(), nothing, nothing, no, zero, zero, zero, zero, zero)

    def rewarded(self, carry: Rates, reward: Float[Array, ""]) -> Rates:
        return eqx.tree_at(lambda c: c.fast, carry, self.fast.rewarded(carry.fast, reward))

    def __call__(self, obs: Obs, carry: Rates, key: PRNGKeyArray) -> tuple[Action, Rates]:
        slow_key, fast_key = jax.random.split(key)
        tick = carry.tick
        window, due = seen(carry.window, obs, tick > 0), tick % self.period == 0

        def ask() -> tuple[Thought, Array]:
            plan = self.slow(window, slow_key)
            return Thought(plan.chunk, jax.tree.map(jnp.asarray, obs), tick), carry.calls + plan.calls

        pending, calls = when_due(due, ask, (carry.pending, carry.calls))
        # an answer arrives before the next question replaces it; that of the first step is waited for, if at all
        arriving = pending if self.latency == 0 else select(tick == 0, pending, carry.pending)
        arrived = arriving.asked + self.latency == tick
        if self.wait:
            arrived |= tick == 0
        new = arrived & ~(carry.known & (arriving.asked == carry.active.asked))  # the first may have been there already
        active, known = select(arrived, arriving, carry.active), carry.known | arrived
        age = jnp.where(known, tick - active.asked, 0)
        action, fast = self.fast(Advised(obs, active.chunk, active.base, age, known, new), carry.fast, fast_key)
        worst, plans = jnp.maximum(carry.worst, age), carry.plans + due
        return action, Rates(window, fast, pending, active, known, tick + 1, age, worst, calls, plans)

    def report(self, carry: Rates) -> Metrics:
        """`staleness` of the plan that was last acted on and `staleness/worst` of the episode, in steps; `calls` and
        `plans` of the slow part; and what the fast policy reports, under `fast/`."""
        own = {"staleness": carry.age, "staleness/worst": carry.worst, "calls": carry.calls, "plans": carry.plans}
        return own | prefixed("fast", self.fast.report(carry.fast))
