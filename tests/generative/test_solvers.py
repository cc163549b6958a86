"""Solvers against the exact flow of Gaussian data: how fast they converge, and what those with noise leave."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.generative.multistep import LMS, SOLVERS, DPMPlusPlus2M, lagrange_integrals, solver
from habitus.generative.samplers import Churn, sample
from habitus.generative.schedules import exponential, karras
from habitus.generative.solvers import DDIM, DPM2, DPMPlusPlus2S, DPMPlusPlusSDE, Euler, Heun, Interval, ancestral

KEY = jax.random.key(0)
MEAN, STD = 0.3, 0.5


def exact(x, sigma):
    """The mean of clean data from N(MEAN, STD^2), given noisy ones."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def error(solver, steps):
    """Of the flow from level 1 to 0.02, before the last jump to 0, in double precision."""
    with jax.enable_x64(True):
        noise = jnp.asarray([1.0, -2.0], jnp.float64)
        sigmas = jnp.asarray(np.geomspace(1, 0.02, steps + 1), jnp.float64)
        found = jax.jit(lambda: sample(exact, noise, sigmas, KEY, solver=solver))()
        known = MEAN + (noise - MEAN) * np.sqrt((STD**2 + 0.02**2) / (STD**2 + 1))
        return float(jnp.abs(found - known).max())


@pytest.mark.parametrize(
    "name, order",
    [("euler", 1), ("ddim", 1), ("heun", 2), ("dpm-2", 2), ("dpm++2s", 2), ("dpm++2m", 2), ("lms", 2)],
)
def test_the_order_of_convergence(name, order):
    """The first step of LMS is one of Euler, whose error of second order stays, whatever the order of the others."""
    counts = [40, 80, 160]
    slope = np.polyfit(np.log(counts), np.log([error(solver(name), n) for n in counts]), 1)[0]
    if name == "lms":
        assert slope < -1.9
    else:
        assert slope == pytest.approx(-order, abs=0.15)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_linear_multistep_solver_is_exact_for_slopes_that_are_polynomials(order):
    """In the last step, where all its slopes are there."""
    with jax.enable_x64(True):
        nodes = jnp.asarray([1.0, 1.4, 2.1, 3.3][:order], jnp.float64)
        low, high = jnp.asarray(1.0, jnp.float64), jnp.asarray(0.7, jnp.float64)
        for power in range(order):
            weights = lagrange_integrals(nodes, jnp.asarray(order), low, high)
            known = (0.7 ** (power + 1) - 1) / (power + 1)
            np.testing.assert_allclose(weights @ nodes**power, known, rtol=1e-12)
    few = lagrange_integrals(jnp.asarray([1.0, 1.4, 0.0, 0.0]), jnp.asarray(2), jnp.asarray(1.0), jnp.asarray(0.7))
    assert (few[2:] == 0).all() and float(few.sum()) == pytest.approx(-0.3, abs=1e-6)


def test_the_implicit_solver_is_eulers_method():
    noise = jax.random.normal(KEY, (5,))
    found = [sample(exact, noise, karras(12, 0.02, 5.0), KEY, solver=s) for s in (Euler(), DDIM(), LMS(1))]
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    np.testing.assert_allclose(found[0], found[2], atol=1e-6)


def test_with_data_known_for_certain_the_extrapolating_solver_is_the_implicit_one():
    noise = jax.random.normal(KEY, (5,))
    one, other = (
        sample(lambda x, s: 0 * x + 0.7, noise, exponential(6, 0.02, 1.0)[:-1], KEY, solver=s)
        for s in (DPMPlusPlus2M(), DDIM())
    )
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_last_step_to_zero_answers_the_clean_estimate(name):
    x, memory = jnp.asarray([0.4, -1.0]), solver(name).init(jnp.zeros(2))
    at = Interval(jnp.asarray(0), jnp.asarray(0.3), jnp.asarray(0.0))
    found, _ = jax.jit(lambda: solver(name).step(exact, x, at, memory, KEY))()
    np.testing.assert_allclose(found, exact(x, 0.3), atol=1e-6)
    with jax.debug_nans(True):
        sample(exact, x, exponential(4, 0.02, 1.0), KEY, solver=solver(name)).block_until_ready()
    batched = jax.vmap(lambda s: sample(exact, x, jnp.array([1.0, 0.3, 0.0]) * s, KEY, solver=solver(name)))
    assert jnp.isfinite(batched(jnp.array([1.0, 2.0]))).all()  # levels of their own make both branches run


