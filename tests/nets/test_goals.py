"""Observations with goals as rows of states and of goals, and where a spec says that goals are."""

from __future__ import annotations

import types

import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import SpaceMismatch
from habitus.core.spec import Spec
from habitus.nets.goals import GoalRows


def box(size):
    return spaces.Box(-9, 9, (size,))


def spec_of(**parts):
    space = spaces.Dict({name: box(size) for name, size in parts.items()})
    size = sum(parts.values())
    log = types.SimpleNamespace(mean=np.arange(size, dtype=np.float32), std=1 + np.arange(size, dtype=np.float32))
    return Spec(space, spaces.Box(-1, 1, (1,)), dataset=log)


def test_a_state_is_all_but_the_desired_goal_and_a_goal_has_what_is_desired_where_a_state_has_what_is_achieved():
    spec = spec_of(achieved_goal=1, desired_goal=2, observation=2)
    assert spec.goals == (slice(0, 1), slice(1, 3))
    rows = GoalRows.of(spec, eps=0.0)
    assert (rows.width, rows.goals) == (3, 2)
    obs = jnp.array([[7.0, 5.0, 6.0, 8.0, 9.0]])
    # mean 0, 1, 2, 3, 4 and std 1, 2, 3, 4, 5 of the columns as they come
    np.testing.assert_allclose(rows.states(obs), [[5 / 4, 1.0, 7.0]])
    np.testing.assert_allclose(rows.goal(obs), [[[0, 0, 5.0], [0, 0, 6.0]]])
    np.testing.assert_allclose(rows.goal(obs[0]), [[0, 0, 5.0], [0, 0, 6.0]])


def test_without_a_desired_goal_there_are_no_rows_of_goals():
    rows = GoalRows.of(spec_of(first=2, second=1), eps=0.0)
    assert (rows.width, rows.goals) == (3, 0)
    assert rows.goal(jnp.ones((4, 3))).shape == (4, 0, 3) and rows.states(jnp.ones((4, 3))).shape == (4, 3)
    assert Spec(box(3), spaces.Discrete(2)).goals is None


@pytest.mark.parametrize("parts", [dict(achieved_goal=2, desired_goal=3), dict(desired_goal=3)])
def test_goals_of_other_sizes_are_refused(parts):
    with pytest.raises(SpaceMismatch, match="desired_goal has 3 entries"):
        spec_of(**parts).goals  # noqa: B018


def test_observations_that_are_no_vectors_are_refused():
    with pytest.raises(SpaceMismatch, match="must be vectors"):
        GoalRows.of(Spec(spaces.Discrete(4), spaces.Discrete(2)))
