"""What the values of a log can have wrong: every defect with its rows and its remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool

from habitus.data.canonical import CHUNK
from habitus.data.dataset import Dataset
from habitus.data.defects import Defect, column_leaves


def check(dataset: Dataset) -> list[Defect]:
    """Every defect of a data set, errors first; reads each column once, in chunks.

    Errors: NaN or Inf, values outside their space, ends inside an episode, episodes that stop for
    no recorded reason. (Shapes, types and `starts` were right when the data set was made.)
    Warnings: columns that never change, successors that are not the next observation (or are that
    of another episode), terminations that look like time-outs, a log without any end.
    """
    checks = (_values, _ends, _constants, _successors, _time_outs)
    found = [defect for examine in checks for defect in examine(dataset)]
    return sorted(found, key=lambda defect: defect.severity)


def _scan(column: Any, bad: Callable[[np.ndarray], Bool[np.ndarray, "rows"]]) -> np.ndarray:
    """The rows for which `bad` holds, chunk by chunk."""
    hits = [
        np.flatnonzero(bad(np.asarray(column[start : start + CHUNK]))) + start for start in range(0, len(column), CHUNK)
    ]
    return np.concatenate(hits)


def _any(mask: np.ndarray) -> Bool[np.ndarray, "rows"]:
    return np.asarray(mask.reshape(len(mask), -1).any(1))


def _leaf_spaces(name: str, space: spaces.Space) -> list[tuple[str, spaces.Space]]:
    if isinstance(space, spaces.Dict):
        parts: list[tuple[Any, spaces.Space]] = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        parts = list(enumerate(space.spaces))
    else:
        return [(name, space)]
    return [leaf for key, part in parts for leaf in _leaf_spaces(f"{name}.{key}", part)]


def _values(dataset: Dataset) -> list[Defect]:
    return values(dataset.columns, dataset.observation_space, dataset.action_space)


def values(columns: Mapping[str, Any], seen: spaces.Space | None, acted: spaces.Space | None) -> list[Defect]:
    """NaN, Inf, and what its space, if that is known, does not contain; of columns whose shapes are right."""
    found = []
    for name, space in (("obs", seen), ("next_obs", seen), ("action", acted)):
        of = {} if space is None else dict(_leaf_spaces(name, space))
        for field, column in column_leaves(name, columns[name]):
            found += _column_values(field, column, of.get(field))
    for name in ("reward", "cost"):
        if name in columns:
            rows = _scan(columns[name], lambda chunk: _any(~np.isfinite(chunk)))
            if len(rows):
                found.append(Defect.at(name, rows, "holds NaN or Inf", "remove the episodes of these rows"))
    return found


def _column_values(field: str, column: Any, space: spaces.Space | None) -> list[Defect]:
    if column.dtype.kind == "f":
        rows = _scan(column, lambda chunk: _any(~np.isfinite(chunk)))
        if len(rows):
            return [Defect.at(field, rows, "holds NaN or Inf", "remove the episodes of these rows")]
    low, high = _bounds(space)
    if low is None or not (np.isfinite(low).any() or np.isfinite(high).any()):
        return []
    slack = 1e-5 * np.maximum(1, np.abs(np.where(np.isfinite(high - low), high - low, 0)))
    rows = _scan(column, lambda chunk: _any((chunk < low - slack) | (chunk > high + slack)))
    if not len(rows):
        return []
    remedy = "clip them, or pass the space they belong to"
    return [Defect.at(field, rows, f"lies outside {space}", remedy)]


def _bounds(space: spaces.Space | None) -> tuple[Any, Any]:
    if isinstance(space, spaces.Box):
        return space.low.astype(np.float64), space.high.astype(np.float64)
    if isinstance(space, spaces.Discrete):
        return np.float64(space.start), np.float64(space.start + space.n - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start.astype(np.float64), (space.start + space.nvec - 1).astype(np.float64)
    if isinstance(space, spaces.MultiBinary):
        return np.zeros(space.shape), np.ones(space.shape)
    return None, None


def _ends(dataset: Dataset) -> list[Defect]:
    """Ends inside episodes, and episodes that stop without one."""
    done = np.asarray(dataset.terminated) | np.asarray(dataset.truncated)
    is_end = np.zeros(len(dataset), bool)
    is_end[dataset.ends] = True
    found = []
    inside = np.flatnonzero(done & ~is_end)
    if len(inside):
        what = "ends an episode that `starts` says goes on"
        found.append(Defect.at("terminated", inside, what, "correct starts, or the flags of these rows"))
    silent = np.flatnonzero(is_end & ~done)
    silent = silent[silent != len(dataset) - 1]  # a log may stop in the middle of its last episode
    if len(silent):
        what = "stops an episode that neither terminated nor was truncated"
        found.append(Defect.at("truncated", silent, what, "set terminated or truncated there"))
    if len(dataset) > 1 and not done.any() and len(dataset.starts) == 1:
        what = "and terminated are never set: the whole log is one unfinished episode"
        remedy = "pass truncated or starts if it holds several"
        found.append(Defect("truncated", what, remedy, severity="warning"))
    return found


def _constants(dataset: Dataset) -> list[Defect]:
    """Features that never change."""
    found = []
    for name in ("obs", "action", "reward"):
        for field, column in column_leaves(name, getattr(dataset, name)):
            if len(column) < 2 or column.ndim > 2:  # the borders of images are often constant
                continue
            first = np.asarray(column[0])
            same = np.ones(first.shape, bool)
            for start in range(0, len(column), CHUNK):
                same &= (np.asarray(column[start : start + CHUNK]) == first).all(0)
                if not same.any():
                    break
            if same.any():
                where = "" if same.ndim == 0 else f" in dimensions {np.flatnonzero(same).tolist()}"
                remedy = "drop it, or check how it was recorded"
                found.append(Defect(field, f"never changes{where}", remedy, severity="warning"))
    return found


def _successors(dataset: Dataset) -> list[Defect]:
    """Rows within an episode whose successor is not the next row's observation."""
    inner = np.ones(len(dataset), bool)
    inner[dataset.ends] = False
    broken = np.zeros(len(dataset), bool)
    for now, after in zip(jax.tree.leaves(dataset.obs), jax.tree.leaves(dataset.next_obs), strict=True):
        for start in range(0, len(dataset) - 1, CHUNK):
            stop = min(start + CHUNK, len(dataset) - 1)
            far = ~np.isclose(np.asarray(now[start + 1 : stop + 1]), np.asarray(after[start:stop]), atol=1e-4)
            broken[start:stop] |= _any(far)
    rows, ends = np.flatnonzero(broken & inner), dataset.ends[:-1]
    goes_on = len(ends) > 1 and not broken[ends].any()  # at every end, into the next episode
    if len(rows):
        cause = "the flags may be shifted by a row" if goes_on else "rows may be shuffled or missing"
        return [Defect.at("next_obs", rows, "is not the observation of the next row", cause, severity="warning")]
    if goes_on:
        what = "is the first observation of the next episode at the end of each: the final ones were lost to resets"
        remedy = "record the observation before resetting, or leave next_obs out"
        return [Defect.at("next_obs", ends, what, remedy, severity="warning")]
    return []


def _time_outs(dataset: Dataset) -> list[Defect]:
    """Terminations that all come after the same number of steps."""
    lengths = dataset.lengths[dataset.complete]
    if len(lengths) < 3 or dataset.truncated.any() or lengths.min() != lengths.max() or lengths[0] == 1:
        return []
    what = f"ends every episode after {lengths[0]} steps, and nothing is truncated: these look like time-outs"
    return [Defect("terminated", what, "pass them as truncated, or no value reaches past them", severity="warning")]
