"""Numbers as vectors of waves, so that a network can tell near ones apart."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def sinusoidal(x: Float[Array, ""], size: int, base: float = 10_000.0) -> Float[Array, "size"]:
    """`sin(x / base^(2i/size)), cos(x / base^(2i/size))` for i below size / 2, in turn (Vaswani et al. 2017)."""
    angle = x / base ** (2 * jnp.arange(size // 2) / size)
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=1).ravel()
