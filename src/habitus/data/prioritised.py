"""Prioritised replay of a log: rows from which there is more to learn are drawn more often."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.experience import Weighted
from habitus.core.protocols import Policy, Source, require
from habitus.core.spec import Spec
from habitus.data.source import DatasetSource

FLOOR = 1e-6  # of a priority, so that every row can come back


class Priorities(eqx.Module):
    """What the source remembers: `p^alpha` of each row, 0 where it was never drawn; and the rows of the last batch."""

    power: Float[Array, "rows"]
    last: Int[Array, "batch"]


class Prioritised(Source):
    """Batches in which row i comes with probability `p_i^alpha / sum p^alpha` (Schaul et al. 2016, eq. 1).

    A row's priority is what the learner last said it has to learn from it; until then, the highest yet.
    Its weight is `(N P(i))^-beta`, divided by the largest of the batch (section 3.4).
    """

    source: DatasetSource
    alpha: float
    beta: float

    def __init__(self, source: DatasetSource, alpha: float = 0.6, beta: float = 0.9):
        """Args:
            source: the log, resident on the device.
            alpha: how strongly priorities count; 0 draws uniformly.
            beta: how far weights undo that; 1 wholly.

        Raises:
            ConfigError: if a number is out of its domain, or the log is read from disk.
        """
        require(source.pure, "prioritised replay keeps its log on the device, and this one is too large for it.")
        require(not source.from_start, "prioritised replay draws rows, so windows must not begin where episodes do.")
        require(alpha >= 0, f"alpha must be 0 or more, but is {alpha}.")
        require((0 <= beta) & (beta <= 1), f"beta must be in [0, 1], but is {beta}.")
        self.source, self.alpha, self.beta = source, alpha, beta

    @property
    def pure(self) -> bool:
        return True

    @property
    def window(self) -> int | None:
        """Steps of the windows that batches hold, or None."""
        return self.source.window

    @property
    def before(self) -> int:
        """Steps of a window that lie before its row."""
        return self.source.before

    @property
    def spec(self) -> Spec:
        return self.source.spec

    @property
    def prioritised(self) -> bool:
        return True

    def init(self, explorer: Policy | None, key: PRNGKeyArray) -> Priorities:
        del explorer, key
        return Priorities(jnp.zeros(self.source.rows), jnp.zeros(self.source.batch_size, jnp.int32))

    def draw(self, state: Priorities, explorer: Policy | None, key: PRNGKeyArray) -> tuple[Priorities, Weighted]:
        del explorer
        power = jnp.where(state.power > 0, state.power, jnp.maximum(state.power.max(), FLOOR))
        total = jnp.cumsum(power)
        wanted = jax.random.uniform(key, (self.source.batch_size,)) * total[-1]
        rows = jnp.minimum(jnp.searchsorted(total, wanted, side="right"), len(total) - 1).astype(jnp.int32)
        weight = (len(total) * power[rows] / total[-1]) ** -self.beta
        return Priorities(state.power, rows), Weighted(self.source.at(rows), weight / weight.max())

    def reprioritise(self, state: Priorities, priority: Float[Array, "batch"]) -> Priorities:
        power = jnp.maximum(priority, FLOOR) ** self.alpha
        return Priorities(state.power.at[state.last].set(power), state.last)
