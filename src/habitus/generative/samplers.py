"""From noise to data: the flow walked down a grid of noise levels, by any of the `solvers`, as one loop.

T. Karras, M. Aittala, T. Aila and S. Laine, "Elucidating the Design Space of Diffusion-Based Generative
Models", NeurIPS 2022, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.domains import require
from habitus.generative.solvers import Denoise, Heun, Interval, Solver

Guidance = Callable[[Array, Float[Array, ""], Int[Array, ""]], Array]
HEUN = Heun()


class Churn(eqx.Module):
    """Fresh noise in each step, so that errors of earlier ones are forgotten (EDM, algorithm 2)."""

    amount: float = 80.0  # S_churn, shared among all steps
    low: float = 0.05  # S_tmin, S_tmax: the levels at which noise is added
    high: float = 50.0
    noise: float = 1.003  # S_noise

    def gamma(self, sigma: Float[Array, ""], steps: int) -> Float[Array, ""]:
        """By which share the level `sigma` is raised before a step: `min(S_churn / n, sqrt(2) - 1)` in range."""
        inside = (sigma >= self.low) & (sigma <= self.high)
        return jnp.where(inside, jnp.minimum(self.amount / steps, 2**0.5 - 1), 0.0)


def sample(
    denoise: Denoise,
    noise: Float[Array, "*shape"],
    sigmas: Float[Array, "levels"],
    key: PRNGKeyArray,
    *,
    solver: Solver = HEUN,
    churn: Churn | None = None,
    guidance: Guidance | None = None,
) -> Float[Array, "*shape"]:
    """One draw. What is compiled is one step, however many there are.

    Args:
        denoise: `D(x; sigma)`, the mean of the clean data given noisy ones.
        noise: a standard Gaussian.
        sigmas: noise levels, falling; usually down to 0.
        key: of the churn, and of solvers with noise.
        solver: how each step is taken.
        churn: noise that is added before each step; for solvers of one step.
        guidance: `(x, sigma, i)`, what to add to `x` before step `i`, at level `sigma`.

    Raises:
        ConfigError: if there is no step, or churn with a multistep solver.
    """
    steps = len(sigmas) - 1
    require(steps >= 1, f"a grid needs two levels or more to step between, but has {len(sigmas)}.")
    require(
        churn is None or not solver.multistep,
        f"churn raises the level before a step, which {type(solver).__name__} remembers; use a solver of one step.",
    )
    sigmas = sigmas.astype(noise.dtype)

    def step(carry: tuple[Array, Any], at: tuple[Array, Array, Array]) -> tuple[tuple[Array, Any], None]:
        (x, memory), (i, sigma, after) = carry, at
        fresh = jax.random.fold_in(key, i)
        if guidance is not None:
            x = x + guidance(x, sigma, i)
        if churn is not None:
            raised = sigma * (1 + churn.gamma(sigma, steps))
            more = churn.noise * jnp.sqrt(jnp.maximum(raised**2 - sigma**2, 0.0))
            x, sigma = x + more * jax.random.normal(fresh, x.shape, x.dtype), raised
        return solver.step(denoise, x, Interval(i, sigma, after), memory, jax.random.fold_in(fresh, 1)), None

    levels = (jnp.arange(steps), sigmas[:-1], sigmas[1:])
    start = sigmas[0] * noise
    return jax.lax.scan(step, (start, solver.init(start)), levels)[0][0]
