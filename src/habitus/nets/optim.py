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


def warmed_adamw(
    learning_rate: float | Array, updates: int, weight_decay: float | Array, max_grad_norm: float | Array
) -> optax.GradientTransformation:
    """AdamW whose learning rate rises linearly over the first `updates`, on gradients of limited norm."""

    def schedule(count: Any) -> Any:
        return learning_rate * jnp.minimum(1.0, (count + 1) / max(updates, 1))

    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adamw(schedule, weight_decay=weight_decay))


def cosine_adamw(
    learning_rate: float | Array, planned: float | Array, weight_decay: float | Array
) -> optax.GradientTransformation:
    """AdamW whose learning rate falls to 0 as half a cosine over the `planned` updates, never if they are infinite."""

    def schedule(count: Any) -> Any:
        return learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(count / planned, 1.0)))

    return optax.adamw(schedule, weight_decay=weight_decay)
