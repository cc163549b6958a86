"""A run folder, read back as it was written and checked line by line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from habitus.core.errors import DataError
from habitus.train.log import read_jsonl

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Curve:
    """One metric over a run.

    Attributes:
        step: environment steps, or updates where the run only read a log; [points].
        value: mean over the chunk that ended there; NaN where a seed has none.
    """

    step: Float[np.ndarray, " points"]
    value: Float[np.ndarray, "points seeds"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The episodes of every seed at one moment of a run.

    Attributes:
        step: as in `Curve`.
        returns: one array of episode returns a seed.
        lengths: one array of episode lengths a seed.
        success: share of successful episodes of each seed; None where the world does not report it.
    """

    step: int
    returns: tuple[Float[np.ndarray, " _"], ...]
    lengths: tuple[Float[np.ndarray, " _"], ...]
    success: Float[np.ndarray, " seeds"] | None = None

    @property
    def scores(self) -> Float[np.ndarray, " seeds"]:
        """Mean return of each seed."""
        return np.array([episodes.mean() for episodes in self.returns])


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run left behind.

    Attributes:
        folder: where it lies.
        config: method, hyperparameters, source, env, steps, seeds, command and start.
        versions: of Python, the platform and the packages; 'git' holds the commit.
        seeds: those that got anywhere, in order.
        curves: by name of the metric.
        evaluations: in order of step; only those that every one of `seeds` has reached.
        seconds: wall time.
        policies: folder of the saved policy of each seed that finished.
    """

    folder: Path
    config: Row
    versions: Row
    seeds: tuple[int, ...]
    curves: dict[str, Curve]
    evaluations: tuple[Evaluation, ...]
    seconds: float
    policies: dict[int, Path]

    @property
    def method(self) -> str:
        """Slug or class name of the learner."""
        return str(self.config["method"])

    @property
    def env(self) -> str | None:
        """Name of the world, or None if the run had none."""
        return self.config.get("env")

    @property
    def acts(self) -> bool:
        """Whether steps are steps in a world, not updates from a log."""
        return self.config["source"].get("kind") != "DatasetSource"

    @property
    def complete(self) -> bool:
        """Whether every seed that was asked for left a policy."""
        return set(self.config["seeds"]) == set(self.policies)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run, its place in the report, and the name it goes by there."""

    record: RunRecord
    index: int
    label: str


def read_run(folder: Path) -> RunRecord:
    """Reads a run folder.

    Raises:
        DataError: naming the file, and the line where there is one, if it is missing or damaged.
    """
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder} is not a run: it has no config.json. Give the folder that learn() wrote.")
    config = _read_config(folder / "config.json")
    metrics = list(_rows(folder / "metrics.jsonl", _check_metrics))
    evaluations = list(_rows(folder / "evaluations.jsonl", _check_evaluation))
    reached = {seed for row in metrics + evaluations for seed in row["seeds"]}
    seeds = tuple(seed for seed in config["seeds"] if seed in reached)
    if reached - set(seeds):
        raise DataError(f"{folder}: the figures are of seeds {sorted(reached)}, but config.json has {config['seeds']}.")
    versions = folder / "versions.json"
    return RunRecord(
        folder=folder,
        config=config,
        versions=_read_object(versions) if versions.exists() else {},
        seeds=seeds,
        curves=_curves(metrics, seeds),
        evaluations=_evaluations(evaluations, seeds),
        seconds=_seconds(metrics),
        policies={s: path for s in config["seeds"] if (path := folder / "policy" / f"seed-{s}").is_dir()},
    )


def _read_object(path: Path) -> Row:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); restore it, or run again.") from error
    if not isinstance(data, dict):
        raise DataError(f"{path} holds a {type(data).__name__}, not an object; restore it, or run again.")
    return data


def _read_config(path: Path) -> Row:
    config = _read_object(path)
    wanted = {"method": str, "hyperparameters": dict, "source": dict, "seeds": list}
    for field, kind in wanted.items():
        if not isinstance(config.get(field), kind):
            raise DataError(f"{path} has no {field!r}, or it is not a {kind.__name__}; restore the file, or run again.")
    if not config["seeds"] or not all(isinstance(seed, int) for seed in config["seeds"]):
        raise DataError(f"{path}: 'seeds' must be a list of integers, but is {config['seeds']}.")
    if not isinstance(config.get("env"), (str, type(None))):
        raise DataError(f"{path}: 'env' must be a name or null, but is {config['env']}.")
    return config


