"""Noise levels, from the highest to 0: what a sampler walks down.

T. Karras, M. Aittala, T. Aila and S. Laine, "Elucidating the Design Space of Diffusion-Based Generative
Models", NeurIPS 2022 (EDM).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from habitus.core.domains import require


def karras(steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Float[Array, "levels"]:
    """`steps` levels evenly spaced in `sigma^(1/rho)` from `high` to `low`, then 0 (EDM, eq. 5).

    Raises:
        ConfigError: if a number is out of its domain.
    """
    require(rho > 0, f"rho must be above 0, but is {rho}.")
    _check(steps, low, high)
    return _ended(np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho)


def exponential(steps: int, low: float = 0.002, high: float = 80.0) -> Float[Array, "levels"]:
    """`steps` levels evenly spaced in `ln sigma` from `high` to `low`, then 0.

    Raises:
        ConfigError: if a number is out of its domain.
    """
    _check(steps, low, high)
    return _ended(np.geomspace(high, low, steps))


def _check(steps: int, low: float, high: float) -> None:
    require(steps >= 2, f"a schedule needs 2 steps or more, but has {steps}.")
    require(0 < low < high, f"noise levels must be above 0 and fall, but go from {high} to {low}.")


def _ended(levels: np.ndarray) -> Float[Array, "levels"]:
    """In double precision until here, so that the ends are exact."""
    return jnp.asarray(np.append(levels, 0.0), jnp.float32)
