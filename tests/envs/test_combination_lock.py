"""The combination lock: what it shows, what it pays, and what its behaviour earns."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.data.behaviours import PickLock
from habitus.envs.registry import make
from habitus.envs.worlds.combination_lock import ARMS, BAD, CombinationLock
from habitus.train.collect import run_episodes
from habitus.train.sources import Uniform

LOCK = CombinationLock(5)
WORLD = make("combination-lock")


def test_observations_are_codes_turned_by_an_orthogonal_matrix():
    for steps, size in ((5, 16), (10, 16), (12, 16), (20, 32), (50, 64)):
        assert CombinationLock(steps).size == size
    np.testing.assert_array_equal(LOCK.rotation @ LOCK.rotation.T, 16 * np.eye(16))
    for latent, time in ((0, 0), (1, 3), (BAD, 5)):
        state = jnp.array([latent, time])
        seen = jax.vmap(lambda k, s=state: LOCK.observe(s, k))(jax.random.split(jax.random.key(0), 2_000))
        code = np.asarray(LOCK.rotation.T @ seen.mean(0) / 16)
        expected = np.zeros(16)
        expected[[latent, 3 + time]] = 1
        np.testing.assert_allclose(code, expected, atol=0.02)
        noise = (np.asarray(seen) @ LOCK.rotation / 16 - expected).std(0)
        np.testing.assert_allclose(noise[:8], 0.1, atol=0.01)
        np.testing.assert_allclose(noise[8:], 0.0, atol=1e-5)


def test_the_code_of_an_arm_pulls_it_and_larger_numbers_pull_it_surely():
    keys = jax.random.split(jax.random.key(0), 50_000)
    state = jnp.array([0, 0])
    right = (jnp.arange(ARMS) == LOCK.right_arms[0, 0]).astype(jnp.float32)

    def share_good(lock, action):
        after = jax.vmap(lambda k: lock.step(state, action, k)[0])(keys)
        return float((after[:, 0] != BAD).mean())

    assert share_good(LOCK, right) == pytest.approx(np.e**10 / (np.e**10 + 9), abs=3e-4)
    assert share_good(LOCK, 100 * right) == 1.0  # e^1000 overflows if done carelessly
    bounded = dataclasses.replace(LOCK, bounded=True)
    assert share_good(bounded, 100 * right) == pytest.approx(share_good(LOCK, right), abs=1e-6)
    assert share_good(LOCK, jnp.zeros(ARMS)) == pytest.approx(0.1, abs=0.01)


def test_behaviour_and_random_arms_earn_what_they_should():
    behaviour = run_episodes(PickLock.of(LOCK), WORLD, 4_000, 0)
    assert (behaviour.lengths == 5).all()
    share = (0.8 * 0.99959 + 0.2 * 0.1) ** 5
    assert behaviour.success.mean() == pytest.approx(share, abs=0.03)
    assert behaviour.returns.mean() == pytest.approx(share + 0.05 * (1 - share), abs=0.03)
    uniform = run_episodes(Uniform.over(WORLD.spec, PickLock.of(LOCK)), WORLD, 4_000, 0)
    assert uniform.returns.mean() == pytest.approx(0.05, abs=0.005) and uniform.success.mean() < 0.01


def test_the_tabular_form_is_the_same_lock():
    tabular = LOCK.tabular()
    _, values = tabular.solve()
    np.testing.assert_allclose(values[:2], 1.0)
    assert values[2] == pytest.approx(0.05)
    uniform = np.full((16, ARMS), 1 / ARMS)
    assert tabular.mean_return(uniform) == pytest.approx(0.05 + 0.95 * 0.1**5)
    # the right arm of every state, counted in the world itself
    for time in range(4):
        for latent in (0, 1):
            arm = LOCK.right_arms[time, latent]
            state, action = jnp.array([latent, time]), 100.0 * (jnp.arange(ARMS) == arm)
            after, step = LOCK.step(state, action, jax.random.key(time))
            assert tabular.transition[3 * time + latent, arm, 3 * time + 3 + int(after[0])] == 0.5
            assert float(step.reward) == 0


def test_the_combination_is_that_of_its_seed():
    assert (CombinationLock(5, 3).right_arms == CombinationLock(5, 3).right_arms).all()
    assert (CombinationLock(5, 3).right_arms != CombinationLock(5, 4).right_arms).any()
    with pytest.raises(ConfigError, match="length"):
        make("combination-lock", length=0)
