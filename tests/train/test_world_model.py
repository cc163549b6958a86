"""Learned worlds, where the true one is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError, DataError, SpaceMismatch
from habitus.data.behaviours import SwingUp
from habitus.data.dataset import Dataset
from habitus.envs.terminations import hopper_falls, never, termination_of
from habitus.train.collect import run_episodes
from habitus.train.sources import Uniform
from habitus.train.world_model import fit_world

NOISE = 0.1


def linear_log(rows=4_000, seed=0):
    """`s' = s + 0.1 a + noise`, `r = s_0 + a_0`, in states of very different scales."""
    rng = np.random.default_rng(seed)
    scale = np.array([1.0, 100.0], np.float32)
    obs = rng.normal(size=(rows, 2)).astype(np.float32) * scale
    action = rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
    after = obs + scale * (0.5 * action + NOISE * rng.normal(size=(rows, 2)).astype(np.float32))
    ends = np.arange(rows) % 50 == 49
    return Dataset.from_arrays(
        obs=obs,
        next_obs=after,
        action=action,
        reward=(obs[:, 0] + action[:, 0]).astype(np.float32),
        terminated=np.zeros(rows, bool),
        truncated=ends,
        observation_space=spaces.Box(-np.inf, np.inf, (2,)),
        action_space=spaces.Box(-1, 1, (2,)),
        validate=False,
    )


@pytest.fixture(scope="module")
def fitted():
    return fit_world(linear_log(), jax.random.key(0), members=3, elites=2, hidden=(64, 64), steps=2_000)


def test_it_finds_the_dynamics_and_their_noise(fitted):
    world, error = fitted
    assert error.shape == (3,) and (error < 2 * NOISE**2).all()
    obs, action = jnp.array([0.5, -40.0]), jnp.array([0.3, -0.6])
    found = world.model.each(obs, action)
    change = found.mean[:, :2] * world.model.normaliser.std
    np.testing.assert_allclose(change, np.broadcast_to([0.15, -30.0], (3, 2)), atol=5.0, rtol=0)
    np.testing.assert_allclose(change[:, 0], 0.15, atol=0.08)
    np.testing.assert_allclose(found.mean[:, 2], 0.8, atol=0.15)
    np.testing.assert_allclose(jnp.exp(found.log_std[:, :2]), NOISE, atol=0.05)


def test_it_can_be_stepped_like_any_other_world(fitted):
    world, _ = fitted
    assert world.horizon == 50
    found = run_episodes(Uniform((2,), (), SwingUp()), world, 4)
    assert found.lengths.tolist() == [50] * 4 and np.isfinite(found.returns).all()


def test_predictions_stay_in_the_range_of_the_log(fitted):
    world, _ = fitted
    log = linear_log()
    spread = np.ptp(np.asarray(log.obs), axis=0)
    np.testing.assert_allclose(world.high[:2], np.asarray(log.obs).max(0) + 0.1 * spread, rtol=1e-4)
    far = (jnp.array([50.0, 0.0]), jnp.zeros((), jnp.int32))
    _, step = world.step(far, jnp.ones(2), jax.random.key(1))
    assert step.obs[0] == world.high[0] and world.low[2] <= step.reward <= world.high[2] and not step.terminated


def test_known_tasks_end_by_their_own_rule():
    assert termination_of("Hopper-v5") is hopper_falls and termination_of("pendulum") is never
    up, down = jnp.zeros(11).at[0].set(1.2), jnp.zeros(11).at[0].set(0.5)
    assert not hopper_falls(up, up, up) and hopper_falls(up, up, down)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="elites"):
        fit_world(linear_log(100), jax.random.key(0), members=2, elites=3)
    with pytest.raises(DataError, match="hold out"):
        fit_world(linear_log(5), jax.random.key(0))
    log = linear_log(100)
    discrete = Dataset.from_arrays(
        obs=np.asarray(log.obs), next_obs=np.asarray(log.next_obs), action=np.zeros(100, int),
        reward=np.asarray(log.reward), terminated=np.zeros(100, bool), truncated=np.asarray(log.truncated),
        observation_space=log.observation_space, action_space=spaces.Discrete(2), validate=False,
    )  # fmt: skip
    with pytest.raises(SpaceMismatch, match="dynamics"):
        fit_world(discrete, jax.random.key(0))
