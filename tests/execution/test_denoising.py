"""One denoising step against the formulas of DDPM and DDIM, and whole chains against closed forms."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.execution.denoising import Denoising, down
from habitus.generative.ddpm import Schedule

from .parts import KEY, denoising

WINDOW = jnp.zeros((1, 2))


class Wavy:
    """Any network."""

    def __call__(self, chunk, level, window):
        return jnp.sin(3 * chunk) + 0.01 * level[:, None]


def wavy(rows=5, levels=12, **settings):
    return Denoising(Wavy(), Schedule.cosine(levels), rows, 2, (2,), **settings)


def ddpm(planner, chunk, k, z):
    """The posterior step of DDPM for all rows at level k, as Ho et al. write it."""
    kept = np.append(np.asarray(planner.schedule.alpha_bar, np.float64), 1.0)
    now, then = kept[k], kept[k - 1]
    alpha = now / then
    beta = 1 - alpha
    noise = np.asarray(planner.network(chunk, jnp.full(len(chunk), k), WINDOW))
    clean = np.clip((chunk - np.sqrt(1 - now) * noise) / np.sqrt(now), -1, 1)
    mean = (np.sqrt(then) * beta * clean + np.sqrt(alpha) * (1 - then) * chunk) / (1 - now)
    return mean + np.sqrt(beta * (1 - then) / (1 - now)) * z


@pytest.mark.parametrize("k", [0, 1, 6, 11])
def test_a_step_is_that_of_ddpm_whether_the_levels_are_one_or_each_row_has_its_own(k):
    planner, chunk = wavy(), jax.random.normal(KEY, (5, 2))
    level, z = jnp.full(5, k), np.asarray(jax.random.normal(jax.random.key(1), (5, 2)))
    found = planner.step(chunk, level, level - 1, WINDOW, jax.random.key(1))
    np.testing.assert_allclose(found, ddpm(planner, np.asarray(chunk), k, z), atol=2e-5)
    mixed = jnp.asarray([3, k, -1, k, 0])
    rows = planner.step(chunk, mixed, jnp.maximum(mixed - 1, -1), WINDOW, jax.random.key(1))
    np.testing.assert_array_equal(rows[jnp.asarray([1, 3])], found[jnp.asarray([1, 3])])
    np.testing.assert_array_equal(rows[2], chunk[2])  # clean ones are left alone


def test_the_last_step_returns_the_clipped_estimate_and_draws_nothing():
    planner, chunk = wavy(), 3 * jax.random.normal(KEY, (5, 2))
    found = planner(WINDOW, KEY, down(chunk, (0,), jump=False))
    kept, noise = planner.schedule.alpha_bar[0], planner.network(chunk, jnp.zeros(5), WINDOW)
    np.testing.assert_allclose(
        found.chunk, np.clip((chunk - np.sqrt(1 - kept) * noise) / np.sqrt(kept), -1, 1), atol=1e-6
    )
    np.testing.assert_array_equal(found.chunk, planner(WINDOW, jax.random.key(9), down(chunk, (0,), False)).chunk)
    assert found.calls == 1


@pytest.mark.parametrize(
    ("settings", "spread"), [(dict(), 0.3696), (dict(steps=10, eta=0.0), 0.3348)], ids=["ddpm", "ddim in 10 steps"]
)
def test_a_whole_chain_of_gaussian_data_has_the_known_mean_and_spread(settings, spread):
    planner = denoising(100_000, 50, 0.2, 0.4, clip=None, **settings)
    plan = eqx.filter_jit(planner)(WINDOW, KEY)
    assert abs(plan.chunk.mean() - 0.2) < 0.005 and abs(plan.chunk.std() - spread) < 0.004
    assert plan.calls == settings.get("steps", 50)


def test_what_the_network_answers_with_makes_no_difference():
    planner, schedule = wavy(clip=None), Schedule.cosine(12)
    chunk, level = jax.random.normal(KEY, (5, 2)), jnp.asarray([3, 7, 11, 0, 5])

    def answering(prediction):
        def network(x, k, window):
            noise = planner.network(x, k, window)
            return schedule.target(schedule.clean(x, noise, k), noise, k, prediction)

        same = Denoising(network, schedule, 5, 2, (2,), clip=None, prediction=prediction)
        return same.step(chunk, level, level - 1, WINDOW, KEY)

    for prediction in ("clean", "velocity"):
        np.testing.assert_allclose(answering(prediction), answering("noise"), atol=1e-4)


def test_data_that_are_one_sequence_come_out_as_that():
    sequence = jnp.sin(jnp.arange(12.0)).reshape(6, 2)
    plan = denoising(6, 48, sequence, columns=2)(WINDOW, KEY)
    np.testing.assert_allclose(plan.chunk, sequence, atol=1e-5)


def test_noise_is_added_up_to_a_level_and_never_taken_away():
    planner = denoising(50_000, 20)
    chunk, up, to = jnp.full((50_000, 1), 0.5), jnp.full(50_000, 4), jnp.full(50_000, 11)
    for found in (
        planner.noised(chunk, to, KEY),
        planner.noised(planner.noised(chunk, up, KEY), to, jax.random.key(2), up),
    ):
        kept = planner.schedule.alpha_bar[11]
        assert abs(found.mean() - 0.5 * np.sqrt(kept)) < 0.01 and abs(found.var() - (1 - kept)) < 0.01
    np.testing.assert_array_equal(planner.noised(chunk, up, KEY, before=to), chunk)
    np.testing.assert_array_equal(planner.noised(chunk, jnp.full(50_000, -1), KEY), chunk)


@pytest.mark.parametrize(
    "bad", [dict(steps=0), dict(steps=13), dict(eta=1.5), dict(clip=0.0), dict(rows=0), dict(prediction="x")]
)
def test_settings_out_of_their_domain_are_refused(bad):
    with pytest.raises(ConfigError):
        wavy(**bad)
