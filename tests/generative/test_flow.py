"""Flows and shortcuts against the exact velocity of Gaussian data, and of a linear field."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from habitus.core.errors import ConfigError
from habitus.generative.flow import (
    data_of,
    euler_calls,
    flow_loss,
    flow_sample,
    flow_walk,
    interpolate,
    logit_normal_time,
    noise_of,
    noisy_time,
    opposite,
    uniform_time,
)
from habitus.generative.shortcut import draw_step, self_consistency_target, shortcut_loss, shortcut_sample

KEY = jax.random.key(0)
MEAN, STD = 0.3, 0.5


def exact(x, t):
    """`E[a - e | x_t]` for data from N(MEAN, STD^2)."""
    variance = (1 - t) ** 2 + t**2 * STD**2
    return MEAN + (t * STD**2 - (1 - t)) / variance * (x - t * MEAN)


def test_the_way_goes_from_noise_to_data_and_back():
    noise, data = jax.random.normal(KEY, (2, 4, 3))
    assert (interpolate(noise, data, 0.0) == noise).all() and (interpolate(noise, data, 1.0) == data).all()
    for t in (0.3, jnp.array([0.0, 0.3, 0.9, 1.0])):
        x = interpolate(noise, data, t)
        np.testing.assert_allclose(data_of(x, data - noise, t), data, atol=1e-6)
        np.testing.assert_allclose(noise_of(x, data - noise, t), noise, atol=1e-6)


def test_eulers_method_on_the_flow_is_of_first_order():
    with jax.enable_x64(True):
        noise = jnp.asarray([1.0, -2.0], jnp.float64)
        counts = [32, 64, 128]
        errors = [float(jnp.abs(flow_sample(exact, noise, n) - (MEAN + STD * noise)).max()) for n in counts]
    assert np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(-1, abs=0.1)


def test_samples_have_the_moments_of_the_data():
    found = flow_sample(exact, jax.random.normal(KEY, (20_000,)), 100)
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.015) and float(found.std()) == pytest.approx(STD, abs=0.015)


def test_the_loss_is_least_for_the_exact_velocity():
    noise, data = jax.random.normal(KEY, (2, 20_000))
    data, t = MEAN + STD * data, 0.4

    def loss(shift):
        return float(flow_loss(lambda x, t: exact(x, t) + shift, noise, data, t))

    known = 1 + STD**2 - (t * STD**2 - (1 - t)) ** 2 / ((1 - t) ** 2 + t**2 * STD**2)  # what x_t does not tell
    assert loss(0.0) == pytest.approx(known, rel=0.03)
    assert loss(0.1) == pytest.approx(loss(0.0) + 0.01, abs=4e-3) and loss(0.1) > loss(0.0)


def test_time_counted_the_other_way_gives_the_same_samples():
    def theirs(x, tau):  # noise at 1, and e - a
        return -exact(x, 1 - tau)

    noise = jax.random.normal(KEY, (5,))
    np.testing.assert_allclose(flow_sample(opposite(theirs), noise, 10), flow_sample(exact, noise, 10), atol=1e-5)
    back = opposite(opposite(exact))
    np.testing.assert_allclose(back(noise, jnp.asarray(0.3)), exact(noise, 0.3), atol=1e-6)
    x, x_after = noise, []
    for i in range(10):  # their own loop, from 1 down to 0
        x = x - theirs(x, 1 - i / 10) / 10
        x_after.append(x)
    np.testing.assert_allclose(flow_sample(opposite(theirs), noise, 10), x_after[-1], atol=1e-5)


def test_times_have_their_laws():
    keys = jax.random.split(KEY, 10_000)
    laws = {
        uniform_time: scipy.stats.uniform().cdf,
        noisy_time: lambda t: 1 - scipy.stats.beta(1.5, 1).cdf(1 - t / 0.999),
        logit_normal_time: lambda t: scipy.stats.norm().cdf(np.log(t / (1 - t))),
    }
    for draw, law in laws.items():
        assert scipy.stats.kstest(np.asarray(jax.vmap(draw)(keys), float), law).pvalue > 1e-3
    assert float(jax.vmap(noisy_time)(keys).mean()) == pytest.approx(0.999 * 0.4, abs=0.01)


# --- shortcuts


def linear_shortcut(x, t, d):
    """The exact mean velocity over a step of the field `dx/dt = x`: `x (e^d - 1) / d`, and `x` for d = 0."""
    safe = jnp.where(d > 0, d, 1.0)
    return x * jnp.where(d > 0, jnp.expm1(safe) / safe, 1.0)


def test_the_target_on_a_linear_field_is_exact():
    x = jnp.array([1.0, -0.5])
    for d in (1.0, 0.5, 0.125):
        target = self_consistency_target(linear_shortcut, x, jnp.asarray(0.25), jnp.asarray(d))
        np.testing.assert_allclose(target, linear_shortcut(x, 0.25, jnp.asarray(d)), rtol=1e-5)
    for steps in (1, 2, 8):
        np.testing.assert_allclose(shortcut_sample(linear_shortcut, x, steps), x * np.e, rtol=1e-5)


def test_the_target_is_two_half_steps_and_is_asked_for_as_they_are_trained():
    seen = []

    def network(x, t, d):
        seen.append((float(t), float(d)))
        return x + t

    x = jnp.array([2.0])
    found = self_consistency_target(network, x, jnp.asarray(0.5), jnp.asarray(0.25))
    first = 2.0 + 0.5
    assert float(found[0]) == pytest.approx((first + (2.0 + 0.125 * first + 0.625)) / 2)
    self_consistency_target(network, x, jnp.asarray(0.5), jnp.asarray(0.25), smallest=0.25)
    assert seen == [(0.5, 0.125), (0.625, 0.125), (0.5, 0.0), (0.625, 0.0)]
    gradient = jax.grad(lambda w: self_consistency_target(lambda x, t, d: w * x, x, jnp.ones(()), jnp.ones(())).sum())
    assert float(gradient(1.0)) == 0


def test_steps_are_powers_of_two_on_their_own_grids():
    t, d = jax.vmap(lambda k: draw_step(k, 4))(jax.random.split(KEY, 4_000))
    sizes, counts = np.unique(np.asarray(d), return_counts=True)
    assert sizes.tolist() == [0.125, 0.25, 0.5, 1.0] and scipy.stats.chisquare(counts).pvalue > 1e-3
    assert (np.asarray(t / d) % 1 == 0).all() and (t + d <= 1).all() and (t[d == 1] == 0).all()
    assert scipy.stats.chisquare(np.unique(np.asarray(t[d == 0.125]), return_counts=True)[1]).pvalue > 1e-3


def test_the_loss_is_that_of_both_kinds_of_rows():
    noise, data = jax.random.normal(KEY, (2, 8, 3))
    condition = jnp.arange(8.0)
    told = []

    def network(x, t, d, c):
        jax.debug.callback(lambda d, c: told.append((float(d), float(c))), d, c)
        return linear_shortcut(x, t, d)

    whole = shortcut_loss(network, noise, data, KEY, condition, share=1.0)
    assert float(whole) == pytest.approx(0.0, abs=2e-2)  # but for half-steps of the least, asked for with d = 0
    told.clear()
    shortcut_loss(network, noise, data, KEY, condition, share=0.25)
    jax.effects_barrier()
    assert {c for d, c in told if d > 0} == {0.0, 1.0}
    assert {c for d, c in told if d == 0} >= {2.0, 3.0, 4.0, 5.0, 6.0, 7.0}
    none = shortcut_loss(network, noise, data, KEY, condition, share=0.0)
    times = jax.vmap(uniform_time)(jax.random.split(KEY, 8))
    known = jnp.mean(((1 - times[:, None]) * noise + times[:, None] * data - (data - noise)) ** 2)
    np.testing.assert_allclose(none, known, rtol=1e-5)


def test_what_makes_no_sense_is_refused():
    x = jnp.ones((2, 3))
    for call in (lambda: flow_sample(exact, x, 0), lambda: shortcut_sample(linear_shortcut, x, 0)):
        with pytest.raises(ConfigError, match="1 step or more"):
            call()
    with pytest.raises(ConfigError, match="share"):
        shortcut_loss(linear_shortcut, x, x, KEY, share=1.5)
    with pytest.raises(ConfigError, match="halvings"):
        draw_step(KEY, 0)
    with pytest.raises(ConfigError, match="leading axes"):
        interpolate(x, x, jnp.zeros(3))


def test_a_walk_over_the_whole_way_is_a_draw_and_a_part_of_it_stops_where_it_says():
    noise = jax.random.normal(KEY, (3, 2))
    whole = flow_sample(exact, noise, 5)
    np.testing.assert_allclose(flow_walk(exact, noise, 0.0, 0.2, 5), whole, atol=1e-6)
    np.testing.assert_allclose(flow_walk(exact, noise, 0.0, 0.2, jnp.asarray(5), most=8), whole, atol=1e-6)
    half = flow_walk(exact, noise, 0.0, 0.2, jnp.asarray(2), most=5)
    np.testing.assert_allclose(flow_walk(exact, half, 0.4, 0.2, 3), whole, atol=1e-6)
    ones = lambda x, t, *more: jnp.ones_like(x)  # noqa: E731
    np.testing.assert_allclose(flow_walk(ones, noise, 0.0, 0.2, 5, gain=0.5), noise + 0.5, atol=1e-6)


def test_steps_of_a_part_of_the_way():
    assert [euler_calls(left, kept, 4) for left, kept in ((1.0, 0.0), (0.6, 0.0), (1.0, 0.5))] == [4, 2, 2]
    with pytest.raises(ConfigError, match="not one of 4 steps fits"):
        euler_calls(0.1, 0.0, 4)
    with pytest.raises(ConfigError, match="1 step or more"):
        euler_calls(1.0, 0.0, 0)
