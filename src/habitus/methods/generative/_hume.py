"""The parts of Hume: values of chunks by a query, candidates that differ in temperature, and what refines one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.errors import ConfigError
from habitus.core.experience import Trajectory, Transition
from habitus.core.protocols import Policy
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, take
from habitus.execution.planner import Plan, Planner, Start, when_due
from habitus.execution.two_rate import Advised
from habitus.generative.denoisers import ResidualMLP
from habitus.generative.flow import euler_calls, flow_walk
from habitus.methods.generative.flow_policy import PERIODS, Timed, Window
from habitus.methods.offline._cal_ql import Macro
from habitus.nets.heads import Ensemble, ObsNet
from habitus.nets.mlp import MLP


class ValueQuery(Ensemble):
    """Twin values of an observation and a chunk: what a query makes of the observation, and two heads that read it."""

    query: ObsNet

    def __init__(self, spec: Spec, hidden: Sequence[int], size: int, key: PRNGKeyArray):
        """Args:
        size: features that the query answers with.
        """
        query_key, head_key = jax.random.split(key)
        self.query = ObsNet(spec, hidden, size, query_key)
        super().__init__(lambda k: MLP(size + spec.action_size, hidden, 1, k), 2, head_key)

    def __call__(self, *args: Array) -> Float[Array, "2"]:
        obs, chunk = args
        x = jnp.concatenate([self.query(obs), chunk])
        return jnp.concatenate([head(x) for head in self.members])


def progress(batch: Trajectory, now: int, valued: int, discount: float | Array, positive: int) -> Macro:
    """The `valued` steps of each window from step `now` on as one transition, whose rewards are of progress alone.

    Every step costs 1 but the last `positive` ones of an episode whose rewards sum to more than 0: those cost nothing,
    and nothing follows them. Any other episode goes on for ever in the state in which it was left. The floor is the
    discounted return: `-(1 - gamma^n) / (1 - gamma)` with n steps to go to the last phase, `-1 / (1 - gamma)` without.

    Raises:
        ConfigError: if the windows do not say how far an episode is from its end.
    """
    if batch.left is None:
        raise ConfigError("progress is how far an episode is from its end, which these windows do not say.")
    rows = take(batch.steps, (slice(None), slice(now, now + valued)))
    powers = discount ** jnp.arange(valued + 1)
    won = batch.to_go[:, now] > 0
    until = jnp.maximum(batch.left[:, now] + 1 - positive, 0)  # steps before the last phase
    costly = jnp.arange(valued) < jnp.where(won, until, valued)[:, None]
    reward, counts = -(powers[:-1] * costly).sum(1), jnp.where(costly.all(1), powers[-1], 0.0)
    floor = -(1 - jnp.where(won, discount**until, 0.0)) / (1 - discount)
    return _macro(rows, reward, batch.steps.obs[:, now + valued], counts, floor)


def logged(batch: Trajectory, now: int, valued: int, discount: float | Array) -> Macro:
    """The `valued` steps of each window from step `now` on as one transition, with the rewards of the log.

    `r = sum_i gamma^i r_i` within the episode, which goes on from its last successor unless it terminated. No floor.
    """
    rows, valid = take((batch.steps, batch.valid), (slice(None), slice(now, now + valued)))
    powers = discount ** jnp.arange(valued + 1)
    reward = (powers[:-1] * rows.reward * valid).sum(1)
    counts = jnp.where((rows.terminated & valid).any(1), 0.0, powers[valid.sum(1)])
    return _macro(rows, reward, rows.next_obs[:, -1], counts, jnp.full(len(valid), -jnp.inf))


def _macro(rows: Transition, reward: Array, after: Array, counts: Array, floor: Array) -> Macro:
    none = jnp.zeros(len(reward), bool)
    chunk = rows.action.reshape(len(reward), -1)
    return Macro(rows.obs[:, 0], chunk, reward, none, none, after, discount=counts, floor=floor)


class Temperatures(eqx.Module):
    """How far from the data candidates start, and by what their steps are multiplied.

    Candidate i of n has `low + (i / n) (high - low)` of either, so that none has the upper bound.
    """

    times: tuple[float, float] = eqx.field(static=True)
    gains: tuple[float, float] = eqx.field(static=True)
    kept: float = eqx.field(static=True)
    steps: int = eqx.field(static=True)

    def of(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Share of the way that is left, gain, and network calls of each candidate, [n] each."""
        share = np.arange(n) / n
        left, gain = (low + share * (high - low) for low, high in (self.times, self.gains))
        return left, gain, np.array([euler_calls(float(x), self.kept, self.steps) for x in left])


