"""Goals in hindsight for windows of a log."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import scipy.stats
from gymnasium import spaces

from habitus.core.errors import ConfigError, DataError
from habitus.data.dataset import Dataset
from habitus.data.hindsight import HindsightSource
from habitus.data.source import DatasetSource

LENGTHS = (8, 1, 3)


def walk(goals=1):
    """Episodes that count up, and ask for nonsense; each state is its row, and a half more after the last step."""
    rows = np.arange(sum(LENGTHS), dtype=np.float32)[:, None]
    last = np.cumsum(LENGTHS) - 1
    after = np.where(np.isin(rows, last), rows + 0.5, rows + 1)
    space = spaces.Box(-1e3, 1e3, (1,))
    wanted = spaces.Box(-1e3, 1e3, (goals,))
    nonsense = np.full((len(rows), goals), -7, np.float32)
    return Dataset.from_arrays(
        obs={"achieved_goal": rows, "desired_goal": nonsense, "observation": 10 * rows},
        next_obs={"achieved_goal": after, "desired_goal": nonsense, "observation": 10 * after},
        action=np.zeros((len(rows), 1), np.float32),
        reward=rows[:, 0],
        terminated=np.zeros(len(rows), bool),
        truncated=np.isin(rows[:, 0], last),
        observation_space=spaces.Dict({"achieved_goal": space, "desired_goal": wanted, "observation": space}),
        action_space=spaces.Box(-1, 1, (1,)),
    )


LOG = walk()
resident_or_not = pytest.mark.parametrize("resident", [0, 2**30])


def drawn(source, seed=0):
    return source.draw(source.init(None, jax.random.key(0)), None, jax.random.key(seed))[1]


def ends_of(windows):
    """The last row of each window, and of its episode, as numbers."""
    last = np.cumsum(LENGTHS) - 1
    end = np.asarray(windows.steps.obs[:, -1, 0]).astype(int)
    return end, last[np.searchsorted(last, end)]


@resident_or_not
def test_a_window_has_one_goal_which_its_episode_achieves_at_its_end_or_later(resident):
    source = HindsightSource(LOG, 400, window=3, resident=resident)
    windows = drawn(source)
    plain = windows.steps.obs
    goal = np.asarray(plain[:, 0, 1])
    for obs in (plain, windows.steps.next_obs):
        assert (np.asarray(obs[..., 1]) == goal[:, None]).all()
        np.testing.assert_array_equal(obs[..., 2], 10 * obs[..., 0])
    end, last = ends_of(windows)
    steps = np.ceil(goal).astype(int) - 1  # the row whose step achieved it
    assert ((steps >= end) & (steps <= last)).all()
    assert (goal == np.where(steps == last, last + 0.5, steps + 1)).all()


@resident_or_not
def test_each_later_step_is_as_likely(resident):
    source = HindsightSource(LOG, 4_000, window=2, resident=resident)
    windows = drawn(source)
    end, last = ends_of(windows)
    steps = np.ceil(np.asarray(windows.steps.obs[:, 0, 1])).astype(int) - 1
    counts = np.bincount(steps[end == 2] - 2, minlength=6)
    assert (last[end == 2] == 7).all() and scipy.stats.chisquare(counts).pvalue > 1e-3


def test_windows_that_reach_back_have_goals_after_their_own_end():
    windows = drawn(HindsightSource(LOG, 300, window=3, before=2))
    end, last = ends_of(windows)
    assert (np.ceil(np.asarray(windows.steps.obs[:, 0, 1])).astype(int) - 1 >= end).all()
    assert not windows.valid.all() and (windows.valid[:, -1]).all()


def test_a_longer_goal_is_what_several_steps_achieve_up_to_the_last():
    windows = drawn(HindsightSource(walk(goals=3), 400, window=2))
    end, last = ends_of(windows)
    goal = np.asarray(windows.steps.obs[:, 0, 1:4])
    steps = np.ceil(goal).astype(int) - 1
    np.testing.assert_array_equal(steps, np.minimum(steps[:, :1] + np.arange(3), last[:, None]))


def test_the_same_key_draws_the_same_and_compiled_as_well():
    source = HindsightSource(LOG, 16, window=3)
    assert source.pure and source.window == 3
    one, again = drawn(source, 3), jax.jit(lambda key: source.draw((), None, key)[1])(jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert not np.array_equal(one.steps.obs, drawn(source, 4).steps.obs)
    aside = DatasetSource(LOG, 16, window=3)
    assert (np.asarray(drawn(aside).steps.obs[..., 1]) == -7).all()


def test_what_has_no_goals_or_no_windows_is_refused():
    with pytest.raises(ConfigError, match="window="):
        HindsightSource(LOG, 4)
    plain = Dataset.from_arrays(np.zeros((4, 2), np.float32), np.zeros((4, 1)), np.zeros(4), np.ones(4, bool))
    with pytest.raises(DataError, match="hold no goals"):
        HindsightSource(plain, 4, window=2)
