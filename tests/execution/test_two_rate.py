"""When plans of the slow part arrive, how old they are, and what the fast part does with them."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.core.protocols import Policy
from habitus.execution.horizon import RecedingHorizon
from habitus.execution.planner import Plan, Planner
from habitus.execution.two_rate import Advised, Blend, Follow, TwoRate

from .parts import Ramp, walk


class Telling(Policy):
    """Acts by what it sees, and remembers what it earned: (plan's first number, age, known, base, earned, new)."""

    def init(self):
        return jnp.zeros(())

    def rewarded(self, carry, reward):
        return carry + reward

    def __call__(self, obs, carry, key):
        return jnp.stack([obs.chunk[0, 0], obs.age * 1.0, obs.known * 1.0, obs.base[0], carry, obs.new * 1.0]), carry


def shown(steps=11, **settings):
    """Columns of what the fast policy saw: when its plan was asked for, its age, whether known, the base."""
    actions, carries = walk(TwoRate(Ramp(), Telling(), **settings), steps)
    return [[int(x) for x in column] for column in actions.T[:4]], carries


@pytest.mark.parametrize(
    ("period", "latency", "asked"),
    [
        (4, 0, [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8]),
        (4, 2, [0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 8]),
        (3, 3, [0, 0, 0, 0, 0, 0, 3, 3, 3, 6, 6]),
        (1, 1, [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_a_plan_arrives_after_its_latency_and_its_age_is_told(period, latency, asked):
    (seen, age, known, base), carries = shown(period=period, latency=latency)
    assert seen == base == asked and known == [1] * 11
    assert age == [t - a for t, a in enumerate(asked)] == [int(c.age) for c in carries]
    assert [int(c.worst) for c in carries] == np.maximum.accumulate(age).tolist()
    assert [int(c.plans) for c in carries] == [int(c.calls) for c in carries] == [1 + t // period for t in range(11)]


def test_a_fast_policy_is_told_when_a_plan_arrives():
    actions, _ = walk(TwoRate(Ramp(), Telling(), period=4, latency=2), 11)
    assert actions[:, 5].tolist() == [1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    actions, _ = walk(TwoRate(Ramp(), Telling(), period=4, latency=2, wait=False), 7)
    assert actions[:, 5].tolist() == [0, 0, 1, 0, 0, 0, 1]


def test_without_waiting_the_first_steps_have_no_plan():
    (seen, age, known, _), carries = shown(5, period=4, latency=2, wait=False)
    assert known == [0, 0, 1, 1, 1] and age == [0, 0, 2, 3, 4] and seen == [0] * 5
    report = TwoRate(Ramp(), Telling(), 4, 2).report(carries[-1])
    assert {k: int(v) for k, v in report.items()} == {"staleness": 4, "staleness/worst": 4, "calls": 2, "plans": 2}


def test_the_first_executed_row_of_a_new_plan_is_the_one_of_now():
    policy = TwoRate(Ramp(8), Follow(offset=1), period=4, latency=2, observe=2)
    actions, _ = walk(policy, 11)
    assert actions[:, 1].tolist() == [1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 3]
    assert actions[:, 2].tolist() == [0, 0, 0, 0, 0, 0, 7, 7, 7, 7, 15]  # windows (0, 0), (3, 4), (7, 8)


def test_a_blend_weighs_the_newest_plan_most_and_forgets_those_that_are_over():
    policy = TwoRate(Ramp(4), Blend((4, 3), keep=3, decay=1.0), period=1)
    actions, _ = walk(policy, 6)
    weight = np.exp(-np.arange(3))
    for t in range(6):
        age = np.arange(min(t + 1, 3))
        w = weight[: len(age)] / weight[: len(age)].sum()
        np.testing.assert_allclose(actions[t, :2], [w @ (t - age), w @ age], rtol=1e-5)
    late, _ = walk(TwoRate(Ramp(4), Blend((4, 3), keep=3, offset=1, decay=0.0), period=2), 6)
    np.testing.assert_allclose(late[4:, 1], [(1 + 3) / 2, 2.0])  # the plan of step 2 has no row 4
    np.testing.assert_allclose(late[4:, 0], [(4 + 2) / 2, 4.0])
    for bad in (dict(keep=0), dict(keep=1, offset=-1), dict(keep=1, decay=-1.0)):
        with pytest.raises(ConfigError, match=list(bad)[-1]):
            Blend((4, 3), **bad)


class Refine(Planner):
    """A fast planner over what the slow one said: rows (when that was asked for, its age, the row)."""

    length: int = eqx.field(static=True, default=2)

    @property
    def shape(self):
        return self.length, 3

    def blank(self):
        no = jnp.zeros((), bool)
        return Advised(jnp.zeros(2), jnp.zeros((8, 3)), jnp.zeros(2), jnp.zeros((), jnp.int32), no, no)

    def __call__(self, window, key, start=None):
        rows = jnp.arange(2.0)
        asked, age = jnp.full(2, window.chunk[-1, 0, 0]), jnp.full(2, window.age[-1] * 1.0)
        return Plan(jnp.stack([asked, age, rows], 1), jnp.full((), 10, jnp.int32))


def test_the_fast_part_may_plan_too():
    policy = TwoRate(Ramp(), RecedingHorizon(Refine(), execute=2), period=4, latency=1)
    actions, carries = walk(policy, 8)
    assert actions[:, 0].tolist() == [0, 0, 0, 0, 0, 0, 4, 4]
    assert actions[:, 1].tolist() == [0, 0, 2, 2, 4, 4, 2, 2] and actions[:, 2].tolist() == [0, 1] * 4
    report = policy.report(carries[-1])
    assert int(report["calls"]) == 2 and int(report["fast/calls"]) == 40 and int(report["fast/staleness"]) == 1


def test_the_fast_policy_hears_what_was_earned():
    policy = TwoRate(Ramp(), Telling(), 4)
    carry = policy.rewarded(walk(policy, 1)[1][0], jnp.asarray(2.5))
    assert walk(policy, 1, carry=carry)[0][0, 4] == 2.5


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (dict(period=0), "period must be 1"),
        (dict(period=2, latency=3), "cannot be asked so often"),
        (dict(period=2, latency=-1), "cannot be asked so often"),
        (dict(period=2, observe=0), "observe must be 1"),
        (dict(period=4, latency=4, fast=Follow(1)), "needs 9 rows"),
    ],
)
def test_rates_that_do_not_fit_are_refused(settings, why):
    with pytest.raises(ConfigError, match=why):
        TwoRate(Ramp(), **dict(fast=Telling()) | settings)
    with pytest.raises(ConfigError, match="offset"):
        Follow(-1)
