"""Worlds by name."""

from __future__ import annotations

import builtins

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError, HabitusError, MissingExtra, UnknownName
from habitus.envs.adapters.gymnasium import GymnasiumEnv
from habitus.envs.registry import canonical, make, names
from habitus.envs.worlds.pendulum import Pendulum
from habitus.envs.wrappers import TimeLimit

from .worlds import Countdown


def test_built_in_worlds_have_their_limit_and_parameters():
    world = make("pendulum", gravity=9.0, max_episode_steps=7)
    assert isinstance(world, TimeLimit) and world.horizon == 7
    assert isinstance(world.env, Pendulum) and world.env.gravity == 9.0
    assert make("four-rooms", limit=30).horizon == 30


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("pendulun", "did you mean pendulum"),
        ("CartPol-v1", "did you mean CartPole-v1"),
        ("CartPole-v77", "CartPole-v1"),
        ("Hoper-v5", "Hopper-v5"),
        ("qqq", "known: .*pointmaze"),
        ("gymnax:CartPole", "did you mean .*CartPole-v1"),
        ("!!!", "known: .*pointmaze"),
    ],
)
def test_an_unknown_name_says_what_is_near(name, near):
    with pytest.raises(UnknownName, match=near):
        make(name)


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(HabitusError, match="no_such_package"):
        make("no_such_package:Thing-v0")


def test_an_unknown_parameter_says_what_is_near():
    with pytest.raises(ConfigError, match="did you mean gravity"):
        make("pendulum", gravty=9.0)
    with pytest.raises(ConfigError, match="did you mean gravity"):
        make("gymnax:CartPole-v1", gravty=9.0)


def test_what_is_a_world_already_is_taken_as_it_is():
    world = make("cartpole")
    assert make(world) is world
    hosted = make(Countdown)
    assert isinstance(hosted, GymnasiumEnv) and make(hosted) is hosted
    assert isinstance(make(Countdown()), GymnasiumEnv)
    with pytest.raises(ConfigError, match="made already"):
        make(world, gravity=3.0)


def test_only_worlds_have_a_canonical_form():
    with pytest.raises(TypeError, match="str"):  # the type checker's, where it is on, or SpaceMismatch
        canonical("pendulum")


def test_gymnax_that_is_not_installed(monkeypatch):
    real = builtins.__import__

    def without_gymnax(name, *args, **kwargs):
        if name.partition(".")[0] == "gymnax":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_gymnax)
    with pytest.raises(MissingExtra, match=r"pip install \"habitus\[gymnax\]\""):
        make("gymnax:CartPole-v1")


def test_gymnax_and_ours_agree_on_cartpole():
    ours, theirs = make("cartpole"), make("gymnax:CartPole-v1")
    assert ours.horizon == theirs.horizon == 500
    key = jax.random.key(0)
    state, obs = theirs.reset(key)
    mine = obs
    for tick in range(30):
        action = jnp.asarray(tick % 2)
        state, step = theirs.step(state, action, key)
        mine, same = ours.env.step(mine, action, key)
        np.testing.assert_allclose(same.obs, step.obs, atol=1e-5)
        assert bool(same.terminated) == bool(step.terminated) and same.reward == step.reward == 1.0


@pytest.mark.parametrize("name", ["gymnax:CartPole-v1", "gymnax:Breakout-MinAtar"])
def test_gymnax_tells_a_time_limit_from_a_termination(name):
    long, short = make(name), make(name, max_episode_steps=4)
    key = jax.random.key(0)
    state, _ = long.reset(key)
    ends = []
    for tick in range(60):
        state, step = long.step(state, jnp.array(1), jax.random.fold_in(key, tick))
        ends.append((bool(step.terminated), bool(step.truncated)))
    assert (True, False) in ends and not any(cut for _, cut in ends)
    lasts = ends.index((True, False)) + 1
    assert lasts > 4
    state, _ = short.reset(key)
    for tick in range(4):
        state, step = short.step(state, jnp.array(1), jax.random.fold_in(key, tick))
    assert (bool(step.terminated), bool(step.truncated)) == (False, True)
    exact = make(name, max_episode_steps=lasts)
    state, _ = exact.reset(key)
    for tick in range(lasts):
        state, step = exact.step(state, jnp.array(1), jax.random.fold_in(key, tick))
    assert (bool(step.terminated), bool(step.truncated)) == (True, False)


def test_names_can_all_be_made():
    assert [make(name).horizon for name in names()] and len(set(names())) == len(names())
