"""Solvers that use what earlier steps found, at one evaluation a step; and all solvers by name.

C. Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022. L. Liu et al.,
"Pseudo Numerical Methods for Diffusion Models on Manifolds", ICLR 2022, for linear multistep methods.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.domains import require
from habitus.generative.solvers import (
    DDIM,
    DPM2,
    Denoise,
    DPMPlusPlus2S,
    DPMPlusPlusSDE,
    Euler,
    Heun,
    Interval,
    Solver,
    slope,
    towards,
)

GAUSS = 0.5 / 3**0.5  # nodes of the two-point rule lie so far from the middle of [0, 1]


class DPMPlusPlus2M(Solver):
    """DPM-Solver++(2M): the step of `DDIM` with `D + (D - D_before) / (2 r)` in place of D: order 2, one evaluation.

    `r` is the last step over this one, in `-ln s`. Plain at the first step, and where the next level is 0.
    """

    multistep = True

    def init(self, x: Float[Array, "*shape"]) -> tuple[Array, Array]:
        return jnp.zeros_like(x), jnp.ones((), x.dtype)

    def step(
        self, denoise: Denoise, x: Array, at: Interval, memory: tuple[Array, Array], key: PRNGKeyArray
    ) -> tuple[Array, tuple[Array, Array]]:
        before, sigma_before = memory
        clean = denoise(x, at.sigma)
        plain = (at.i == 0) | (at.after == 0)
        now = jnp.log(at.sigma / jnp.where(plain, at.sigma, at.after))
        last = jnp.where(plain, 1.0, jnp.log(sigma_before / at.sigma))
        extrapolated = clean + now / (2 * last) * (clean - before)
        return towards(x, extrapolated, at.sigma, at.after), (clean, at.sigma)


class LMS(Solver):
    """Linear multistep: the slopes of the last steps as a polynomial in sigma, integrated exactly.

    `x + sum_j d_j int_s^s' L_j`, with `L_j` the Lagrange basis through the last levels: `order` of them, at first as
    many as there are. One evaluation a step.
    """

    multistep = True
    order: int = eqx.field(default=4, static=True)

    def __check_init__(self) -> None:
        require(1 <= self.order <= 4, f"the order of a linear multistep solver must be 1 to 4, but is {self.order}.")

    def init(self, x: Float[Array, "*shape"]) -> tuple[Array, Array]:
        return jnp.zeros((self.order, *x.shape), x.dtype), jnp.zeros(self.order, x.dtype)

    def step(
        self, denoise: Denoise, x: Array, at: Interval, memory: tuple[Array, Array], key: PRNGKeyArray
    ) -> tuple[Array, tuple[Array, Array]]:
        slopes = jnp.concatenate([slope(denoise, x, at.sigma)[None], memory[0][:-1]])
        levels = jnp.concatenate([at.sigma[None], memory[1][:-1]])
        weights = lagrange_integrals(levels, jnp.minimum(at.i + 1, self.order), at.sigma, at.after)
        return x + jnp.tensordot(weights, slopes, 1), (slopes, levels)


def lagrange_integrals(
    nodes: Float[Array, "nodes"], count: Int[Array, ""], low: Float[Array, ""], high: Float[Array, ""]
) -> Float[Array, "nodes"]:
    """`int_low^high prod_{k != j} (x - x_k) / (x_j - x_k) dx` for each of the first `count` of up to four nodes.

    Two points of Gauss's rule are exact for polynomials of degree 3, and so for four nodes. The others weigh 0.
    """
    rows = jnp.arange(len(nodes))
    used = (rows < count) & (rows != rows[:, None])  # [j, k]
    between = jnp.where(used, nodes[:, None] - nodes, 1.0)
    at = low + (high - low) * (0.5 + jnp.asarray([-GAUSS, GAUSS], nodes.dtype))
    factors = jnp.where(used, (at[:, None, None] - nodes) / between, 1.0)
    return jnp.where(rows < count, (high - low) * factors.prod(-1).mean(0), 0.0)


SOLVERS: dict[str, Solver] = {
    "euler": Euler(),
    "euler-ancestral": Euler(1.0),
    "heun": Heun(),
    "ddim": DDIM(),
    "dpm-2": DPM2(),
    "dpm-2-ancestral": DPM2(1.0),
    "dpm++2s": DPMPlusPlus2S(),
    "dpm++2s-ancestral": DPMPlusPlus2S(1.0),
    "dpm++sde": DPMPlusPlusSDE(),
    "dpm++2m": DPMPlusPlus2M(),
    "lms": LMS(),
}


def solver(name: str) -> Solver:
    """A solver by its name, one of `SOLVERS`.

    Raises:
        ConfigError: for another name.
    """
    require(name in SOLVERS, f"a solver is one of {', '.join(SOLVERS)}, but not {name!r}.")
    return SOLVERS[name]
