"""How one step from a noise level to the next is taken: the solvers of the probability flow, and those with noise.

With `D(x; s)` the mean of the clean data given noisy ones, the flow is `dx/ds = (x - D(x; s)) / s` (EDM, eq. 4 with
`sigma(t) = t`). The order of a solver is that of its error in the size of the steps. Solvers of second order take a
plain Euler step where the next level is 0, as the flow's slope is not known there.

T. Karras, M. Aittala, T. Aila and S. Laine, "Elucidating the Design Space of Diffusion-Based Generative Models",
NeurIPS 2022. J. Song, C. Meng and S. Ermon, "Denoising Diffusion Implicit Models", ICLR 2021. C. Lu et al.,
"DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps", NeurIPS 2022, and
"DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

Denoise = Callable[[Array, Float[Array, ""]], Array]


class Interval(eqx.Module):
    """Between two noise levels.

    Attributes:
        i: which of the steps it is, from 0.
        sigma, after: the level before and after it; `after < sigma`.
    """

    i: Int[Array, ""]
    sigma: Float[Array, ""]
    after: Float[Array, ""]


class Solver(eqx.Module):
    """How a step is taken.

    Class attributes:
        multistep: whether it uses what earlier steps found, so that levels must not be raised between steps.
    """

    multistep: ClassVar[bool] = False

    def init(self, x: Float[Array, "*shape"]) -> Any:
        """What it remembers before the first step."""
        return ()

    @abc.abstractmethod
    def step(self, denoise: Denoise, x: Array, at: Interval, memory: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        """`x` at level `at.after`, and what to remember."""


def slope(denoise: Denoise, x: Float[Array, "*shape"], sigma: Float[Array, ""]) -> Float[Array, "*shape"]:
    """`(x - D(x; sigma)) / sigma`."""
    return (x - denoise(x, sigma)) / sigma


def ancestral(
    sigma: Float[Array, ""], after: Float[Array, ""], eta: float = 1.0
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`down, up`: how far to go without noise, and how much to add, to be at level `after`; `down^2 + up^2 = after^2`.

    `up = min(after, eta sqrt(after^2 (sigma^2 - after^2) / sigma^2))`; with `eta = 1` that is the ancestral step of
    DDPM, with 0 there is no noise.
    """
    up = jnp.minimum(after, eta * after * jnp.sqrt(jnp.maximum(sigma**2 - after**2, 0.0)) / sigma)
    return jnp.sqrt(after**2 - up**2), up


def towards(x: Array, clean: Array, sigma: Array, after: Array) -> Array:
    """`(s' / s) x + (1 - s' / s) D`: the exact step if `D` stays as it is (DPM-Solver-1)."""
    return after / sigma * x + (1 - after / sigma) * clean


def _second(after: Array, otherwise: Array, step: Callable[[], Array]) -> Array:
    """`step()` unless the next level is 0; a branch, so that the last evaluation is not made for nothing."""
    return jax.lax.cond(after > 0, step, lambda: otherwise)


def _positive(after: Array, sigma: Array) -> Array:
    """`after`, and some other level where that is 0: where both branches are computed, both must be finite."""
    return jnp.where(after > 0, after, sigma)


def _noisy(x: Array, up: Array, key: PRNGKeyArray) -> Array:
    return x + up * jax.random.normal(key, x.shape, x.dtype)


class Euler(Solver):
    """`x + (s' - s) d(x, s)`: order 1. With `eta` above 0 down to the lower level of `ancestral`, then noise."""

    eta: float = eqx.field(default=0.0, static=True)

    def step(self, denoise: Denoise, x: Array, at: Interval, memory: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        d = slope(denoise, x, at.sigma)
        if self.eta == 0:
            return x + (at.after - at.sigma) * d, memory
        down, up = ancestral(at.sigma, at.after, self.eta)
        return _noisy(x + (down - at.sigma) * d, up, key), memory


class Heun(Solver):
    """`x + (s' - s) (d(x, s) + d(x_euler, s')) / 2`: order 2, two evaluations a step (EDM, algorithm 1)."""

    def step(self, denoise: Denoise, x: Array, at: Interval, memory: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        first = slope(denoise, x, at.sigma)
        euler = x + (at.after - at.sigma) * first

        def averaged() -> Array:
            second = slope(denoise, euler, _positive(at.after, at.sigma))
            return x + (at.after - at.sigma) * (first + second) / 2

        return _second(at.after, euler, averaged), memory


class DDIM(Solver):
    """`(s' / s) x + (1 - s' / s) D(x, s)`: order 1, and in these coordinates Euler's method (DPM-Solver-1)."""

    def step(self, denoise: Denoise, x: Array, at: Interval, memory: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        return towards(x, denoise(x, at.sigma), at.sigma, at.after), memory


class DPM2(Solver):
    """Euler to `sqrt(s s')`, then the whole step with the slope found there: order 2 (DPM-Solver-2).

    With `eta` above 0 for the lower level of `ancestral` in place of s', then noise.
    """

    eta: float = eqx.field(default=0.0, static=True)

    def step(self, denoise: Denoise, x: Array, at: Interval, memory: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        down, up = ancestral(at.sigma, at.after, self.eta)
        first = slope(denoise, x, at.sigma)

        def whole() -> Array:
            middle = jnp.sqrt(at.sigma * _positive(down, at.sigma))
            half = x + (middle - at.sigma) * first
            return x + (down - at.sigma) * slope(denoise, half, middle)

        moved = _second(down, x + (down - at.sigma) * first, whole)
        return moved if self.eta == 0 else _noisy(moved, up, key), memory


class DPMPlusPlus2S(Solver):
    """DPM-Solver++(2S): `y = (m / s) x + (1 - m / s) D(x, s)`, `m = sqrt(s s')`, then the whole step with `D(y, m)`.

    Order 2, two evaluations a step. With `eta` above 0 for the lower level of `ancestral` in place of s', then noise.
    """

    eta: float = eqx.field(default=0.0, static=True)

    def step(self, denoise: Denoise, x: Array, at: Interval, memory: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        down, up = ancestral(at.sigma, at.after, self.eta)
        clean = denoise(x, at.sigma)

        def whole() -> Array:
            middle = jnp.sqrt(at.sigma * _positive(down, at.sigma))
            half = towards(x, clean, at.sigma, middle)
            return towards(x, denoise(half, middle), at.sigma, down)

        moved = _second(down, towards(x, clean, at.sigma, down), whole)
        return moved if self.eta == 0 else _noisy(moved, up, key), memory


class DPMPlusPlusSDE(Solver):
    """DPM-Solver++ of the reverse SDE, with the middle at `m = sqrt(s s')`: two evaluations a step.

    To m by the ancestral split of `s -> m`, noise and all; then from s by the split of `s -> s'` with the clean data
    estimated at m.
    """

    eta: float = eqx.field(default=1.0, static=True)

    def step(self, denoise: Denoise, x: Array, at: Interval, memory: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        half_key, whole_key = jax.random.split(key)
        clean = denoise(x, at.sigma)

        def whole() -> Array:
            middle = jnp.sqrt(at.sigma * _positive(at.after, at.sigma))
            down, up = ancestral(at.sigma, middle, self.eta)
            half = _noisy(towards(x, clean, at.sigma, down), up, half_key)
            again = denoise(half, middle)
            down, up = ancestral(at.sigma, at.after, self.eta)
            return _noisy(towards(x, again, at.sigma, down), up, whole_key)

        return _second(at.after, towards(x, clean, at.sigma, at.after), whole), memory
