"""Grids of noise levels, from the highest to the lowest and then 0: what a sampler in sigma walks down.

T. Karras, M. Aittala, T. Aila and S. Laine, "Elucidating the Design Space of Diffusion-Based Generative
Models", NeurIPS 2022 (EDM). A grid of one step goes from the highest level to 0 at once. EDM's Table 1 also
states the grids of the works before it: Y. Song et al., ICLR 2021 (`vp` and `ve`) and A. Nichol and P. Dhariwal,
ICML 2021 (`iddpm`). For discrete levels see `ddpm.Schedule`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from habitus.core.domains import require

IDDPM_LEVELS = 1000


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


def linear(steps: int, low: float = 0.002, high: float = 80.0) -> Float[Array, "levels"]:
    """`steps` levels evenly spaced from `high` to `low`, then 0.

    Raises:
        ConfigError: if a number is out of its domain.
    """
    _check(steps, low, high)
    return _ended(np.linspace(high, low, steps))


def variance_preserving(
    steps: int, beta_range: float = 19.9, beta_low: float = 0.1, end: float = 1e-3
) -> Float[Array, "levels"]:
    """`sigma = sqrt(exp(beta_range u^2 / 2 + beta_low u) - 1)` at `steps` times u from 1 to `end`, then 0.

    (EDM, Table 1, column VP.) Its ends follow from the three numbers.

    Raises:
        ConfigError: if a number is out of its domain.
    """
    require(steps >= 1, f"a grid of noise levels needs 1 step or more, but has {steps}.")
    require(beta_range > 0 and beta_low > 0, "beta_range and beta_low must be above 0.")
    require(0 < end < 1, f"end is the last time, in (0, 1), but is {end}.")
    u = np.linspace(1, end, steps)
    return _ended(np.sqrt(np.expm1(beta_range / 2 * u**2 + beta_low * u)))


def variance_exploding(steps: int, low: float = 0.002, high: float = 80.0) -> Float[Array, "levels"]:
    """`sigma_i^2 = high^2 (low^2 / high^2)^(i / (steps - 1))`, then 0 (EDM, Table 1, column VE): `exponential`.

    Raises:
        ConfigError: if a number is out of its domain.
    """
    return exponential(steps, low, high)


def iddpm(steps: int, low: float = 0.002, high: float = 80.0) -> Float[Array, "levels"]:
    """`steps` of the levels of the improved DDPM's cosine schedule that lie in `[low, high]`, then 0.

    `u_1000 = 0`, `u_{j-1} = sqrt((u_j^2 + 1) / max(ab(j - 1) / ab(j), 0.001) - 1)` with
    `ab(j) = sin^2(pi j / (2 * 1000 * 1.008))`; of those in range, `steps` evenly chosen ones (EDM, Table 1, column
    iDDPM). The first and last are the levels in range nearest to `high` and `low`.

    Raises:
        ConfigError: if a number is out of its domain, or fewer than `steps` levels are in range.
    """
    _check(steps, low, high)
    bar = np.sin(0.5 * np.pi * np.arange(IDDPM_LEVELS + 1) / (IDDPM_LEVELS * 1.008)) ** 2
    u = np.zeros(IDDPM_LEVELS + 1)
    for j in range(IDDPM_LEVELS, 0, -1):
        u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(bar[j - 1] / bar[j], 1e-3) - 1)
    inside = u[(u >= low) & (u <= high)]
    require(len(inside) >= steps, f"only {len(inside)} of iDDPM's levels are in [{low}, {high}]; {steps} are wanted.")
    return _ended(inside[np.linspace(0, len(inside) - 1, steps).round().astype(int)])


GRIDS: dict[str, Callable[[int, float, float], Float[Array, "levels"]]] = {
    "karras": karras,
    "exponential": exponential,
    "linear": linear,
    "ve": variance_exploding,
    "vp": lambda steps, low, high: variance_preserving(steps),
    "iddpm": iddpm,
}


def sigma_grid(name: str, steps: int, low: float, high: float) -> Float[Array, "levels"]:
    """A grid by its name, one of `GRIDS`; `vp` has its own ends.

    Raises:
        ConfigError: for another name, or if a number is out of its domain.
    """
    require(name in GRIDS, f"a grid of noise levels is one of {', '.join(GRIDS)}, but not {name!r}.")
    return GRIDS[name](steps, low, high)


def _check(steps: int, low: float, high: float) -> None:
    require(steps >= 1, f"a grid of noise levels needs 1 step or more, but has {steps}.")
    require(0 < low < high, f"noise levels must be above 0 and fall, but go from {high} to {low}.")


def _ended(levels: np.ndarray) -> Float[Array, "levels"]:
    """In double precision until here, so that the ends are exact."""
    return jnp.asarray(np.append(levels, 0.0), jnp.float32)
