"""From noise to data: the probability flow walked down a schedule of noise levels.

T. Karras, M. Aittala, T. Aila and S. Laine, "Elucidating the Design Space of Diffusion-Based Generative
Models", NeurIPS 2022, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

Denoise = Callable[[Array, Float[Array, ""]], Array]
Guidance = Callable[[Array, Float[Array, ""], Int[Array, ""]], Array]


class Churn(eqx.Module):
    """Fresh noise in each step, so that errors of earlier ones are forgotten (EDM, algorithm 2)."""

    amount: float = 80.0  # S_churn, shared among all steps
    low: float = 0.05  # S_tmin, S_tmax: the levels at which noise is added
    high: float = 50.0
    noise: float = 1.003  # S_noise

    def gamma(self, sigma: Float[Array, ""], steps: int) -> Float[Array, ""]:
        """By which share the level `sigma` is raised before a step."""
        inside = (sigma >= self.low) & (sigma <= self.high)
        return jnp.where(inside, jnp.minimum(self.amount / steps, 2**0.5 - 1), 0.0)


def sample(
    denoise: Denoise,
    noise: Float[Array, "*shape"],
    sigmas: Float[Array, "levels"],
    key: PRNGKeyArray,
    *,
    second_order: bool = True,
    churn: Churn | None = None,
    guidance: Guidance | None = None,
) -> Float[Array, "*shape"]:
    """One draw, by Heun's method or Euler's.

    Args:
        denoise: `D(x; sigma)`, the mean of the clean data given noisy ones.
        noise: a standard Gaussian.
        sigmas: noise levels, falling; usually down to 0.
        key: of the churn.
        second_order: Heun's method, with two evaluations a step; Euler's where the next level is 0.
        guidance: `(x, sigma, i)`, what to add to `x` before step `i`, at level `sigma`.
    """
    steps = len(sigmas) - 1

    def slope(x: Array, sigma: Array) -> Array:
        return (x - denoise(x, sigma)) / sigma

    def step(x: Array, at: tuple[Array, Array, Array]) -> tuple[Array, None]:
        i, sigma, after = at
        if guidance is not None:
            x = x + guidance(x, sigma, i)
        if churn is not None:
            raised = sigma * (1 + churn.gamma(sigma, steps))
            more = churn.noise * jnp.sqrt(jnp.maximum(raised**2 - sigma**2, 0.0))
            x, sigma = x + more * jax.random.normal(jax.random.fold_in(key, i), x.shape), raised
        first = slope(x, sigma)
        euler = x + (after - sigma) * first
        if not second_order:
            return euler, None
        second = slope(euler, jnp.where(after > 0, after, 1.0))
        return jnp.where(after > 0, x + (after - sigma) * (first + second) / 2, euler), None

    levels = (jnp.arange(steps), sigmas[:-1], sigmas[1:])
    return jax.lax.scan(step, sigmas[0] * noise, levels)[0]
