"""MiniGrid's worlds through the adapter, against the package's own."""

from __future__ import annotations

import builtins

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import MissingExtra, UnknownName
from habitus.envs.registry import canonical, make, name_of
from habitus.train.loop import learn

NAME = "MiniGrid-DoorKey-5x5-v0"


@pytest.fixture
def minigrid():
    return pytest.importorskip("minigrid")


def test_it_shows_what_minigrid_shows(minigrid):
    ours = make(NAME, num_envs=2)
    theirs = gymnasium.make(NAME)
    seeds = np.random.SeedSequence(3).generate_state(2).tolist()
    obs, wanted = ours.reset(3), theirs.reset(seed=seeds[1])[0]
    np.testing.assert_array_equal(obs[1], wanted["image"].ravel())
    rng = np.random.default_rng(0)
    for _ in range(200):
        action = int(rng.integers(7))
        step, _ = ours.step(np.array([6, action]))
        wanted, reward, terminated, truncated, _ = theirs.step(action)
        np.testing.assert_array_equal(step.obs[1], wanted["image"].ravel())
        assert (step.reward[1], step.terminated[1], step.truncated[1]) == (np.float32(reward), terminated, truncated)
        if terminated or truncated:
            break


def test_learners_see_one_hot_codes_of_every_cell(minigrid):
    world = make(NAME)
    assert world.horizon == 250 and name_of(world) == NAME
    assert world.observation_space == spaces.MultiDiscrete([11, 6, 4] * 49)
    obs = np.asarray(canonical(world).reset(0))[0]
    assert obs.shape == (49 * 21,) and obs.sum() == 49 * 3


def test_it_is_a_world_to_learn_in(minigrid):
    settings = dict(rollout_length=16, num_envs=2, epochs=1, minibatch_size=16, hidden=(8,))
    run = learn("ppo", env=make(NAME, num_envs=2), steps=64, **settings)
    assert run.policies


def test_an_id_that_does_not_exist(minigrid):
    with pytest.raises(UnknownName, match="did you mean .*MiniGrid-DoorKey"):
        make("MiniGrid-DoorKy-5x5-v0")


def test_without_the_package_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "minigrid":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtra, match=r"habitus\[minigrid\]"):
        make(NAME)
