"""A log as a Source: minibatches of transitions, or of windows of them."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.errors import ConfigError
from habitus.core.experience import Trajectory, Transition
from habitus.core.protocols import Explorer, Source
from habitus.core.spec import Spec
from habitus.core.trees import take
from habitus.data.dataset import Dataset
from habitus.data.sample import distinct_rows

GIBIBYTE = 2**30


class _Bounds(eqx.Module):
    """Of each row, the last of its episode, its place within it, the rewards from it on; and where episodes start."""

    last: Int[Array, "rows"]
    time: Int[Array, "rows"]
    to_go: Float[Array, "rows"]
    starts: Int[Array, "episodes"]

    @classmethod
    def of(cls, log: Dataset) -> _Bounds:
        time = np.arange(len(log)) - np.repeat(log.starts, log.lengths)
        last, time, starts = (jnp.asarray(x, jnp.int32) for x in (np.repeat(log.ends, log.lengths), time, log.starts))
        return cls(last, time, jnp.asarray(log.to_go), starts)


class DatasetSource(Source):
    """Batches of rows drawn uniformly from a log in canonical form.

    Pure where the log fits on the device: its columns are arrays of this module, so several seeds
    share them and the draw compiles into the loop. (Packing them into one matrix for a single
    gather was no faster: 28 against 31 us for 256 rows on a CPU.) A larger log is read from disk.
    A draw depends on its key alone, so a resumed run draws what the uninterrupted one would have.

    Attributes:
        dataset: the log, in the user's spaces.
        batch_size: rows, or windows, of a batch.
        window: steps of each window of a `Trajectory` [batch, window]; None for a `Transition` [batch].
        from_start: whether windows begin where episodes do, and episodes are drawn instead of rows.
        before: steps of a window that lie before the row that was drawn (see `Dataset.windows`).
        replace: whether a row may be drawn twice into the same batch.
        resident: greatest size in bytes of a log that is kept on the device.

    Raises:
        ConfigError: if a size is not positive, or a batch without repetition exceeds the log.
    """

    dataset: Dataset = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)
    window: int | None = eqx.field(static=True)
    from_start: bool = eqx.field(static=True)
    before: int = eqx.field(static=True)
    replace: bool = eqx.field(static=True)
    columns: Transition | None
    bounds: _Bounds | None  # where windows end, and what is known of each row

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 256,
        window: int | None = None,
        replace: bool = True,
        resident: int = GIBIBYTE,
        from_start: bool = False,
        before: int = 0,
    ):
        if batch_size < 1 or (window is not None and window < 1):
            raise ConfigError(f"batch_size is {batch_size} and window {window}; both must be at least 1.")
        if from_start and window is None:
            raise ConfigError("from_start is about windows; say with window=... how long they are.")
        if before and (window is None or not 0 < before < window or from_start):
            raise ConfigError(
                f"before={before} is a part of each window={window}, at least 0 and below it, and 0 with from_start."
            )
        if not replace and batch_size > (len(dataset.starts) if from_start else len(dataset)):
            size = f"{len(dataset)} rows in {len(dataset.starts)} episodes"
            raise ConfigError(f"batch_size is {batch_size}, but {dataset.name} has {size}; use replace=True.")
        self.dataset, self.batch_size, self.window, self.replace = dataset, batch_size, window, replace
        self.from_start, self.before = from_start, before
        log = dataset.canonical()
        fits = log.nbytes < resident
        self.columns = log.transitions(slice(None)) if fits else None
        self.bounds = _Bounds.of(log) if fits and window is not None else None

    @property
    def pure(self) -> bool:
        """Whether the log fits on the device."""
        return self.columns is not None

    @property
    def rows(self) -> int:
        """Length of the log."""
        return len(self.dataset)

    @property
    def spec(self) -> Spec:
        """The contract of the log, which takes part in it."""
        return self.dataset.spec

    def init(self, explorer: Explorer, key: PRNGKeyArray) -> tuple[()]:
        """Nothing to remember."""
        del explorer, key
        return ()

    def draw(
        self, state: tuple[()], explorer: Explorer, key: PRNGKeyArray
    ) -> tuple[tuple[()], Transition | Trajectory]:
        """A batch; `explorer` does not take part."""
        del explorer
        if self.columns is None:
            return state, self._read(self._host_rows(key))
        return state, self.at(self._rows(key))

    def at(self, rows: Int[Array, "batch"]) -> Transition | Trajectory:
        """The batch of these rows, or of the windows that belong to them; of a log that is on the device."""
        assert self.columns is not None
        if self.window is None or self.bounds is None:
            return take(self.columns, rows)
        wanted = rows[:, None] - self.before + jnp.arange(self.window)
        first, last = (rows - self.bounds.time[rows])[:, None], self.bounds.last[rows][:, None]
        found = jnp.clip(wanted, first, last)
        time, to_go = take((self.bounds.time, self.bounds.to_go), found)
        return Trajectory(take(self.columns, found), (wanted >= first) & (wanted <= last), time, to_go, last - found)

    def rewarded(self, reward: Any) -> DatasetSource:
        """The same log with other rewards [rows], for which programs need not be compiled again."""
        reward = jnp.asarray(reward, jnp.float32)
        changed = eqx.tree_at(lambda source: source.columns.reward, self, reward)
        if self.bounds is None:
            return changed
        paid = jnp.cumsum(reward)
        return eqx.tree_at(lambda source: source.bounds.to_go, changed, paid[self.bounds.last] - paid + reward)

    @property
    def _choices(self) -> int:
        return len(self.dataset.starts) if self.from_start else len(self.dataset)

    def _rows(self, key: PRNGKeyArray) -> Int[Array, "batch"]:
        if self.replace:
            rows = jax.random.randint(key, (self.batch_size,), 0, self._choices)
        else:
            rows = distinct_rows(key, self._choices, self.batch_size)
        return self.bounds.starts[rows] if self.from_start and self.bounds is not None else rows

    def _host_rows(self, key: PRNGKeyArray) -> Int[np.ndarray, "batch"]:
        seed = np.asarray(jax.random.key_data(key)).tolist()
        rows = np.random.default_rng(seed).choice(self._choices, self.batch_size, replace=self.replace)
        return np.asarray(self.dataset.starts)[rows] if self.from_start else rows

    def _read(self, rows: Int[np.ndarray, "batch"]) -> Transition | Trajectory:
        log = self.dataset.canonical()
        return log.transitions(rows) if self.window is None else log.windows(self.window, rows, self.before)
