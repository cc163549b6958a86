"""Plans that go on from the last one.

Y. Duan, H. Yin and D. Kragic, "Real-Time Iteration Scheme for Diffusion Policy", 2025, arXiv 2508.05396. Adding noise
to the guess first is SDEdit (C. Meng et al., ICLR 2022).
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.domains import require
from habitus.core.experience import Obs
from habitus.execution.denoising import Denoising, down
from habitus.execution.horizon import Executor
from habitus.execution.planner import when_due


class WarmStart(Executor):
    """Denoises the last plan, moved up by the rows that were executed, from a low level instead of pure noise.

    The first plan of an episode is a whole one; each later one takes `len(levels)` network calls. Discrete actions
    are columns of -1 and 1; such a column flips only if noise can carry it across, so that it is either scaled down
    in the data (`factor`), or snapped to its two values in the guess (`snap`) and started from a higher level.

    Attributes:
        planner: what denoises.
        levels: at which the network is called, falling.
        renoise: whether noise is added to the guess up to the first level. RTI-DP adds none.
        posterior: where a call leads: "adjacent", one level down whatever the next in the list; "jump", to that.
        discrete: columns that hold discrete actions; executed ones are -1 or 1.
        factor: by which the data of these columns were divided.
        snap: whether these columns of a plan are set to `1/factor` where above 0, else to `-1/factor`.

    Raises:
        ConfigError: if a plan has too few rows, or a setting is out of its domain.
    """

    planner: Denoising
    levels: tuple[int, ...] = eqx.field(default=(2, 1, 0), static=True)
    renoise: bool = eqx.field(default=False, static=True)
    posterior: str = eqx.field(default="adjacent", static=True)
    discrete: tuple[int, ...] = eqx.field(default=(), static=True)
    factor: float = eqx.field(default=1.0, static=True)
    snap: bool = eqx.field(default=False, static=True)

    def __check_init__(self) -> None:
        falling = all(a > b for a, b in zip(self.levels, self.levels[1:], strict=False))
        require(
            len(self.levels) > 0 and falling and 0 <= self.levels[-1] and self.levels[0] < self.planner.levels,
            f"levels must fall from {self.planner.levels - 1} or below to 0 or above, but are {self.levels}.",
        )
        require(
            self.posterior in ("adjacent", "jump"), f"posterior must be 'adjacent' or 'jump', not {self.posterior!r}."
        )
        require(
            all(0 <= column < self.planner.action_size for column in self.discrete),
            f"discrete names the columns {self.discrete}, but a chunk has {self.planner.action_size}.",
        )
        require(self.factor > 0, f"factor must be above 0, but is {self.factor}.")

    def fresh(self) -> Float[Array, "rows columns"]:
        return jnp.zeros(self.planner.shape)

    def shifted(self, plan: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
        """The guess: rows move up by those that were executed, and the last one is repeated."""
        return plan[jnp.minimum(jnp.arange(plan.shape[0]) + self.execute, plan.shape[0] - 1)]

    def replan(
        self, window: Obs, memory: Array, started: Bool[Array, ""], key: PRNGKeyArray
    ) -> tuple[Array, Array, Int[Array, ""]]:
        def whole() -> tuple[Array, Array]:
            plan = self.planner(window, key)
            return plan.chunk, plan.calls

        chunk, calls = when_due(started, lambda: self._refined(window, memory, key), self._nothing())
        chunk, calls = when_due(~started, whole, (chunk, calls))
        if self.snap and self.discrete:
            columns = jnp.asarray(self.discrete)
            chunk = chunk.at[:, columns].set(_sign(chunk[:, columns]) / self.factor)
        return chunk, chunk, calls

    def _refined(self, window: Obs, plan: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        guess, plan_key = self.shifted(plan), key
        if self.renoise:
            noise_key, plan_key = jax.random.split(key)
            guess = self.planner.noised(guess, jnp.full(self.planner.length, self.levels[0]), noise_key)
        found = self.planner(window, plan_key, down(guess, self.levels, self.posterior == "jump"))
        return found.chunk, found.calls

    def _nothing(self) -> tuple[Array, Array]:
        return self.fresh(), jnp.zeros((), jnp.int32)

    def executed(self, row: Float[Array, "columns"]) -> Float[Array, "columns"]:
        columns = jnp.asarray(self.discrete, jnp.int32)
        return row.at[columns].set(_sign(row[columns])) if self.discrete else row


def _sign(x: Array) -> Array:
    """1 above 0, else -1."""
    return jnp.where(x > 0, 1.0, -1.0)
