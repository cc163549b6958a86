"""How slowly an average of parameters follows them; `core.trees.polyak` does the averaging."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def power_decay(step: Int[Array, ""], power: float = 0.75, highest: float = 0.9999) -> Float[Array, ""]:
    """`1 - (1 + n)^-power`, at most `highest`: the decay of diffusion policies (Chi et al. 2023)."""
    return jnp.minimum(1 - (1.0 + step) ** -power, highest)


def ramped_decay(step: Int[Array, ""], highest: float | Array = 0.995) -> Float[Array, ""]:
    """`(1 + n) / (10 + n)`, at most `highest`: the decay of BESO (Reuss et al. 2023)."""
    return jnp.minimum((1.0 + step) / (10.0 + step), highest)
