"""A planner that denoises a chunk, with a noise level of its own for each row.

J. Ho, A. Jain and P. Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020; J. Song, C. Meng and
S. Ermon, "Denoising Diffusion Implicit Models", ICLR 2021; levels that differ by row as in S. H. Høeg, Y. Du and
O. Egeland, "Streaming Diffusion Policy", ICRA 2025.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.domains import require
from habitus.core.experience import Obs
from habitus.execution.planner import Plan, Planner, Start
from habitus.generative.ddim import ddim_grid, ddim_step
from habitus.generative.ddpm import Schedule, check_prediction, clipped


class Denoising(Planner):
    """Plans by denoising: `network(chunk, level, window)` predicts the noise in a chunk, or the data.

    Attributes:
        network: of a noisy chunk [rows, columns], the level of each row [rows] and the window.
        schedule: the noise of each level.
        length, action_size: shape of a chunk.
        obs_shape: of one observation, of real numbers.
        steps: network calls of a whole plan, at evenly spaced levels; every level by default.
        eta: 1 for DDPM, 0 for DDIM, which adds no noise.
        clip: clean actions are clipped to plus and minus this; None for no bound.
        prediction: what the network answers with: "noise", "clean" or "velocity".

    Raises:
        ConfigError: if a number is out of its domain.
    """

    network: Callable[[Array, Array, Obs], Array]
    schedule: Schedule
    length: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    obs_shape: tuple[int, ...] = eqx.field(static=True)
    steps: int | None = eqx.field(default=None, static=True)
    eta: float = eqx.field(default=1.0, static=True)
    clip: float | None = eqx.field(default=1.0, static=True)
    prediction: str = eqx.field(default="noise", static=True)

    def __check_init__(self) -> None:
        require(self.length >= 1, f"length must be 1 or more, but is {self.length}.")
        require(self.action_size >= 1, f"action_size must be 1 or more, but is {self.action_size}.")
        require(0 <= self.eta <= 1, f"eta must be in [0, 1], but is {self.eta}.")
        check_prediction(self.prediction)
        require(self.clip is None or self.clip > 0, f"clip must be above 0 or None, but is {self.clip}.")
        require(
            self.steps is None or 1 <= self.steps <= self.levels,
            f"steps must be from 1 to the {self.levels} levels, but is {self.steps}.",
        )

    @property
    def shape(self) -> tuple[int, int]:
        return self.length, self.action_size

    @property
    def levels(self) -> int:
        """How many noise levels there are; the highest is `levels - 1`."""
        return self.schedule.beta.shape[-1]

    def blank(self) -> Array:
        return jnp.zeros(self.obs_shape)

    def whole(self, chunk: Float[Array, "rows columns"]) -> Start:
        """All the way down from pure noise."""
        grid = ddim_grid(self.levels, self.steps or self.levels)[:-1]
        return down(chunk, tuple(grid.tolist()), jump=True)

    def __call__(self, window: Obs, key: PRNGKeyArray, start: Start | None = None) -> Plan:
        if start is None:
            start = self.whole(jax.random.normal(jax.random.split(key)[0], self.shape))
        chunk, _ = self._walk(window, key, start, keep=False)
        return Plan(chunk, jnp.asarray(start.levels.shape[0], jnp.int32))

    def trail(self, window: Obs, key: PRNGKeyArray, start: Start) -> Float[Array, "moments rows columns"]:
        """The chunk before and after each network call; the last one is what `planner(window, key, start)` answers."""
        return jnp.concatenate([start.chunk[None], self._walk(window, key, start, keep=True)[1]])

    def _walk(self, window: Obs, key: PRNGKeyArray, start: Start, keep: bool) -> tuple[Array, Any]:
        step_key = jax.random.split(key)[1]

        def one(chunk: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Array | None]:
            i, level, after = at
            chunk = self.step(chunk, level, after, window, jax.random.fold_in(step_key, i))
            return chunk, chunk if keep else None

        return jax.lax.scan(one, start.chunk, (jnp.arange(start.levels.shape[0]), start.levels, start.after))

    def step(
        self,
        chunk: Float[Array, "rows columns"],
        level: Int[Array, "rows"],
        after: Int[Array, "rows"],
        window: Obs,
        key: PRNGKeyArray,
    ) -> Float[Array, "rows columns"]:
        """One network call: each row goes from its level to a lower one (`ddim_step`); rows at -1 stay as they are."""
        at = jnp.maximum(level, 0)
        answer = self.network(chunk, at, window)
        clean = clipped(self.schedule.clean(chunk, answer, at, self.prediction), self.clip)
        fresh = jax.random.normal(key, chunk.shape)
        moved = ddim_step(self.schedule, chunk, clean, at, after, eta=self.eta, noise=fresh)
        return jnp.where((level < 0)[:, None], chunk, moved)

    def noised(
        self,
        chunk: Float[Array, "rows columns"],
        level: Int[Array, "rows"],
        key: PRNGKeyArray,
        before: Int[Array, "rows"] | int = -1,
    ) -> Float[Array, "rows columns"]:
        """As `raised`, with noise of its own."""
        return self.raised(chunk, level, jax.random.normal(key, chunk.shape), before)

    def raised(
        self,
        chunk: Float[Array, "rows columns"],
        level: Int[Array, "rows"],
        noise: Float[Array, "rows columns"],
        before: Int[Array, "rows"] | int = -1,
    ) -> Float[Array, "rows columns"]:
        """Each row raised from the level `before` to `level`; rows that are there or above stay as they are.

        `x' = sqrt(a'/a) x + sqrt(1 - a'/a) z`.
        """
        share = jnp.minimum(self.schedule.kept(level) / self.schedule.kept(before), 1.0)[:, None]
        return jnp.sqrt(share) * chunk + jnp.sqrt(1 - share) * noise


def down(chunk: Float[Array, "rows columns"], levels: tuple[int, ...], jump: bool) -> Start:
    """The same falling levels for every row.

    Args:
        jump: whether a call leads to the next level in the list, and the last one to clean; else each leads one
            level down, whatever the next one is.
    """
    at = np.asarray(levels, np.int32)
    after = np.append(at[1:], -1).astype(np.int32) if jump else at - 1
    rows = chunk.shape[0]
    return Start(chunk, *(jnp.broadcast_to(jnp.asarray(x)[:, None], (len(at), rows)) for x in (at, after)))
