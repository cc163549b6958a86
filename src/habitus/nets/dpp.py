"""Diversity as the expected size of a determinantal point process.

A. Kulesza and B. Taskar, "Determinantal Point Processes for Machine Learning", Foundations and Trends in Machine
Learning 2012, eq. 34; as an objective in Y. Yuan and K. Kitani, "Diverse Trajectory Forecasting with Determinantal
Point Processes", ICLR 2020.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def similarity(points: Float[Array, "n columns"], scale: float | Array = 1.0) -> Float[Array, "n n"]:
    """`S_ij = exp(-scale |x_i - x_j|)`; the gradient is finite where points coincide."""
    square = ((points[:, None] - points[None]) ** 2).sum(-1)
    apart = square > 0
    return jnp.exp(-scale * jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0))


def expected_size(
    points: Float[Array, "n columns"], quality: Float[Array, "n"], scale: float | Array = 1.0
) -> Float[Array, ""]:
    """`tr(I - (L + I)^-1)`, `L_ij = q_i S_ij q_j`: how many different good points there are, softly.

    n equal points of quality 1 count as `n / (n + 1)`, n points far apart as `n / 2`, points of quality 0 not at all.
    """
    kernel = quality[:, None] * similarity(points, scale) * quality[None]
    return len(points) - inverse_trace(kernel + jnp.eye(len(points)))


@jax.custom_vjp
def inverse_trace(matrix: Float[Array, "n n"]) -> Float[Array, ""]:
    """`tr(M^-1)` of a symmetric positive definite matrix. Its gradient is `-M^-2`."""
    return jnp.trace(inverse(matrix))


def _forward(matrix: Array) -> tuple[Array, Array]:
    found = inverse(matrix)
    return jnp.trace(found), found


inverse_trace.defvjp(_forward, lambda found, gradient: (-gradient * found @ found,))


def inverse(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Of a symmetric positive definite matrix, by n sweeps: no pivots are needed, and no call of LAPACK.

    (See `habitus.nets.mlp.orthogonal` for what such calls can do under `vmap`.)
    """

    def sweep(i: Array, m: Array) -> Array:
        row, column, pivot = m[i], m[:, i], m[i, i]
        rest = m - column[:, None] * row[None] / pivot
        return rest.at[i].set(row / pivot).at[:, i].set(-column / pivot).at[i, i].set(1 / pivot)

    return jax.lax.fori_loop(0, len(matrix), sweep, matrix)
