"""A policy's log, as it happened."""

from __future__ import annotations

import numpy as np
import pytest

import habitus
from habitus.core.errors import ConfigError
from habitus.data.behaviours import SwingUp
from habitus.envs.worlds.pendulum import Pendulum
from habitus.envs.wrappers import TimeLimit


def test_a_recorded_log_holds_whole_episodes_in_order():
    world = TimeLimit(Pendulum(), 50)
    log = habitus.record_log(SwingUp(), world, episodes=3, seed=1)
    assert len(log) == 150 and log.lengths.tolist() == [50] * 3 and log.complete.all()
    inside = np.delete(np.arange(150), [49, 99, 149])
    np.testing.assert_array_equal(np.asarray(log.next_obs)[inside], np.asarray(log.obs)[inside + 1])
    again = habitus.record_log(SwingUp(), world, episodes=3, seed=1)
    np.testing.assert_array_equal(np.asarray(again.obs), np.asarray(log.obs))
    assert not np.array_equal(np.asarray(habitus.record_log(SwingUp(), world, 3, seed=2).obs), np.asarray(log.obs))


def test_a_world_without_a_horizon_is_refused():
    with pytest.raises(ConfigError, match="horizon"):
        habitus.record_log(SwingUp(), Pendulum(), episodes=1)
