"""A rolling buffer of future actions whose noise grows with their distance.

S. H. Høeg, Y. Du and O. Egeland, "Streaming Diffusion Policy: Fast Policy Synthesis with Variable Noise Diffusion
Models", ICRA 2025, arXiv 2406.04806.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.domains import require
from habitus.core.experience import Obs
from habitus.execution.denoising import Denoising
from habitus.execution.horizon import Executor
from habitus.execution.planner import Start, check_horizon, when_due


class Buffer(eqx.Module):
    """The noisy chunk, and the level of each of its rows."""

    chunk: Float[Array, "rows columns"]
    level: Int[Array, "rows"]


def resting_levels(length: int, observe: int, execute: int, levels: int) -> Int[np.ndarray, "rows"]:
    """The level of each row just before a call: `floor(N (c(i) + 1) / h) - 1`.

    Row i lies in part `c(i) = floor((i - (To-1)) / Ta)` of the `h = floor((Tp - (To-1)) / Ta)` whole parts; rows of
    the past count to the first, rows after the last whole part to that.
    """
    parts = (length - (observe - 1)) // execute
    part = np.clip((np.arange(length) - (observe - 1)) // execute, 0, parts - 1)
    return (levels * (part + 1) // parts - 1).astype(np.int32)


class Streaming(Executor):
    """Each plan takes only `N / h` network calls: as many as make the nearest of the `h` parts of the buffer clean.

    What was executed leaves the buffer, pure noise joins at its end, and every part is then one level nearer. The
    network must have learned levels that differ by row.

    Attributes:
        planner: what denoises.
        first: the buffer of a new episode: "zero" (zeros), "constant" (the position of now) or "denoise" (a whole
            plan), with noise up to the resting levels.
        position: for "constant", where in the observation each action's present value stands.

    Raises:
        ConfigError: if a plan has too few rows, the parts do not divide the levels, or a setting is unknown.
    """

    planner: Denoising
    first: str = eqx.field(default="zero", static=True)
    position: tuple[int, ...] = eqx.field(default=(), static=True)

    def __check_init__(self) -> None:
        check_horizon(self.planner, self.execute, self.observe)  # first: without it there is no part to divide by
        require(
            self.planner.levels % self.parts == 0,
            f"{self.planner.levels} noise levels do not divide into the {self.parts} parts of {self.execute} rows that "
            f"a plan of {self.planner.length} rows holds with observe={self.observe}; use a multiple of {self.parts}.",
        )
        require(
            self.first in ("zero", "constant", "denoise"),
            f"first must be 'zero', 'constant' or 'denoise', but is {self.first!r}.",
        )
        wanted = self.planner.action_size if self.first == "constant" else 0
        require(
            len(self.position) == wanted,
            f"position names {len(self.position)} entries of the observation, but first={self.first!r} needs {wanted}.",
        )

    @property
    def parts(self) -> int:
        """`h`: how many whole parts of `execute` rows the buffer holds."""
        return (self.planner.length - (self.observe - 1)) // self.execute

    @property
    def calls(self) -> int:
        """Network calls of each plan."""
        return self.planner.levels // self.parts

    @property
    def resting(self) -> Int[Array, "rows"]:
        """Level of each row between two plans."""
        return jnp.asarray(resting_levels(self.planner.length, self.observe, self.execute, self.planner.levels))

    def fresh(self) -> Buffer:
        return Buffer(jnp.zeros(self.planner.shape), self.resting)

    def filled(self, window: Obs, key: PRNGKeyArray) -> tuple[Buffer, Int[Array, ""]]:
        """The buffer of a new episode, and the network calls that it took."""
        plan_key, noise_key = jax.random.split(key)
        chunk, calls = jnp.zeros(self.planner.shape), jnp.zeros((), jnp.int32)
        if self.first == "constant":
            chunk = jnp.broadcast_to(window[-1][jnp.asarray(self.position)], chunk.shape)
        elif self.first == "denoise":
            plan = self.planner(window, plan_key)
            chunk, calls = plan.chunk, plan.calls
        return Buffer(self.planner.noised(chunk, self.resting, noise_key), self.resting), calls

    def replan(
        self, window: Obs, memory: Buffer, started: Bool[Array, ""], key: PRNGKeyArray
    ) -> tuple[Array, Buffer, Array]:
        fill_key, plan_key, roll_key = jax.random.split(key, 3)
        at, extra = when_due(~started, lambda: self.filled(window, fill_key), (memory, jnp.zeros((), jnp.int32)))
        before = at.level - jnp.arange(self.calls, dtype=jnp.int32)[:, None]
        start = Start(at.chunk, jnp.maximum(before, -1), jnp.maximum(before - 1, -1))
        plan = self.planner(window, plan_key, start)
        return plan.chunk, self.rolled(Buffer(plan.chunk, start.after[-1]), roll_key), plan.calls + extra

    def rolled(self, buffer: Buffer, key: PRNGKeyArray) -> Buffer:
        """The buffer once its first `execute` rows were executed.

        They leave, and with them the rows behind the last whole part; as many rows of pure noise join at the end.
        The rows of the past get noise up to the level of the row of now.
        """
        cut = (self.planner.length - (self.observe - 1)) % self.execute
        keep = slice(self.execute, self.planner.length - cut)
        chunk = jnp.concatenate([buffer.chunk[keep], jnp.zeros((self.execute + cut, self.planner.action_size))])
        level = jnp.append(buffer.level[keep], jnp.full(self.execute + cut, self.planner.levels - 1, jnp.int32))
        past = jnp.arange(self.planner.length) < self.observe - 1
        wanted = jnp.where(past, jnp.maximum(level[self.observe - 1], level), level)
        noise = jax.random.normal(key, chunk.shape)  # no row needs it twice
        new = jnp.arange(self.planner.length) >= self.planner.length - self.execute - cut
        raised = self.planner.raised(chunk, wanted, noise, level)
        return Buffer(jnp.where(new[:, None], noise, raised), wanted)
