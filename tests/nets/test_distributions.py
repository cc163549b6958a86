"""Distributions against SciPy and quadrature."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

from habitus.nets.distributions import Categorical, Mixture, MultiCategorical, Normal, TanhNormal

MEAN, STD = np.array([0.3, -1.2, 2.0]), np.array([0.5, 1.7, 0.1])
LOGITS = np.array([0.2, -1.0, 3.0, 0.0])
PROBS = np.exp(LOGITS) / np.exp(LOGITS).sum()


def floats(x):
    return jnp.asarray(x, jnp.float32)


def normal(mean=MEAN, std=STD):
    return Normal(floats(mean), jnp.log(floats(std)))


def draws(distribution, n=20_000):
    return np.asarray(jax.vmap(distribution.sample)(jax.random.split(jax.random.key(0), n)))


def test_normal_against_scipy():
    action = np.array([0.0, 1.0, 2.05])
    np.testing.assert_allclose(normal().log_prob(floats(action)), st.norm(MEAN, STD).logpdf(action).sum(), rtol=1e-5)
    np.testing.assert_allclose(normal().entropy(), st.norm(MEAN, STD).entropy().sum(), rtol=1e-5)
    np.testing.assert_array_equal(normal().mode(), floats(MEAN))


def test_normal_samples():
    sample = draws(normal())
    for i in range(3):
        assert st.kstest(sample[:, i], st.norm(MEAN[i], STD[i]).cdf).pvalue > 1e-3


def test_the_direction_of_the_gaussian_kl():
    narrow, wide = normal([0.0], [1.0]), normal([1.0], [2.0])
    np.testing.assert_allclose(narrow.kl(wide), 0.4431, atol=1e-4)  # log 2 + (1 + 1) / 8 - 1/2
    np.testing.assert_allclose(wide.kl(narrow), 1.3069, atol=1e-4)  # -log 2 + (4 + 1) / 2 - 1/2
    np.testing.assert_allclose(narrow.kl(narrow), 0.0, atol=1e-7)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (normal(), normal(MEAN + 0.1, STD * 1.3)),
        (TanhNormal(normal([0.2, -0.4], [0.4, 0.6])), TanhNormal(normal([0.0, 0.1], [0.5, 0.9]))),
        (Categorical(floats(LOGITS)), Categorical(floats(LOGITS[::-1]))),
        (
            MultiCategorical(floats([*LOGITS, 0.5, -0.5]), (4, 2)),
            MultiCategorical(floats([*LOGITS[::-1], 0.0, 0.3]), (4, 2)),
        ),
    ],
    ids=lambda d: type(d).__name__,
)
def test_closed_form_kls_are_means_of_log_ratios(p, q):
    sample = draws(p)
    ratio = np.asarray(jax.vmap(p.log_prob)(sample) - jax.vmap(q.log_prob)(sample))
    assert abs(ratio.mean() - float(p.kl(q))) < 4 * ratio.std() / len(ratio) ** 0.5


def test_a_squashed_gaussian_is_a_density():
    for mean, std in ((0.0, 1.0), (0.7, 0.3), (-1.5, 1.2)):
        squashed = TanhNormal(normal([mean], [std]))
        pre = jnp.linspace(-12, 12, 20_001)
        action = jnp.tanh(pre)
        density = jnp.exp(jax.vmap(squashed.log_prob_pre)(pre[:, None]))
        # the integral over actions, with da = (1 - a^2) du
        np.testing.assert_allclose(np.trapezoid(density * (1 - action**2), pre), 1.0, atol=1e-3)
        inside = jnp.linspace(-0.99, 0.99, 199)
        both = (
            jax.vmap(squashed.log_prob)(inside[:, None]),
            jax.vmap(squashed.log_prob_pre)(jnp.arctanh(inside)[:, None]),
        )
        np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-4)


def test_a_squashed_gaussian_at_and_beyond_its_bounds():
    squashed = TanhNormal(normal([3.0, -3.0], [1.0, 1.0]))
    for action in ([1.0, -1.0], [-1.0, 1.0]):
        value, gradient = jax.value_and_grad(squashed.log_prob)(floats(action))
        assert np.isfinite(value) and np.isfinite(gradient).all()
    far = floats([40.0, -40.0])  # tanh is exactly 1 here
    assert np.isfinite(squashed.log_prob_pre(far)) and np.isfinite(jax.grad(squashed.log_prob_pre)(far)).all()
    np.testing.assert_allclose(squashed.mode(), np.tanh([3.0, -3.0]), rtol=1e-6)


def test_sampling_and_density_at_once():
    squashed = TanhNormal(normal([0.1, -0.2], [0.5, 0.7]))
    key = jax.random.key(3)
    action, log_prob = squashed.sample_and_log_prob(key)
    np.testing.assert_array_equal(action, squashed.sample(key))
    np.testing.assert_allclose(log_prob, squashed.log_prob(action), rtol=1e-4)


def test_categorical_against_scipy():
    ours = Categorical(floats(LOGITS))
    np.testing.assert_allclose(ours.probs, PROBS, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(ours.log_prob)(jnp.arange(4)), np.log(PROBS), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.entropy(), st.entropy(PROBS), rtol=1e-5)
    assert int(ours.mode()) == 2
    counts = np.bincount(draws(ours), minlength=4)
    assert st.chisquare(counts, PROBS * counts.sum()).pvalue > 1e-3


def test_the_gradient_of_a_categorical_log_probability():
    gradient = jax.grad(lambda logits: Categorical(logits).log_prob(jnp.int32(1)))(floats(LOGITS))
    np.testing.assert_allclose(gradient, np.eye(4)[1] - PROBS, atol=1e-6)


def test_independent_categoricals():
    ours = MultiCategorical(floats([*LOGITS, 1.0, 0.0]), (4, 2))
    second = np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum()
    np.testing.assert_allclose(ours.log_prob(jnp.array([2, 1])), np.log(PROBS[2] * second[1]), rtol=1e-5)
    np.testing.assert_allclose(ours.entropy(), st.entropy(PROBS) + st.entropy(second), rtol=1e-5)
    np.testing.assert_array_equal(ours.mode(), [2, 0])
    sample = draws(ours)
    np.testing.assert_allclose(np.bincount(sample[:, 1]) / len(sample), second, atol=0.02)
    assert abs(np.corrcoef(sample.T)[0, 1]) < 0.03


def test_a_mixture_against_scipy():
    weights, means, stds = (
        np.array([0.25, 0.75]),
        np.array([[-2.0, 0.0], [3.0, 1.0]]),
        np.array([[0.5, 1.0], [1.0, 2.0]]),
    )
    ours = Mixture(jnp.log(floats(weights)) + 5.0, Normal(floats(means), jnp.log(floats(stds))))
    for action in (np.array([0.0, 0.0]), np.array([-2.0, 0.3])):
        density = (weights * st.norm(means, stds).pdf(action).prod(1)).sum()
        np.testing.assert_allclose(ours.log_prob(floats(action)), np.log(density), rtol=1e-4)
    sample = draws(ours)
    np.testing.assert_allclose(sample.mean(0), weights @ means, atol=0.06)
    np.testing.assert_allclose((sample[:, 0] < 0.5).mean(), 0.25, atol=0.02)
    np.testing.assert_array_equal(ours.mode(), means[0])  # the lighter component is the denser


@pytest.mark.parametrize("distribution", [TanhNormal(normal()), Mixture(floats([0.0]), normal([[0.0]], [[1.0]]))])
def test_entropies_without_a_closed_form_say_so(distribution):
    with pytest.raises(TypeError, match="no closed-form entropy; average -log_prob"):
        distribution.entropy()
