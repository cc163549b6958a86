"""Generative parts against closed forms: of Gaussian data the denoiser, the flow and the loss are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from habitus.core.errors import ConfigError
from habitus.generative.denoisers import Conv, ResidualMLP, UNet
from habitus.generative.edm import Denoiser, denoising_loss, log_logistic
from habitus.generative.ema import follow, power_decay, ramped_decay
from habitus.generative.samplers import Churn, sample
from habitus.generative.schedules import (
    GRIDS,
    exponential,
    iddpm,
    karras,
    linear,
    sigma_grid,
    variance_exploding,
    variance_preserving,
)
from habitus.generative.training import train

KEY = jax.random.key(0)


def exact(x, sigma):
    """The denoiser of data from N(0, 1)."""
    return x / (1 + sigma**2)


def test_the_schedules_begin_and_end_where_they_should_and_fall():
    for made in (karras(32), exponential(32), linear(32), variance_exploding(32)):
        assert made[0] == 80 and made[-2] == np.float32(0.002) and made[-1] == 0 and (np.diff(made) < 0).all()
    np.testing.assert_allclose(np.diff(np.asarray(karras(9, 0.1, 10.0))[:-1] ** (1 / 7), 2), 0, atol=1e-6)
    for bad in (dict(steps=0), dict(steps=8, low=0.0), dict(steps=8, low=90.0)):
        with pytest.raises(ConfigError):
            karras(**bad)


def test_grids_against_their_formulas():
    np.testing.assert_allclose(exponential(3, 0.05, 1.0), [1, 0.2236068, 0.05, 0], rtol=1e-6)
    np.testing.assert_allclose(linear(3, 0.05, 1.0), [1, 0.525, 0.05, 0], rtol=1e-6)
    assert karras(1, 0.05, 1.0).tolist() == [1, 0]
    found = variance_preserving(5)
    np.testing.assert_allclose(found[0], np.sqrt(np.exp(10.05) - 1), rtol=1e-6)
    np.testing.assert_allclose(found[2], np.sqrt(np.exp(9.95 * 0.5005**2 + 0.05005) - 1), rtol=1e-5)
    assert found[-1] == 0 and (np.diff(found) < 0).all()
    few, all_of_them = np.asarray(iddpm(10, 0.01, 50.0)), np.asarray(iddpm(500, 0.01, 50.0))
    assert (
        (np.diff(few) < 0).all()
        and 40 < few[0] <= 50
        and 0.01 <= few[-2] < 0.02
        and np.isin(few, iddpm(900)).sum() < 10
    )
    # where nothing is clipped, u is that of a cosine: u_j^2 + 1 = ab(1000) / ab(j)
    bar = np.sin(0.5 * np.pi * np.arange(1001) / 1008) ** 2
    ratio = (all_of_them[:-1, None] ** 2 + 1) * bar / bar[-1]
    assert (np.abs(ratio - 1).min(1) < 1e-3).all()
    with pytest.raises(ConfigError, match="only"):
        iddpm(900, 0.1, 1.0)
    for name in GRIDS:
        assert sigma_grid(name, 8, 0.02, 1.0).shape == (9,)
    with pytest.raises(ConfigError, match="karras"):
        sigma_grid("caras", 8, 0.02, 1.0)


def test_at_the_spread_of_the_data_half_of_the_input_is_kept_and_without_noise_all():
    denoiser = Denoiser(lambda x, level: x + level, 0.5)
    skip, out, into = denoiser.scales(jnp.asarray(0.5))
    np.testing.assert_allclose([skip, out, into], [0.5, 0.5 / 2**0.5, 2**0.5], rtol=1e-6)
    x = jnp.arange(3.0)
    assert (denoiser(x, jnp.asarray(0.0)) == x).all()


def test_the_loss_is_the_weighted_error_of_the_denoised():
    denoiser = Denoiser(lambda x, level: jnp.sin(x) + level, 0.7)
    x, noise = jax.random.normal(KEY, (2, 5, 3))
    for sigma in (0.3, 1.0, 4.0):
        error = denoiser(x + sigma * noise, jnp.asarray(sigma)) - x
        known = ((sigma**2 + 0.49) / (sigma * 0.7) ** 2 * error**2).mean()
        np.testing.assert_allclose(denoiser.loss(x, jnp.asarray(sigma), noise), known, rtol=1e-4)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 5.0])
def test_targets_have_unit_variance_at_every_level(sigma):
    x, noise = 0.5 * jax.random.normal(KEY, (20_000,)), jax.random.normal(jax.random.key(1), (20_000,))
    zero = Denoiser(lambda x, level: 0 * x, 0.5)
    assert float(zero.loss(x, jnp.asarray(sigma), noise)) == pytest.approx(1.0, abs=0.03)


def test_log_logistic_levels_have_their_law():
    keys = jax.random.split(KEY, 20_000)
    free = jax.vmap(lambda k: log_logistic(k, jnp.log(0.5), 0.5, 1e-6, 1e6))(keys)
    assert float(jnp.median(free)) == pytest.approx(0.5, rel=0.02)
    found = np.asarray(jax.vmap(lambda k: log_logistic(k, jnp.log(0.5), 0.5, 0.05, 1.0))(keys))
    assert found.min() >= 0.05 and found.max() <= 1.0
    law = scipy.stats.logistic(np.log(0.5), 0.5)
    low, high = law.cdf(np.log([0.05, 1.0]))
    assert scipy.stats.kstest(np.log(found), lambda s: (law.cdf(s) - low) / (high - low)).pvalue > 1e-3
    with pytest.raises(ConfigError, match="in order"):
        log_logistic(KEY, 0.0, 0.5, 1.0, 0.5)


def test_samples_have_the_spread_of_the_data_with_and_without_churn():
    noise = jax.random.normal(KEY, (20_000,))
    for churn in (None, Churn(10.0)):
        found = sample(exact, noise, karras(32), jax.random.key(1), churn=churn)
        assert float(found.std()) == pytest.approx(1.0, abs=0.06) and float(jnp.abs(found.mean())) < 0.03


def test_no_step_makes_a_value_that_is_not_finite():
    with jax.debug_nans(True):
        sample(exact, jnp.ones(2), karras(4), KEY, churn=Churn()).block_until_ready()


def test_guidance_of_nothing_changes_nothing():
    noise = jax.random.normal(KEY, (4, 3))
    plain = jax.jit(lambda: sample(exact, noise, karras(8), KEY, churn=Churn(10.0)))()
    zero = jax.jit(lambda w: sample(exact, noise, karras(8), KEY, churn=Churn(10.0), guidance=lambda x, s, i: w * x))
    np.testing.assert_allclose(zero(0.0), plain, atol=1e-6)  # two programs, so the last bit may differ
    assert float(jnp.abs(zero(0.1) - plain).min()) > 1e-3


def test_a_convolution_is_that_of_jax():
    conv = Conv(3, 5, 3, KEY)
    x = jax.random.normal(KEY, (7, 3))
    kernel = conv.dense.weight.reshape(3, 3, 5)
    theirs = jax.lax.conv_general_dilated(x[None], kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))[0]
    np.testing.assert_allclose(conv(x), theirs + conv.dense.bias, atol=1e-5)


@pytest.mark.parametrize("length", [4, 7])
def test_the_u_net_takes_any_length(length):
    net = UNet(5, 8, 3, KEY)
    x = jax.random.normal(KEY, (length, 5))
    assert net(x, jnp.asarray(0.3)).shape == x.shape
    assert not np.allclose(net(x, jnp.asarray(0.3)), net(x, jnp.asarray(-1.0)))


def test_widths_that_cannot_be_grouped_are_refused():
    with pytest.raises(ConfigError, match="multiple of 8"):
        UNet(5, 12, 1, KEY)
    with pytest.raises(ConfigError, match="multiple of 8"):
        ResidualMLP((2,), 12, 1, KEY)


def test_training_finds_the_data():
    data = 0.5 + 0.2 * jax.random.normal(KEY, (512, 1))
    model, losses = train(
        Denoiser(ResidualMLP((1,), 32, 1, KEY)), denoising_loss, data, KEY, steps=1_500, batch_size=128,
        learning_rate=3e-3,
    )  # fmt: skip
    assert len(losses) == 20 and losses[-1] < 0.7 * losses[0]
    noise = jax.random.normal(jax.random.key(2), (2_000, 1))
    found = jax.jit(jax.vmap(lambda n: sample(model, n, karras(16), KEY)))(noise)
    assert float(found.mean()) == pytest.approx(0.5, abs=0.06) and float(found.std()) == pytest.approx(0.2, abs=0.06)


def test_the_decays_of_averages():
    np.testing.assert_allclose(power_decay(jnp.asarray(15)), 1 - 16**-0.75)
    np.testing.assert_allclose(ramped_decay(jnp.asarray(1)), 2 / 11, rtol=1e-6)
    average = jnp.asarray(5.0)  # of 1, 0, 0: 1 (1 - 2^-0.75 is kept) (1 - 3^-0.75 is kept)
    for n, value in enumerate((1.0, 0.0, 0.0)):
        average = follow(average, jnp.asarray(value), jnp.asarray(n))
    np.testing.assert_allclose(average, (1 - 2**-0.75) * (1 - 3**-0.75), rtol=1e-5)
    average = jnp.asarray(5.0)
    for n in range(3):
        average = follow(average, jnp.asarray(0.0), jnp.asarray(n), ramped_decay)
    np.testing.assert_allclose(average, 5 * 0.1 * 2 / 11 * 3 / 12, rtol=1e-5)
    assert power_decay(jnp.asarray(10**8)) == np.float32(0.9999) and ramped_decay(jnp.asarray(10**8)) == np.float32(
        0.995
    )
