"""How slowly an average of parameters follows them; `core.trees.polyak` does the averaging."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from habitus.core.trees import polyak

M = TypeVar("M")
Decay = Callable[[Int[Array, ""]], Float[Array, ""]]


def power_decay(step: Int[Array, ""], power: float = 0.75, highest: float = 0.9999) -> Float[Array, ""]:
    """`1 - (1 + n)^-power`, at most `highest`: the decay of diffusion policies (Chi et al. 2023)."""
    return jnp.minimum(1 - (1.0 + step) ** -power, highest)


def ramped_decay(step: Int[Array, ""], highest: float | Array = 0.995) -> Float[Array, ""]:
    """`(1 + n) / (10 + n)`, at most `highest`: the decay of BESO (Reuss et al. 2023)."""
    return jnp.minimum((1.0 + step) / (10.0 + step), highest)


def follow(average: M, model: M, step: Int[Array, ""], decay: Decay = power_decay) -> M:
    """The average after update `n`, counted from 0: `decay(n) average + (1 - decay(n)) model`.

    Both rules let go of the first parameters: `power_decay(0)` is 0, so the first average is the model itself.
    """
    return polyak(average, model, 1 - decay(step))
