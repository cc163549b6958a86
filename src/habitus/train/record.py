"""The figures of a run: kept for the `Run`, written to its folder, sent to its sinks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from habitus.core.protocols import Source
from habitus.train.collect import Episodes
from habitus.train.log import RunFolder
from habitus.train.sinks import Sink


class Record:
    """The figures of one group of seeds.

    Attributes:
        home: the run folder, or None.
        evaluations: the rows so far, earlier sessions of a resumed run included.
    """

    def __init__(self, source: Source, seeds: list[int], home: RunFolder | None, sinks: Sequence[Sink]):
        self.source, self.seeds, self.home, self.sinks = source, seeds, home, sinks
        self.rows: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []

    def rewind(self, done: int) -> None:
        """Forgets what was written after `done` draws, and takes up what was written before."""
        if self.home:
            update = done * self.source.updates_per_draw
            self.rows = self.home.rewind("metrics", update, self.seeds)
            self.evaluations = self.home.rewind("evaluations", update, self.seeds)

    def _head(self, done: int) -> dict[str, Any]:
        update = done * self.source.updates_per_draw
        return {"step": self.source.steps(done), "update": update, "seeds": self.seeds}

    def metrics(self, done: int, metrics: dict[str, np.ndarray], seconds: float) -> None:
        """The means of one chunk, a value a seed."""
        values = {k: [float(x) for x in v] for k, v in metrics.items()}
        row = self._head(done) | {"seconds": round(seconds, 3), "metrics": values}
        self.rows.append(row)
        self._write("metrics", row, values)

    def evaluation(self, done: int, results: Sequence[Episodes]) -> None:
        """The episodes of one evaluation, for each seed."""
        row = self._head(done) | {
            "returns": [r.returns.tolist() for r in results],
            "lengths": [r.lengths.tolist() for r in results],
            "success": [None if r.success is None else r.success.tolist() for r in results],
        }
        if all(r.costs is not None for r in results):
            row["costs"] = [r.costs.tolist() for r in results if r.costs is not None]
        self.evaluations.append(row)
        self._write("evaluations", row, {"evaluation/return": [float(r.returns.mean()) for r in results]})

    def score(self, done: int) -> float | None:
        """Mean return of the evaluation after `done` draws, or None if there was none."""
        if not self.evaluations or self.evaluations[-1]["update"] != done * self.source.updates_per_draw:
            return None
        return float(np.mean(self.evaluations[-1]["returns"]))

    def _write(self, name: str, row: dict[str, Any], values: dict[str, list[float]]) -> None:
        if self.home:
            self.home.append(name, row)
        means = {k: float(np.mean(v)) for k, v in values.items() if np.isfinite(v).all()}
        for sink in self.sinks:
            sink.write(row["step"], means)

    def history(self) -> dict[str, np.ndarray]:
        """Each metric as float [chunks, seeds]; 'step', 'update' and 'seconds' as [chunks]."""
        out = {k: np.array([row[k] for row in self.rows]) for k in ("step", "update", "seconds")}
        names = self.rows[0]["metrics"] if self.rows else []
        return out | {k: np.array([row["metrics"][k] for row in self.rows]) for k in names}
