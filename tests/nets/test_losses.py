"""Shared losses against NumPy and closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.nets.losses import clipped_value_loss, expectile_loss, huber, pick, tsallis_log

ERRORS = jnp.linspace(-3, 3, 13)


@pytest.mark.parametrize("q", [0.5, 1.0, 1.5, 2.0])
def test_the_tsallis_logarithm(q):
    p = np.array([0.01, 0.3, 1.0, 2.5])
    expected = np.log(p) if q == 1 else (p ** (q - 1) - 1) / (q - 1)
    np.testing.assert_allclose(tsallis_log(jnp.log(p), q), expected, rtol=1e-4, atol=1e-6)


def test_the_tsallis_logarithm_becomes_the_logarithm():
    log_p = jnp.log(jnp.array([1e-4, 0.2, 3.0]))
    np.testing.assert_allclose(tsallis_log(log_p, 1.0001), log_p, rtol=1e-3)


def test_the_tsallis_logarithm_of_nothing_is_finite():
    value, gradient = jax.value_and_grad(lambda x: tsallis_log(x, 0.5))(jnp.float32(-1e4))
    np.testing.assert_allclose(value, (1e-6**-0.5 - 1) / -0.5, rtol=1e-4)
    assert gradient == 0


def test_huber():
    expected = np.where(np.abs(ERRORS) <= 1, ERRORS**2 / 2, np.abs(ERRORS) - 0.5)
    np.testing.assert_allclose(huber(ERRORS), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(huber))(ERRORS), np.clip(ERRORS, -1, 1), rtol=1e-6)


def test_the_minimum_of_the_expectile_loss_is_the_expectile():
    sample = jnp.asarray(np.random.default_rng(0).exponential(size=200), jnp.float32)
    grid = jnp.linspace(0, 5, 5001)
    for tau in (0.1, 0.5, 0.9):
        best = grid[jnp.argmin(jax.vmap(lambda v, t=tau: expectile_loss(sample - v, t).mean())(grid))]
        above, below = jnp.maximum(sample - best, 0).mean(), jnp.maximum(best - sample, 0).mean()
        np.testing.assert_allclose(tau * above, (1 - tau) * below, atol=2e-3)


def test_the_clipped_value_loss_takes_the_worse_of_both():
    value, old, target = (jnp.array(x) for x in ([1.0, 0.1, 2.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]))
    # clipped: 0.2, 0.1, 0.2
    np.testing.assert_allclose(clipped_value_loss(value, old, target, 0.2), (0.64 + 0.81 + 4.0) / 3, rtol=1e-6)


def test_picking_is_indexing():
    values, action = jax.random.normal(jax.random.key(0), (5, 3)), jnp.array([0, 2, 1, 1, 0])
    np.testing.assert_array_equal(pick(values, action), np.asarray(values)[np.arange(5), action])
