"""Normalisers against NumPy."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.experience import Transition
from habitus.core.spec import Spec
from habitus.nets.normalise import RunningMoments, Standardiser

ROWS = np.random.default_rng(0).normal([5.0, -2.0], [3.0, 0.1], (100, 2)).astype(np.float32)
STATISTICS = types.SimpleNamespace(mean=ROWS.mean(0), std=ROWS.std(0))


def test_the_statistics_of_a_log():
    spec = Spec(spaces.Box(-9, 9, (2,)), spaces.Discrete(2), dataset=STATISTICS)
    seen = np.asarray(jax.vmap(Standardiser.of(spec))(jnp.asarray(ROWS)))
    np.testing.assert_allclose(seen, (ROWS - ROWS.mean(0)) / (ROWS.std(0) + 1e-3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.Box(0, 255, (4, 4, 3), np.uint8)])
def test_integers_and_images_stay_as_they_are(space):
    normalise = Standardiser.of(Spec(space, spaces.Discrete(2), dataset=STATISTICS))
    obs = jnp.asarray(space.sample())
    np.testing.assert_array_equal(normalise(obs), obs)
    assert normalise(obs).dtype == obs.dtype


def test_both_observations_of_a_transition_are_standardised_and_nothing_else():
    normalise = Standardiser(jnp.array([5.0, -2.0]), jnp.array([2.0, 0.5]))
    flag = jnp.zeros(3, bool)
    batch = Transition(jnp.ones((3, 2)), jnp.ones((3, 1)), jnp.ones(3), flag, flag, 2 * jnp.ones((3, 2)))
    seen = normalise.transition(batch)
    np.testing.assert_allclose(seen.obs[0], [-2.0, 6.0])
    np.testing.assert_allclose(seen.next_obs[0], [-1.5, 8.0])
    for name in ("action", "reward", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(seen, name), getattr(batch, name))


def test_no_gradient_reaches_the_statistics():
    gradient = jax.grad(lambda n: n(jnp.ones(2)).sum())(Standardiser(jnp.zeros(2), jnp.ones(2)))
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_running_moments_are_those_of_all_that_was_seen():
    moments = RunningMoments.start((2,))
    for part in np.split(ROWS, [1, 10, 60]):
        moments = moments.update(jnp.asarray(part))
    np.testing.assert_allclose(moments.mean, ROWS.mean(0), rtol=1e-4)
    np.testing.assert_allclose(moments.var, ROWS.var(0), rtol=1e-3, atol=1e-4)
    seen = np.asarray(jax.vmap(moments.standardiser)(jnp.asarray(ROWS)))
    np.testing.assert_allclose(seen.std(0), 1.0, rtol=1e-2)
