"""Optimisers beyond those of optax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array


def clip_each(norm: float | Array) -> optax.GradientTransformation:
    """Scales the gradient of each stacked network down to a global norm."""

    def update(grads: optax.Updates, state: optax.EmptyState, params: object = None) -> tuple[Any, optax.EmptyState]:
        squares = [jnp.square(g).sum(tuple(range(1, g.ndim))) for g in jax.tree.leaves(grads)]
        scale = jnp.minimum(1.0, norm / (jnp.sqrt(sum(squares, jnp.zeros(()))) + 1e-6))
        return jax.tree.map(lambda g: g * scale.reshape(-1, *(1,) * (g.ndim - 1)), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
