"""Noise on what a world executes: the log keeps the clean actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError
from habitus.core.experience import Step
from habitus.core.protocols import Env, Policy
from habitus.envs.noise import NoisyActions, dart_covariance
from habitus.envs.worlds.bit_flip import BitFlip
from habitus.train.logs import record_log


class Sum(Env):
    """The state is the sum of the actions that were executed; two steps long."""

    @property
    def observation_space(self):
        return spaces.Box(-np.inf, np.inf, (2,))

    @property
    def action_space(self):
        return spaces.Box(-1.0, 1.0, (2,))

    @property
    def horizon(self):
        return 2

    def reset(self, key):
        return jnp.zeros(2), jnp.zeros(2)

    def step(self, state, action, key):
        state = state + action
        return state, Step(state, jnp.zeros(()), jnp.array(False), jnp.array(False))


class Home(Policy):
    """Goes to (0.5, -0.5)."""

    def __call__(self, obs, carry, key):
        return jnp.clip(jnp.array([0.5, -0.5]) - obs, -1.0, 1.0), carry


def recorded(**noise):
    found = record_log(Home(), NoisyActions(Sum(), **noise), episodes=2_000)
    return found, found.next_obs - found.obs - found.action


def test_the_log_holds_what_the_policy_said_and_the_states_what_was_executed():
    found, noise = recorded(std=0.2)
    clean = np.clip(np.array([0.5, -0.5]) - found.obs, -1, 1)
    np.testing.assert_allclose(found.action, clean, atol=1e-6)
    assert np.abs(noise.mean(0)).max() < 0.02 and noise.std(0) == pytest.approx([0.2, 0.2], rel=0.1)


def test_what_is_executed_keeps_within_the_bounds():
    found, _ = recorded(std=5.0)
    assert np.abs(found.next_obs - found.obs).max() == pytest.approx(1, abs=1e-6)


def test_without_noise_it_is_the_world_itself():
    found, noise = recorded()
    np.testing.assert_allclose(noise, 0, atol=1e-6)
    plain = record_log(Home(), Sum(), episodes=2_000)
    np.testing.assert_array_equal(found.action, plain.action)


def test_noise_has_the_covariance_that_is_asked_for():
    covariance = np.array([[0.01, 0.006], [0.006, 0.02]], np.float32)
    _, noise = recorded(std=jnp.asarray(np.linalg.cholesky(covariance)))
    np.testing.assert_allclose(noise.T @ noise / len(noise), covariance, atol=2e-3)
    _, noise = recorded(std=jnp.array([0.0, 0.1]))
    assert noise.std(0) == pytest.approx([0.0, 0.1], abs=0.01)


def test_the_covariance_of_a_learner():
    error = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 2.0]])
    np.testing.assert_allclose(dart_covariance(error), [[2 / 3, 2 / 3], [2 / 3, 8 / 3]])
    scaled = dart_covariance(error, total=5.0, horizon=10)
    assert 10 * np.trace(scaled) == pytest.approx(5.0)
    np.testing.assert_allclose(scaled / scaled[0, 0], dart_covariance(error) / (2 / 3))
    with pytest.raises(ConfigError, match="makes no errors"):
        dart_covariance(0 * error, total=1.0)
    with pytest.raises(ConfigError, match="total is 0"):
        dart_covariance(error, total=0.0)


def test_integers_are_replaced_at_random():
    world = BitFlip()
    flips = jax.jit(jax.vmap(lambda key: jnp.argmax(step(world, key))))(jax.random.split(jax.random.key(0), 2_000))
    counts = np.bincount(np.asarray(flips), minlength=8) / 2_000
    assert counts[3] == pytest.approx(0.5 + 0.5 / 8, abs=0.05) and (counts > 0.03).all()


def step(world, key):
    noisy = NoisyActions(world, random_share=0.5)
    state, obs = noisy.reset(jax.random.key(1))
    _, after = noisy.step(state, jnp.asarray(3), key)
    return jnp.abs(after.obs - obs)[:8]


def test_what_is_refused():
    for wrong in ({"std": -0.1}, {"std": jnp.full(3, 0.1)}, {"random_share": 1.5}, {"random_share": -0.1}):
        with pytest.raises(ConfigError):
            NoisyActions(Sum(), **wrong)
    with pytest.raises(ConfigError, match="random_share for integers"):
        NoisyActions(BitFlip(), std=0.1)
