"""Generative parts against closed forms: of Gaussian data the denoiser, the flow and the loss are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.generative.denoisers import Conv, ResidualMLP, UNet
from habitus.generative.edm import Denoiser, denoising_loss
from habitus.generative.ema import power_decay, ramped_decay
from habitus.generative.samplers import Churn, sample
from habitus.generative.schedules import exponential, karras
from habitus.generative.training import train

KEY = jax.random.key(0)


def exact(x, sigma):
    """The denoiser of data from N(0, 1)."""
    return x / (1 + sigma**2)


def test_the_schedules_begin_and_end_where_they_should_and_fall():
    for made in (karras(32), exponential(32)):
        assert made[0] == 80 and made[-2] == np.float32(0.002) and made[-1] == 0 and (np.diff(made) < 0).all()
    np.testing.assert_allclose(np.diff(np.asarray(karras(9, 0.1, 10.0))[:-1] ** (1 / 7), 2), 0, atol=1e-6)
    for bad in (dict(steps=1), dict(steps=8, low=0.0), dict(steps=8, low=90.0)):
        with pytest.raises(ConfigError):
            karras(**bad)


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


def test_euler_is_of_first_and_heun_of_second_order():
    x = jnp.asarray([1.0, -2.0])
    known = x * 80 * ((1 + 0.1**2) / (1 + 80**2)) ** 0.5
    for second_order, order in ((False, 1), (True, 2)):
        counts = [16, 32, 64]
        errors = [
            np.abs(sample(exact, x, karras(n + 1, 0.1)[:-1], KEY, second_order=second_order) - known).max()
            for n in counts
        ]
        slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
        assert slope == pytest.approx(-order, abs=0.2)


def test_samples_have_the_spread_of_the_data_with_and_without_churn():
    noise = jax.random.normal(KEY, (20_000,))
    for churn in (None, Churn(10.0)):
        found = sample(exact, noise, karras(32), jax.random.key(1), churn=churn)
        assert float(found.std()) == pytest.approx(1.0, abs=0.06) and float(jnp.abs(found.mean())) < 0.03


def test_no_step_makes_a_value_that_is_not_finite():
    with jax.debug_nans(True):
        sample(exact, jnp.ones(2), karras(4), KEY, churn=Churn()).block_until_ready()


def test_guidance_of_nothing_changes_no_bit():
    noise = jax.random.normal(KEY, (4, 3))
    plain = jax.jit(lambda: sample(exact, noise, karras(8), KEY, churn=Churn(10.0)))()
    zero = jax.jit(lambda w: sample(exact, noise, karras(8), KEY, churn=Churn(10.0), guidance=lambda x, s, i: w * x))
    assert (zero(0.0) == plain).all() and not (zero(0.1) == plain).all()


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
    assert power_decay(jnp.asarray(10**8)) == np.float32(0.9999) and ramped_decay(jnp.asarray(10**8)) == np.float32(
        0.995
    )
