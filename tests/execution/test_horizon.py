"""Which rows of a plan are executed, what it was made from, and what does not fit."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError, SpaceMismatch
from habitus.core.policy import Deployed
from habitus.core.spec import Spec
from habitus.execution.horizon import RecedingHorizon
from habitus.nets.normalise import Standardiser
from habitus.nets.policies import Noisy, Normalised

from .parts import KEY, Ramp, walk


def test_the_rows_from_now_on_are_executed_and_then_it_plans_anew():
    actions, carries = walk(RecedingHorizon(Ramp(), execute=3, observe=2), 7)
    planned, rows, window = actions.T
    assert planned.tolist() == [0, 0, 0, 3, 3, 3, 6] and rows.tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert window.tolist() == [0, 0, 0, 2 + 3, 5, 5, 5 + 6]
    assert [int(c.plans) for c in carries] == [int(c.calls) for c in carries] == [1, 1, 1, 2, 2, 2, 3]


def test_the_first_observation_stands_for_those_before_it():
    policy = RecedingHorizon(Ramp(), execute=1, observe=3)
    actions, _ = walk(policy, 3, obs=[(5.0, 0), (7.0, 0), (8.0, 0)])
    assert actions[:, 2].tolist() == [15, 17, 20]


def test_it_says_how_old_its_plan_is_also_through_wrappers_and_a_session():
    policy = RecedingHorizon(Ramp(), execute=3)
    assert policy.report(policy.init())["staleness"] == 0
    assert [int(policy.report(c)["staleness"]) for c in walk(policy, 4)[1]] == [0, 1, 2, 0]
    wrapped = Noisy(Normalised(policy, Standardiser(jnp.zeros(2), jnp.ones(2))), 0.0)
    spec = Spec(spaces.Box(-100, 100, (2,)), spaces.Box(-1, 1, (3,)))
    session = Deployed.of(wrapped, spec).session()
    for t in range(5):
        session.act(np.asarray([t, 0], np.float32))
    assert session.report() == {"staleness": 1, "calls": 2, "plans": 2}
    session.reset()
    assert session.report() == {"staleness": 0, "calls": 0, "plans": 0}


@pytest.mark.parametrize(
    "settings", [dict(execute=8, observe=2), dict(execute=9), dict(execute=0), dict(execute=1, observe=0)]
)
def test_horizons_that_do_not_fit_are_refused(settings):
    RecedingHorizon(Ramp(), execute=7, observe=2)
    with pytest.raises(ConfigError, match="rows|1 or more"):
        RecedingHorizon(Ramp(), **settings)


@pytest.mark.parametrize("obs", [jnp.zeros(3), jnp.zeros(2, jnp.int32), {"x": jnp.zeros(2)}])
def test_an_observation_that_the_planner_does_not_expect_is_refused(obs):
    policy = RecedingHorizon(Ramp(), execute=2)
    with pytest.raises(SpaceMismatch, match="the planner expects"):
        policy(obs, policy.init(), KEY)
