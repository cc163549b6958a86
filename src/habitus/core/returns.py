"""Value targets: the one place where bootstrapping treats termination and truncation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def td_target(
    reward: Float[Array, "*batch"],
    terminated: Bool[Array, "*batch"],
    next_value: Float[Array, "*batch"],
    discount: float | Array,
) -> Float[Array, "*batch"]:
    """`r + discount * V(s')`, where nothing follows a terminated step; a truncated one bootstraps."""
    return reward + discount * jnp.where(terminated, 0.0, next_value)


def gae(
    reward: Float[Array, "time *batch"],
    value: Float[Array, "time *batch"],
    next_value: Float[Array, "time *batch"],
    terminated: Bool[Array, "time *batch"],
    truncated: Bool[Array, "time *batch"],
    discount: float | Array,
    gae_lambda: float | Array,
) -> tuple[Float[Array, "time *batch"], Float[Array, "time *batch"]]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), and the TD(lambda) returns.

    Args:
        next_value: values of the true successors, so that a truncated episode bootstraps from the
            state in which it was cut and not from the first state of the next episode.

    Returns:
        advantages, and returns = advantages + value.
    """
    delta = td_target(reward, terminated, next_value, discount) - value

    def backward(carry: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        error, done = inputs
        advantage = error + discount * gae_lambda * jnp.where(done, 0.0, carry)
        return advantage, advantage

    _, advantage = jax.lax.scan(
        backward, jnp.zeros_like(value[0]), (delta, terminated | truncated), reverse=True, unroll=8
    )
    return advantage, advantage + value


def standardise(x: Float[Array, "*shape"], eps: float = 1e-8) -> Float[Array, "*shape"]:
    """Zero mean and unit standard deviation over the whole array."""
    return (x - x.mean()) / (x.std() + eps)