def _rows(path: Path, check: Any) -> Iterator[Row]:
    """The checked rows of a JSONL file; none if there is no such file."""
    try:
        rows = read_jsonl(path)
    except (UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not a text of JSON lines ({error}); restore it, or run again.") from error
    for number, row in enumerate(rows, start=1):
        defect = _check_row(row) or check(row)
        if defect:
            raise DataError(f"{path}, line {number}: {defect}; delete that line.")
        yield row


def _check_row(row: Any) -> str | None:
    """What is wrong with a row of either file."""
    if not isinstance(row, dict):
        return f"expected an object, but it is a {type(row).__name__}"
    if not isinstance(row.get("step"), (int, float)) or not np.isfinite(row["step"]):
        return "'step' is not a finite number"
    seeds = row.get("seeds")
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) for seed in seeds):
        return "'seeds' is not a list of integers"
    return None


def _check_metrics(row: Row) -> str | None:
    if not isinstance(row.get("metrics"), dict):
        return "'metrics' is not an object"
    for name, values in row["metrics"].items():
        if not _numbers(values, len(row["seeds"])):
            return f"metric {name!r} is not a list of {len(row['seeds'])} numbers, one a seed"
    if not isinstance(row.get("seconds", 0.0), (int, float)):
        return "'seconds' is not a number"
    return None


def _check_evaluation(row: Row) -> str | None:
    for field in ("returns", "lengths"):
        parts = row.get(field)
        if not isinstance(parts, list) or len(parts) != len(row["seeds"]):
            return f"{field!r} is not a list of {len(row['seeds'])} lists, one a seed"
        if not all(_numbers(episodes) and episodes for episodes in parts):
            return f"{field!r} holds something other than lists of numbers, one an episode"
    success = row.get("success")
    if success is not None and not (isinstance(success, list) and len(success) == len(row["seeds"])):
        return f"'success' is not a list of {len(row['seeds'])} parts, one a seed"
    if not all(part is None or (isinstance(part, list) and part) for part in success or []):
        return "'success' holds something other than null and lists of truth values"
    if not all(np.isfinite(value) for episodes in row["returns"] for value in episodes):
        return "'returns' holds a number that is not finite"
    return None


def _numbers(values: Any, count: int | None = None) -> bool:
    """Whether `values` is a list of numbers, of the given length if there is one; a bool is no number."""
    return (
        isinstance(values, list)
        and (count is None or len(values) == count)
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    )


def _curves(rows: list[Row], seeds: tuple[int, ...]) -> dict[str, Curve]:
    """Metrics by name; seeds that were run one after the other are put side by side."""
    column = {seed: i for i, seed in enumerate(seeds)}
    points: dict[str, dict[float, np.ndarray]] = {}
    for row in rows:
        for name, values in row["metrics"].items():
            at = points.setdefault(name, {}).setdefault(float(row["step"]), np.full(len(seeds), np.nan))
            for seed, value in zip(row["seeds"], values, strict=True):
                at[column[seed]] = value
    return {
        name: Curve(np.array(sorted(values)), np.array([values[step] for step in sorted(values)]))
        for name, values in points.items()
    }


def _evaluations(rows: list[Row], seeds: tuple[int, ...]) -> tuple[Evaluation, ...]:
    """Evaluations in order; seeds that were run one after the other are put side by side."""
    steps: dict[int, dict[int, tuple[Any, Any, Any]]] = {}
    for row in rows:
        success = row.get("success") or [None] * len(row["seeds"])
        for seed, *parts in zip(row["seeds"], row["returns"], row["lengths"], success, strict=True):
            steps.setdefault(int(row["step"]), {})[seed] = (parts[0], parts[1], parts[2])
    return tuple(
        _side_by_side(step, [found[seed] for seed in seeds])
        for step, found in sorted(steps.items())
        if len(found) == len(seeds)
    )


def _side_by_side(step: int, parts: list[tuple[Any, Any, Any]]) -> Evaluation:
    returns, lengths = (tuple(np.array(part[i], float) for part in parts) for i in (0, 1))
    known = all(part[2] is not None for part in parts)
    return Evaluation(step, returns, lengths, np.array([np.mean(part[2]) for part in parts]) if known else None)


def _seconds(rows: list[Row]) -> float:
    """Wall time: the groups of seeds that were run one after the other, added up."""
    last: dict[tuple[int, ...], float] = {}
    for row in rows:
        seeds = tuple(row["seeds"])
        last[seeds] = max(last.get(seeds, 0.0), float(row.get("seconds", 0.0)))
    return float(sum(last.values()))
