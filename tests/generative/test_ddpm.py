"""Diffusion in discrete levels: of Gaussian data the noise is known, and so are the moments of what comes out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.generative.ddim import ddim_grid, ddim_sample, ddim_step
from habitus.generative.ddpm import Schedule, ddpm_sample, ddpm_step

KEY = jax.random.key(0)
MEAN, STD = 0.2, 0.4


def exact_noise(schedule, x, k):
    """The best prediction of the noise in data from N(MEAN, STD^2)."""
    kept, lost = schedule.kept(k), schedule.lost(k)
    return jnp.sqrt(lost) * (x - jnp.sqrt(kept) * MEAN) / (kept * STD**2 + lost)


def moments(step, levels):
    """Mean and standard deviation after affine steps `x' = step(x, z, *level)` from N(0, 1)."""
    mean, var = 0.0, 1.0
    for level in levels:
        at_zero = float(step(jnp.zeros(()), jnp.zeros(()), *level))
        of_x = float(step(jnp.ones(()), jnp.zeros(()), *level)) - at_zero
        of_z = float(step(jnp.zeros(()), jnp.ones(()), *level)) - at_zero
        mean, var = at_zero + of_x * mean, of_x**2 * var + of_z**2
    return mean, var**0.5


@pytest.mark.parametrize(
    "levels, first, last", [(100, 0.99937, 2.43e-7), (48, 0.99814, 1.05e-6), (50, 0.99825, 9.71e-7)]
)
def test_the_cosine_schedule_has_its_known_ends(levels, first, last):
    schedule = Schedule.cosine(levels)
    assert schedule.levels == levels
    np.testing.assert_allclose(schedule.alpha_bar[0], first, atol=5e-6)
    np.testing.assert_allclose(schedule.alpha_bar[-1], last, rtol=5e-3)
    assert float(schedule.beta.max()) == np.float32(0.999)
    np.testing.assert_allclose(schedule.alpha_bar + schedule.noise_bar, 1, atol=1e-6)
    f = np.cos((np.array([7, 8]) / levels + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(schedule.beta[7], 1 - f[1] / f[0], rtol=1e-5)


def test_the_linear_schedule():
    schedule = Schedule.linear(1000)
    np.testing.assert_allclose(schedule.beta[jnp.array([0, -1])], [1e-4, 0.02], rtol=1e-6)
    np.testing.assert_allclose(schedule.alpha_bar[1], (1 - 1e-4) * (1 - schedule.beta[1]), rtol=1e-6)


def test_the_clean_level_never_indexes_the_table():
    schedule = Schedule.cosine(10)
    k = jnp.array([-1, 0, 9])
    np.testing.assert_array_equal(schedule.kept(k), [1, schedule.alpha_bar[0], schedule.alpha_bar[9]])
    np.testing.assert_array_equal(schedule.lost(k), [0, schedule.noise_bar[0], schedule.noise_bar[9]])
    x, noise = jax.random.normal(KEY, (2, 3, 2))
    assert (schedule.noised(x, noise, -1) == x).all() and (schedule.noise(x, x, -1) == 0).all()
    assert (ddpm_step(schedule, x, noise, -1, noise) == x).all()


@pytest.mark.parametrize("prediction", ["noise", "clean", "velocity"])
def test_whatever_is_predicted_means_the_same_data(prediction):
    schedule = Schedule.cosine(20)
    clean, noise = jax.random.normal(KEY, (2, 5, 3))
    for k in (0, 7, 15, jnp.array([0, 3, 7, 15, 10])):
        x = schedule.noised(clean, noise, k)
        answer = schedule.target(clean, noise, k, prediction)
        np.testing.assert_allclose(schedule.clean(x, answer, k, prediction), clean, atol=2e-5)
        np.testing.assert_allclose(schedule.noise(x, clean, k), noise, atol=2e-5)


@pytest.mark.parametrize("levels, std", [(50, 0.36983), (100, 0.38333)])
def test_ancestral_samples_of_gaussian_data_have_their_known_spread(levels, std):
    schedule = Schedule.cosine(levels)

    @jax.jit
    def step(x, z, k):
        return ddpm_step(schedule, x, schedule.clean(x, exact_noise(schedule, x, k), k), k, z)

    mean, found = moments(step, [(k,) for k in reversed(range(levels))])
    assert found == pytest.approx(std, abs=2e-5) and mean == pytest.approx(MEAN, abs=1e-3)


@pytest.mark.parametrize("levels, std", [(50, 0.33493), (100, 0.33169)])
def test_ten_implicit_steps_of_gaussian_data_have_their_known_spread(levels, std):
    schedule = Schedule.cosine(levels)
    noise = jnp.array([0.0, 1.0])  # without noise in the steps the end is affine in the start
    found = ddim_sample(schedule, lambda x, k: exact_noise(schedule, x, k), noise, 10, clip=None)
    assert float(found[1] - found[0]) == pytest.approx(std, abs=2e-5)
    assert float(found[0]) == pytest.approx(MEAN, abs=2e-3)


def test_many_samples_have_the_moments_of_the_chain():
    schedule = Schedule.cosine(50)
    noise = jax.random.normal(KEY, (20_000,))

    @jax.jit
    def draw(key):
        return ddpm_sample(schedule, lambda x, k: exact_noise(schedule, x, k), noise, key, clip=None)

    found = draw(jax.random.key(1))
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.01) and float(found.std()) == pytest.approx(
        0.36983, abs=0.007
    )


def test_a_step_with_one_level_each_is_the_step_with_one_for_all():
    schedule = Schedule.cosine(12)
    x, clean, noise = jax.random.normal(KEY, (3, 6, 2))
    for k in (0, 5, 11):
        each = ddpm_step(schedule, x, clean, jnp.full(6, k), noise)
        np.testing.assert_array_equal(each, ddpm_step(schedule, x, clean, k, noise))
    mixed = jnp.array([-1, 0, 1, 5, 9, 11])
    found = ddpm_step(schedule, x, clean, mixed, noise)
    for i, k in enumerate(mixed.tolist()):
        np.testing.assert_array_equal(found[i], ddpm_step(schedule, x[i], clean[i], k, noise[i]))
    np.testing.assert_allclose(found[1], clean[1], rtol=1e-6)  # at level 0: the estimate, and no noise


def test_with_the_only_data_known_the_chain_finds_it():
    schedule, data = Schedule.cosine(48), jnp.array([[0.3, -0.7], [0.9, 0.0]])

    def predict(x, k):
        return schedule.noise(x, data, k)

    noise = jax.random.normal(KEY, data.shape)
    np.testing.assert_allclose(ddpm_sample(schedule, predict, noise, KEY), data, atol=5e-6)
    for eta in (0.0, 1.0):
        np.testing.assert_allclose(ddim_sample(schedule, predict, noise, 12, KEY, eta=eta), data, atol=5e-6)


def test_the_implicit_step_with_all_the_noise_is_the_ancestral_one():
    schedule = Schedule.cosine(20)
    x, clean, noise = jax.random.normal(KEY, (3, 4, 2))
    for k in (1, 7, 19):
        found = ddim_step(schedule, x, clean, k, k - 1, eta=1.0, noise=noise)
        np.testing.assert_allclose(found, ddpm_step(schedule, x, clean, k, noise), atol=2e-5)
    np.testing.assert_allclose(ddim_step(schedule, x, clean, 7, -1), clean, rtol=1e-6)


def test_the_grid_begins_at_the_highest_level_and_ends_clean():
    assert ddim_grid(50, 5).tolist() == [49, 37, 24, 12, 0, -1]
    assert ddim_grid(50, 1).tolist() == [49, -1]
    assert ddim_grid(7, 7).tolist() == [6, 5, 4, 3, 2, 1, 0, -1]
    for steps in (0, 51):
        with pytest.raises(ConfigError, match="steps must be 1 to 50"):
            ddim_grid(50, steps)


def test_after_clipping_the_noise_is_recomputed_or_left_as_asked():
    schedule = Schedule.cosine(20)
    x, wild = jnp.array([1.5]), jnp.array([-4.0])
    k, after = 15, 8
    raw = schedule.clean(x, wild, k)
    assert abs(float(raw[0])) > 1
    bound = jnp.clip(raw, -1, 1)
    kept, kept_after = schedule.alpha_bar[k], schedule.alpha_bar[after]
    own = (x - jnp.sqrt(kept) * bound) / jnp.sqrt(1 - kept)
    for eps, given in ((own, None), (wild, wild)):
        known = jnp.sqrt(kept_after) * bound + jnp.sqrt(1 - kept_after) * eps
        np.testing.assert_allclose(ddim_step(schedule, x, bound, k, after, predicted=given), known, rtol=1e-4)
    runs = [ddim_sample(schedule, lambda x, k: wild, x, 3, recompute=flag) for flag in (True, False)]
    assert float(runs[0][0]) == pytest.approx(1.0, abs=1e-5) and float(runs[1][0]) == pytest.approx(1.0, abs=1e-5)
    free = [ddim_sample(schedule, lambda x, k: wild, x, 3, recompute=flag, clip=None) for flag in (True, False)]
    np.testing.assert_allclose(*free, rtol=1e-4)  # nothing is clipped, nothing differs


def test_more_levels_compile_to_the_same_program():
    def size(levels):
        schedule = Schedule.cosine(levels)
        draw = jax.make_jaxpr(lambda x: ddpm_sample(schedule, lambda x, k: 0.1 * x, x, KEY))
        return len(str(draw(jnp.zeros(2)).jaxpr.pretty_print(use_color=False)).splitlines())

    assert size(10) == size(200)


def test_what_makes_no_sense_is_refused():
    schedule, x = Schedule.cosine(5), jnp.zeros((4, 2))
    with pytest.raises(ConfigError, match="1 level or more"):
        Schedule.cosine(0)
    with pytest.raises(ConfigError, match=r"in \(0, 1\)"):
        Schedule.of(np.array([0.5, 1.0]))
    with pytest.raises(ConfigError, match="leading axes"):
        schedule.noised(x, x, jnp.zeros(3, jnp.int32))
    with pytest.raises(ConfigError, match="prediction must be one of noise, clean, velocity"):
        ddpm_sample(schedule, lambda x, k: x, x, KEY, prediction="data")
    with pytest.raises(ConfigError, match="adds noise"):
        ddim_step(schedule, x, x, 3, 2, eta=0.5)
    with pytest.raises(ConfigError, match="need a key"):
        ddim_sample(schedule, lambda x, k: x, x, 2, eta=0.5)
    with pytest.raises(ConfigError, match="eta must be 0 or more"):
        ddim_step(schedule, x, x, 3, 2, eta=-0.5)
