"""Targets against a plain loop."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from habitus.core.returns import gae, standardise, td_target


def plain_gae(reward, value, next_value, terminated, truncated, discount, gae_lambda):
    """Advantages [time], one step after another from the end."""
    advantage, following = np.zeros(len(reward)), 0.0
    for t in reversed(range(len(reward))):
        bootstrap = 0.0 if terminated[t] else next_value[t]
        delta = reward[t] + discount * bootstrap - value[t]
        following = delta + discount * gae_lambda * (0.0 if terminated[t] or truncated[t] else following)
        advantage[t] = following
    return advantage


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_gae_against_a_loop(gae_lambda):
    rng, shape = np.random.default_rng(0), (23, 4)
    reward, value, next_value = rng.normal(size=(3, *shape)).astype(np.float32)
    terminated = rng.random(shape) < 0.15
    truncated = (rng.random(shape) < 0.15) & ~terminated
    assert terminated.any() and truncated.any()
    columns = [jnp.asarray(x) for x in (reward, value, next_value, terminated, truncated)]
    advantage, returns = gae(*columns, 0.9, gae_lambda)
    for env in range(4):
        expected = plain_gae(*(np.asarray(x)[:, env] for x in columns), 0.9, gae_lambda)
        np.testing.assert_allclose(advantage[:, env], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(returns, advantage + value, rtol=1e-5, atol=1e-6)


def test_td_lambda_returns_without_bootstrapping_are_the_discounted_rewards():
    reward, zero, flag = jnp.array([1.0, 2.0, 4.0]), jnp.zeros(3), jnp.zeros(3, bool)
    _, returns = gae(reward, zero, zero, flag.at[2].set(True), flag, 0.5, 1.0)
    np.testing.assert_allclose(returns, [3.0, 4.0, 4.0])


def test_a_target_bootstraps_unless_terminated():
    target = td_target(jnp.ones(2), jnp.array([True, False]), jnp.array([10.0, 10.0]), 0.9)
    np.testing.assert_allclose(target, [1.0, 10.0])


def test_nothing_of_the_value_after_termination_is_left():
    target = td_target(jnp.ones(1), jnp.array([True]), jnp.array([jnp.inf]), 0.9)
    np.testing.assert_array_equal(target, [1.0])


def test_standardising():
    x = np.random.default_rng(0).normal(3, 5, (4, 50)).astype(np.float32)
    np.testing.assert_allclose(standardise(jnp.asarray(x)), (x - x.mean()) / x.std(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(standardise(jnp.ones(4)), np.zeros(4))


def test_annotated_shapes_are_checked_here():
    """So that a wrong shape anywhere in the test run is an error."""
    with pytest.raises(TypeCheckError, match="td_target"):
        td_target(jnp.ones(2), jnp.zeros(3, bool), jnp.ones(2), 0.9)
    with pytest.raises(TypeCheckError, match="terminated"):
        td_target(jnp.ones(2), jnp.zeros(2), jnp.ones(2), 0.9)
