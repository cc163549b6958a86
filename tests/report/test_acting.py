"""How a policy acts, as it was timed and seen; and the pictures of it."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import HabitusError, SpaceMismatch
from habitus.core.policy import Deployed
from habitus.envs.registry import make
from habitus.execution.horizon import Executor
from habitus.measure.statistics import Interval
from habitus.methods.generative.diffusion_policy import DiffusionPolicy
from habitus.methods.generative.rti_dp import RTIDP
from habitus.methods.generative.sdp import SDP
from habitus.report.acting import DRAWS, STEPS, acting, denoising
from habitus.report.plots import chart, histogram, multiples, trace

LEARNER = DiffusionPolicy(width=8, blocks=1, levels=6, predicted=5, observed=2, executed=3)


@pytest.fixture(scope="module")
def planning() -> Deployed:
    """A diffusion policy that has learned nothing."""
    spec = make("planar-pick").spec
    return Deployed.of(LEARNER.policy(LEARNER.init(spec, jax.random.key(0))), spec)


@pytest.fixture(scope="module")
def seen(planning):
    return acting(planning, "planar-pick", 0)


def test_a_plan_ages_until_it_is_replaced(seen):
    steps = make("planar-pick").horizon
    assert len(seen.staleness) == min(steps, STEPS) and seen.planned
    np.testing.assert_array_equal(seen.staleness, np.arange(len(seen.staleness)) % 3)
    assert len(seen.seconds) == len(seen.staleness) - 2 and (seen.seconds > 0).all()


def test_a_policy_without_plans_has_no_age(save_policy):
    seen = acting(Deployed.load(save_policy("pendulum")), "pendulum", 0)
    assert seen.staleness is None and not seen.planned and len(seen.seconds) == min(200, STEPS) - 2


def test_a_plan_is_drawn_from_noise_to_what_the_planner_answers(planning, seen):
    found = denoising(planning, seen.first, 3)
    assert found.calls[0] == 0 and found.calls[-1] == LEARNER.levels and list(found.calls) == sorted(set(found.calls))
    assert found.chunks.shape == (len(found.calls), DRAWS, 5, 3)
    policy, _ = planning.policy, planning.init()
    executor: Executor = policy.policy
    _, carry = planning(jnp.asarray(seen.first), planning.init(), jax.random.key(3))
    planner, window = executor.planner, carry.window
    keys = jax.random.split(jax.random.key(3), DRAWS)
    for i in (0, DRAWS - 1):
        start = planner.whole(jnp.asarray(found.chunks[0, i]))
        np.testing.assert_allclose(found.chunks[-1, i], planner(window, keys[i], start).chunk, atol=1e-5)


@pytest.mark.parametrize("learner", [SDP, RTIDP])
def test_every_policy_of_a_denoising_planner_is_drawn(learner):
    spec, made = make("planar-pick").spec, learner(width=8, blocks=1)
    policy = Deployed.of(made.policy(made.init(spec, jax.random.key(0))), spec)
    found = denoising(policy, make("planar-pick").reset(jax.random.key(1))[1], 0)
    assert found.chunks.shape[1:] == (DRAWS, made.predicted, 3) and found.calls[-1] == made.levels
    assert np.abs(found.chunks[0]).max() > np.abs(found.chunks[-1]).max()


def test_what_does_not_denoise_is_not_drawn(save_policy):
    assert denoising(Deployed.load(save_policy("pendulum")), np.zeros(3, np.float32), 0) is None


def test_a_world_of_others_that_fails_is_one_sentence(planning):
    with pytest.raises(SpaceMismatch):
        acting(planning, "pendulum", 0)
    with pytest.raises(HabitusError, match="no-such"):
        acting(planning, "no-such-world", 0)


def test_a_histogram_counts_every_value_and_says_its_quantiles():
    values = np.r_[np.full(990, 1.0), np.full(9, 5.0), 80.0]
    text = str(histogram("time", values, "ms", "run-0"))
    assert "median 1 ms, 99 % within 1.04 ms" in text and "of 1000." in text
    assert re.findall(r"M\d+ 1000V(\d+)", text) == [
        "0",
        "990",
    ]  # what is beyond the 99th percentile, in a bar of its own


def test_panels_are_entries_by_moments_with_a_line_for_each_draw():
    text = str(multiples("plans", ["noise", "after 4 calls"], np.zeros((2, 5, 4, 7)), "run-1 dash-1"))
    assert text.count("<svg") == 2 * 3 and text.count('class="stroke run-1"') == 2 * 3 * 5
    assert "--across:2" in text and "dash" not in text


def test_a_trace_has_no_band():
    text = str(chart("age", [trace("dp", 0, np.array([0.0, 1.0, 2.0, 0.0]))], "steps"))
    assert 'class="stroke' in text and 'class="band' not in text


def test_an_interval_of_rounding_errors_is_shown_as_a_number():
    assert str(Interval(0.5, 0.5 - 1e-17, 0.5 + 6e-17)) == "0.5000 [0.5000, 0.5000]"
