"""Batch normalisation: by the batch in training, by running statistics afterwards."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.nets.batchnorm import BatchNorm, BatchNormMLP, Moments

X = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (64, 4))


def test_a_batch_comes_out_standardised_whatever_the_running_statistics():
    norm = BatchNorm.start(4)
    for moments in (Moments.start(4), Moments(jnp.full(4, 9.0), jnp.full(4, 7.0))):
        out, _ = norm.train(X, moments)
        np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(out.std(0), 1, atol=1e-4)


def test_running_statistics_approach_those_of_the_batches_and_carry_no_gradient():
    norm, moments = BatchNorm.start(4), Moments.start(4)
    for _ in range(100):
        moments = norm.train(X, moments)[1]
    np.testing.assert_allclose(moments.mean, X.mean(0), rtol=1e-3)
    np.testing.assert_allclose(moments.var, X.var(0, ddof=1), rtol=1e-3)
    np.testing.assert_allclose(norm(X, moments).mean(0), 0, atol=1e-2)
    assert not jax.grad(lambda x: norm.train(x, moments)[1].var.sum())(X).any()


def test_in_use_the_answer_to_one_does_not_depend_on_the_others():
    net = BatchNormMLP(4, (8, 8), 2, jax.random.key(1))
    moments = net.train(X, net.start())[1]
    alone, together = net(X[0], moments), jax.vmap(lambda x: net(x, moments))(X)
    np.testing.assert_allclose(alone, together[0], rtol=1e-5)
    trained = net.train(X, moments)[0][0], net.train(X[:32], moments)[0][0]
    assert not np.allclose(*trained)


def test_a_layer_without_units_is_refused():
    with pytest.raises(ConfigError, match="1 or more"):
        BatchNormMLP(4, (8, 0), 1, jax.random.key(0))
