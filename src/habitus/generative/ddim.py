"""Diffusion in fewer steps than it has levels, with as much noise as wanted.

J. Song, C. Meng and S. Ermon, "Denoising Diffusion Implicit Models", ICLR 2021.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.domains import require
from habitus.generative.ddpm import Level, Predict, Schedule, along, check_prediction, clipped


def ddim_grid(levels: int, steps: int) -> Int[np.ndarray, "levels"]:
    """The levels that `steps` steps go through, from `levels - 1` to 0, and then -1, the clean one.

    `round(linspace(levels - 1, 0, steps))`; a single step goes from the highest level to the clean one.

    Raises:
        ConfigError: unless there are 1 to `levels` steps.
    """
    require(1 <= steps <= levels, f"steps must be 1 to {levels}, the levels of the schedule, but is {steps}.")
    return np.append(np.linspace(levels - 1, 0, steps).round(), -1).astype(np.int32)


def ddim_step(
    schedule: Schedule,
    x: Float[Array, "*shape"],
    clean: Float[Array, "*shape"],
    k: Level,
    after: Level,
    *,
    predicted: Float[Array, "*shape"] | None = None,
    eta: float | Float[Array, ""] = 0.0,
    noise: Float[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
    """From level k to any lower level k' (Song et al., eqs. 12 and 16).

    `x' = sqrt(abar') x_0 + sqrt(1 - abar' - sigma^2) eps + sigma z`, with
    `sigma = eta sqrt((1 - abar') / (1 - abar) (1 - abar / abar'))`. With `eta = 1` and `k' = k - 1` it is the
    ancestral step.

    Args:
        clean: the estimate of `x_0`, clipped already if it is to be.
        predicted: the noise `eps`; by default the one between `x` and `clean`, which after clipping is not what a
            network predicted.
        eta: 0 adds no noise, 1 as much as the ancestral step.
        noise: `z`, a standard Gaussian, wanted with `eta` above 0.

    Raises:
        ConfigError: if `eta` is negative, or above 0 without noise.
    """
    require(eta >= 0, f"eta must be 0 or more, but is {eta}.")
    if noise is None:
        require(eta == 0, "a step with eta above 0 adds noise; give noise=..., a standard Gaussian.")
    eps = schedule.noise(x, clean, k) if predicted is None else predicted
    kept, lost, lost_after = schedule.kept(after), schedule.lost(k), schedule.lost(after)
    # the share replaced, 1 - abar / abar', from whichever of the two shares is the smaller, and so the more precise
    replaced = jnp.where(kept < 0.5, 1 - schedule.kept(k) / kept, (lost - lost_after) / kept)
    sigma = eta * jnp.sqrt(lost_after / jnp.where(lost > 0, lost, 1.0) * replaced)
    along_eps = jnp.sqrt(jnp.maximum(lost_after - sigma**2, 0.0))
    moved = along(jnp.sqrt(kept), x) * clean + along(along_eps, x) * eps
    return moved if noise is None else moved + along(sigma, x) * noise


def ddim_sample(
    schedule: Schedule,
    predict: Predict,
    noise: Float[Array, "*shape"],
    steps: int,
    key: PRNGKeyArray | None = None,
    *,
    eta: float = 0.0,
    prediction: str = "noise",
    clip: float | None = 1.0,
    recompute: bool = True,
) -> Float[Array, "*shape"]:
    """One draw in `steps` steps along `ddim_grid`.

    Args:
        predict: `(x, k)`, the network's answer.
        noise: a standard Gaussian, where the chain begins.
        key: of the noise in the steps, wanted with `eta` above 0.
        clip: bound of the estimates of clean data; None for none.
        recompute: take the noise from the clipped estimate; else leave it as the network predicted it.

    Raises:
        ConfigError: if a number is out of its domain, or `eta` is above 0 without a key.
    """
    check_prediction(prediction)
    require(eta == 0 or key is not None, "samples with eta above 0 need a key for their noise; give key=...")
    grid = jnp.asarray(ddim_grid(schedule.levels, steps))

    def step(x: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        k, after = at
        raw = schedule.clean(x, predict(x, k), k, prediction)
        eps = None if recompute else schedule.noise(x, raw, k)
        fresh = None
        if eta != 0 and key is not None:
            fresh = jax.random.normal(jax.random.fold_in(key, k), x.shape, x.dtype)
        return ddim_step(schedule, x, clipped(raw, clip), k, after, predicted=eps, eta=eta, noise=fresh), None

    return jax.lax.scan(step, noise, (grid[:-1], grid[1:]))[0]