class Tempered(Planner):
    """Draws a chunk by a flow that starts, as pure noise, at less than the whole way; it is clipped to [-1, 1].

    Attributes:
        left: share of the way that is walked, and maybe a little more.
        gain: factor of each step.
        calls: steps that are taken.
    """

    velocity: Timed
    temperatures: Temperatures
    left: Float[Array, ""]
    gain: Float[Array, ""]
    calls: Int[Array, ""]
    rows: tuple[int, int] = eqx.field(static=True)
    obs_shape: tuple[int, ...] = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows

    def blank(self) -> Array:
        return jnp.zeros(self.obs_shape)

    def candidate(self, i: Int[Array, ""], n: int) -> Tempered:
        left, gain, calls = (jnp.asarray(x)[i] for x in self.temperatures.of(n))
        settings = left.astype(jnp.float32), gain.astype(jnp.float32), calls.astype(jnp.int32)
        return eqx.tree_at(lambda p: (p.left, p.gain, p.calls), self, settings)

    def __call__(self, window: Window, key: PRNGKeyArray, start: Start | None = None) -> Plan:
        steps = self.temperatures.steps
        x = flow_walk(
            self.velocity, jax.random.normal(key, self.rows), 1 - self.left, 1 / steps, self.calls, window,
            gain=self.gain, most=steps + 1,
        )  # fmt: skip
        return Plan(jnp.clip(x, -1, 1), self.calls)


class Worth(eqx.Module):
    """The lesser of two values of the first actions of a chunk from row `now` on."""

    critic: Any
    now: int = eqx.field(static=True)
    valued: int = eqx.field(static=True)

    def __call__(self, window: Window, chunk: Float[Array, "rows actions"]) -> Float[Array, ""]:
        return self.critic(window[-1], chunk[self.now : self.now + self.valued].ravel()).min()


class Placed(eqx.Module):
    """A velocity of a slice that is told the time of the flow and the place of the slice within its chunk."""

    network: ResidualMLP

    def __call__(self, x: Array, t: Float[Array, ""], place: Int[Array, ""], obs: Array) -> Array:
        return self.network(x, jnp.stack([PERIODS * t, place.astype(jnp.float32)]), obs)


class Slice(eqx.Module):
    """What `Refine` remembers: a refined slice, how many of its rows were executed, and network calls so far."""

    rows: Float[Array, "refined actions"]
    used: Int[Array, ""]
    calls: Int[Array, ""]


class Refine(Policy):
    """Finishes slices of the slow part's chunk on what is seen now: its observations are `Advised`.

    Attributes:
        velocity: moves a slice, from `start` of the way on.
        start: time of the flow at which slices are taken for data on their way, 0 for noise.
        steps: of Euler's method.
        now: row of the chunk that is the action of the step in which it was asked for.
        executed: steps between two slices.
        refined, action_size: shape of a slice.
    """

    velocity: Placed
    start: Float[Array, ""] | float
    steps: int = eqx.field(static=True)
    now: int = eqx.field(static=True)
    executed: int = eqx.field(static=True)
    refined: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    def init(self) -> Slice:
        rows = jnp.zeros((self.refined, self.action_size))
        return Slice(rows, jnp.full((), self.executed, jnp.int32), jnp.zeros((), jnp.int32))

    def refine(self, x: Float[Array, "refined actions"], place: Int[Array, ""], obs: Array) -> Array:
        """A slice from `place` of a chunk, all the way to the data."""
        size = (1 - self.start) / self.steps
        return jnp.clip(flow_walk(self.velocity, x, self.start, size, self.steps, place, obs), -1, 1)

    def __call__(self, obs: Advised, carry: Slice, key: PRNGKeyArray) -> tuple[Array, Slice]:
        due = (carry.used >= self.executed) | obs.new  # a slice does not outlive its plan

        def again() -> tuple[Array, Array]:
            part = jax.lax.dynamic_slice_in_dim(obs.chunk, self.now + obs.age, self.refined)
            return self.refine(part, obs.age, obs.obs), carry.calls + self.steps

        rows, calls = when_due(due, again, (carry.rows, carry.calls))
        used = jnp.where(due, 0, carry.used)
        return rows[used], Slice(rows, used + 1, calls)

    def report(self, carry: Slice) -> Metrics:
        """`calls` of the fast network in this episode."""
        return {"calls": carry.calls}