@pytest.mark.parametrize("solver", [Euler(1.0), DPM2(1.0), DPMPlusPlus2S(1.0), DPMPlusPlusSDE()])
def test_solvers_with_noise_leave_the_data_distribution(solver):
    sigmas, n = exponential(100, 0.02, 10.0), 20_000
    noise = jax.random.normal(KEY, (n,))
    found = jax.jit(lambda: sample(exact, noise, sigmas, jax.random.key(1), solver=solver))()
    assert float(found.mean()) == pytest.approx(MEAN, abs=4 * STD / n**0.5 + 0.005)
    assert float(found.std()) == pytest.approx(STD, abs=0.02)


def test_euler_ancestral_has_the_moments_of_its_recursion():
    """Each step is affine, `x - MEAN` times `1 + (down - s) s / (STD^2 + s^2)`, so that its moments are known."""
    sigmas, var = np.asarray(exponential(8, 0.1, 2.0), float), 4.0
    for s, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        up = min(after, np.sqrt(after**2 * (s**2 - after**2) / s**2))
        down = np.sqrt(after**2 - up**2)
        var = (1 + (down - s) * s / (STD**2 + s**2)) ** 2 * var + up**2
    noise = jax.random.normal(KEY, (40_000,))
    found = jax.jit(lambda: sample(exact, noise, jnp.asarray(sigmas), jax.random.key(1), solver=Euler(1.0)))()
    assert float(found.std()) == pytest.approx(var**0.5, rel=0.015) and abs(var**0.5 - STD) > 0.03


def test_what_is_lost_going_down_is_added_as_noise():
    sigma, after = jnp.asarray(2.0), jnp.asarray(0.5)
    down, up = ancestral(sigma, after)
    np.testing.assert_allclose([up, down], [0.5 * np.sqrt(4 - 0.25) / 2, 0.25 / 2], rtol=1e-5)
    assert [float(x) for x in ancestral(sigma, after, 0.0)] == [0.5, 0.0]
    assert [float(x) for x in ancestral(sigma, jnp.asarray(0.0))] == [0.0, 0.0]
    plain, noisy = (
        sample(exact, jnp.ones(3), exponential(5), KEY, solver=s) for s in (DPMPlusPlus2S(), DPMPlusPlus2S(1.0))
    )
    assert not np.allclose(plain, noisy)


def test_a_second_order_solver_asks_no_more_often_than_it_must():
    calls = []

    def counting(x, sigma):
        jax.debug.callback(lambda: calls.append(1))
        return exact(x, sigma)

    for name, count in (("heun", 7), ("dpm-2", 7), ("dpm++2s", 7), ("dpm++sde", 7), ("dpm++2m", 4), ("lms", 4)):
        calls.clear()
        jax.jit(lambda name=name: sample(counting, jnp.ones(2), exponential(4), KEY, solver=solver(name)))()
        jax.effects_barrier()
        assert len(calls) == count, name


@pytest.mark.parametrize("name", SOLVERS)
def test_more_steps_compile_to_the_same_program(name):
    def size(steps):
        made = jax.make_jaxpr(lambda x: sample(exact, x, exponential(steps), KEY, solver=solver(name)))(jnp.ones(2))
        return len(str(made).splitlines())

    assert size(5) == size(100)


def test_what_makes_no_sense_is_refused():
    x, sigmas = jnp.ones(2), exponential(4)
    with pytest.raises(ConfigError, match="DPMPlusPlus2M remembers"):
        sample(exact, x, sigmas, KEY, solver=DPMPlusPlus2M(), churn=Churn())
    with pytest.raises(ConfigError, match="two levels or more"):
        sample(exact, x, sigmas[:1], KEY, solver=Heun())
    with pytest.raises(ConfigError, match="order of a linear multistep solver must be 1 to 4"):
        LMS(5)
    with pytest.raises(ConfigError, match="a solver is one of euler"):
        solver("eular")
