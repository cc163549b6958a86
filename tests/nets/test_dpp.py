"""Expected size of a determinantal point process: closed forms, and its gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.nets.dpp import expected_size, inverse, similarity

KEY = jax.random.key(0)
N = 8
size = jax.jit(expected_size)


@pytest.mark.parametrize("quality", [0.0, 0.5, 1.0, 2.0])
def test_points_that_are_equal_or_far_apart_count_as_known(quality):
    q = jnp.full(N, quality)
    same, far = jnp.ones((N, 3)), 1e3 * jnp.arange(N, dtype=jnp.float32)[:, None] * jnp.ones(3)
    q2 = quality**2
    np.testing.assert_allclose(size(same, q), N * q2 / (1 + N * q2), atol=1e-5)
    np.testing.assert_allclose(size(far, q), N * q2 / (1 + q2), atol=1e-5)


def test_points_of_quality_0_count_for_nothing():
    points = jax.random.normal(KEY, (N, 3))
    q = jnp.ones(N).at[3:].set(0.0)
    np.testing.assert_allclose(size(points, q), expected_size(points[:3], q[:3]), rtol=1e-5)


def test_it_is_the_sum_of_shares_of_the_eigenvalues_and_grows_with_distance():
    points, q = jax.random.normal(KEY, (N, 3)), jnp.linspace(0.3, 2.0, N)
    kernel = np.asarray(q[:, None] * similarity(points, 0.7) * q, np.float64)
    values = np.linalg.eigvalsh(kernel)
    np.testing.assert_allclose(expected_size(points, q, 0.7), (values / (1 + values)).sum(), rtol=1e-5)
    sizes = [float(size(spread * points, q)) for spread in (0.1, 0.3, 1.0, 3.0)]
    assert sizes == sorted(sizes)


def test_the_inverse_is_that_of_numpy_for_single_matrices_and_batches():
    root = jax.random.normal(KEY, (5, N, N))
    matrices = root @ root.swapaxes(1, 2) + jnp.eye(N)
    np.testing.assert_allclose(jax.vmap(inverse)(matrices), np.linalg.inv(matrices), rtol=2e-3, atol=2e-5)


def test_the_gradient_is_that_of_finite_differences_and_finite_where_points_coincide():
    points, q = jax.random.normal(KEY, (4, 2)), jnp.array([0.5, 1.0, 1.5, 0.8])
    slopes = jax.grad(expected_size, argnums=(0, 1))(points, q)
    for argument, slope in enumerate(slopes):
        for index in np.ndindex(slope.shape):

            def moved(h, argument=argument, index=index):
                given = [points, q]
                given[argument] = given[argument].at[index].add(h)
                return float(size(*given))

            assert (moved(1e-2) - moved(-1e-2)) / 2e-2 == pytest.approx(float(slope[index]), abs=2e-3)
    assert np.isfinite(jax.grad(expected_size)(jnp.ones((4, 2)), q)).all()
