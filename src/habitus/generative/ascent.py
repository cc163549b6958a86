"""Guidance of a diffusion by a score: each mean is moved up its gradient before noise is added.

Z. Zhong et al., "Guided Conditional Diffusion for Controllable Traffic Simulation", ICRA 2023, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from habitus.core.domains import require
from habitus.generative.ddpm import Schedule


class Ascent(eqx.Module):
    """A `guide` of `ddpm_sample`: a few steps of Adam up a score, the change cut to plus and minus `beta_k`.

    Attributes:
        score: of one example; what is better scores higher.
        schedule: of the diffusion.
        steps: of Adam.
        learning_rate: of Adam.
        last: guides at this many of the lowest levels only; None for all.

    Raises:
        ConfigError: if a number is out of its domain.
    """

    score: Callable[[Array], Float[Array, ""]]
    schedule: Schedule
    steps: int = eqx.field(default=3, static=True)
    learning_rate: float | Float[Array, ""] = 0.01
    last: int | None = eqx.field(default=None, static=True)

    def __check_init__(self) -> None:
        require(self.steps >= 1, f"steps must be 1 or more, but is {self.steps}.")
        require(self.learning_rate > 0, f"learning_rate must be above 0, but is {self.learning_rate}.")
        require(self.last is None or self.last >= 1, f"last must be 1 or more, or None, but is {self.last}.")

    def __call__(self, mean: Float[Array, "*shape"], k: Int[Array, ""]) -> Float[Array, "*shape"]:
        adam = optax.adam(self.learning_rate)

        def climb(now: tuple[Array, optax.OptState], _: None) -> tuple[tuple[Array, optax.OptState], None]:
            x, state = now
            change, state = adam.update(-jax.grad(self.score)(x), state)
            return (x + change, state), None

        (moved, _), _ = jax.lax.scan(climb, (mean, adam.init(mean)), length=self.steps)
        beta = self.schedule.beta[k]
        guided = mean + jnp.clip(moved - mean, -beta, beta)
        return guided if self.last is None else jnp.where(k < self.last, guided, mean)
