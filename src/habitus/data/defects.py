"""What can be wrong with a log, and the checks on its shapes and types that need no look at the values."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from gymnasium import spaces

from habitus.core.errors import DataError

SHOWN = 5  # rows that a defect names
SCALARS = ("reward", "terminated", "truncated")


@dataclasses.dataclass(frozen=True)
class Defect:
    """One thing that is wrong with a log.

    Attributes:
        field: the column, with the name of its part for a Dict observation.
        what: what is wrong, in a clause.
        remedy: what to do about it.
        rows: the first rows (or, for `starts`, episodes) concerned; empty where it concerns the whole column.
        count: how many are concerned in all.
        severity: an 'error' stops loading, a 'warning' does not.
    """

    field: str
    what: str
    remedy: str
    rows: tuple[int, ...] = ()
    count: int = 0
    severity: Literal["error", "warning"] = "error"

    @classmethod
    def at(cls, field: str, rows: np.ndarray, what: str, remedy: str, **more: Any) -> Defect:
        """A defect of certain rows, of which the first few are named."""
        return cls(field, what, remedy, tuple(int(row) for row in rows[:SHOWN]), len(rows), **more)

    def __str__(self) -> str:
        if not self.rows:
            return f"{self.field} {self.what}; {self.remedy}"
        shown = ", ".join(map(str, self.rows))
        more = f" and {self.count - len(self.rows)} more" if self.count > len(self.rows) else ""
        plural = "s" if self.count > 1 else ""
        return f"{self.field} {self.what} (row{plural} {shown}{more}); {self.remedy}"


def raise_errors(defects: Sequence[Defect], origin: str) -> None:
    """Raises `DataError` naming `origin` and every defect of severity 'error'; warns of the others."""
    errors = [d for d in defects if d.severity == "error"]
    if errors:
        raise DataError(f"{origin}: " + "\n".join(map(str, errors)))
    for defect in defects:
        warnings.warn(f"{origin}: {defect}", stacklevel=3)


def structure(columns: Mapping[str, Any], observation_space: spaces.Space, action_space: spaces.Space) -> list[Defect]:
    """The defects of shape and type: every column against the spaces and against the length of `reward`."""
    defects = [d for name in SCALARS for d in _scalar_column(name, columns[name])]
    if defects:
        return defects
    rows = len(columns["reward"])
    if rows == 0:
        return [Defect("reward", "is empty", "a log needs at least one row")]
    for name, space in (("obs", observation_space), ("next_obs", observation_space), ("action", action_space)):
        defects += _space_column(name, columns[name], space, rows)
    for name in SCALARS:
        if len(columns[name]) != rows:
            defects.append(_wrong_length(name, len(columns[name]), rows))
    if "cost" in columns:
        defects += _cost_column(columns["cost"], rows)
    return defects + starts_column(columns["starts"], rows)


def _cost_column(column: Any, rows: int) -> list[Defect]:
    shape = np.shape(column)
    if len(shape) != 2 or shape[1] == 0 or column.dtype.kind != "f":
        what = f"is {column.dtype}{list(shape)}, expected real numbers [rows, costs]"
        return [Defect("cost", what, "give one number a row for each cost")]
    return [] if len(column) == rows else [_wrong_length("cost", len(column), rows)]


def _scalar_column(name: str, column: Any) -> list[Defect]:
    shape = np.shape(column)
    if len(shape) == 2 and shape[1] == 1:
        return [Defect(name, f"has shape {shape}, expected ({shape[0]},)", f"pass {name}[:, 0]")]
    if len(shape) != 1:
        return [Defect(name, f"has shape {shape}, expected (rows,)", "give one number a row")]
    kind = "b" if name != "reward" else "f"
    if column.dtype.kind != kind:
        expected = "booleans" if kind == "b" else "real numbers"
        return [Defect(name, f"holds {column.dtype}, expected {expected}", f"convert {name} before")]
    return []


def starts_column(starts: Any, rows: int) -> list[Defect]:
    """The defects of `starts` in a log of so many rows."""
    fix = "give the first row of each episode in order, from 0"
    if np.ndim(starts) != 1 or len(starts) == 0 or starts.dtype.kind not in "iu":
        return [Defect("starts", f"is {starts.dtype}{list(np.shape(starts))}, expected integers [episodes]", fix)]
    first = starts.astype(np.int64)
    outside = np.flatnonzero((first < 0) | (first >= rows))
    if len(outside):
        return [Defect.at("starts", outside, f"lies outside the {rows} rows of the log", fix)]
    if first[0] != 0:
        return [Defect("starts", f"begins at row {first[0]}, expected 0", fix)]
    backward = np.flatnonzero(np.diff(first) <= 0) + 1
    if len(backward):
        return [Defect.at("starts", backward, "does not increase: episodes overlap or have no length", fix)]
    return []


def _wrong_length(name: str, length: int, rows: int) -> Defect:
    return Defect(name, f"has {length} rows, but reward has {rows}", "give every column one row a step")


def _space_column(name: str, column: Any, space: spaces.Space, rows: int) -> list[Defect]:
    """A column against its space; the parts of Dict and Tuple spaces one by one."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts, found = _parts(space.spaces), _parts(column)
        if set(found) != set(parts):
            what = f"has the parts {list(found)}, expected {list(parts)}"
            return [Defect(name, what, "name them as its space does")]
        return [d for key, part in parts.items() for d in _space_column(f"{name}.{key}", found[key], part, rows)]
    if isinstance(column, (dict, tuple, list)):
        return [Defect(name, f"has several parts, but its space is {space}", "give one array, or a Dict space")]
    if column.dtype.kind not in "fiub":
        return [Defect(name, f"holds {column.dtype}, expected numbers", "convert it to numbers before")]
    shape, expected = tuple(column.shape), tuple(space.shape or ())
    if shape[1:] != expected:
        remedy = "reshape it, or pass the space it belongs to"
        if shape[1:] == () and expected == (1,):
            remedy = f"pass {name}[:, None]"
        elif shape[1:] == (1,) and expected == ():
            remedy = f"pass {name}[:, 0]"
        return [Defect(name, f"has shape {shape}, expected {(rows, *expected)}", remedy)]
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) and column.dtype.kind not in "iu":
        return [Defect(name, f"holds {column.dtype}, expected integers for {space}", "convert it to integers")]
    return [] if len(column) == rows else [_wrong_length(name, len(column), rows)]


def _parts(whole: Any) -> dict[Any, Any]:
    if isinstance(whole, Mapping):
        return dict(whole)
    return dict(enumerate(whole)) if isinstance(whole, tuple) else {}


def column_leaves(name: str, column: Any) -> list[tuple[str, Any]]:
    """The arrays of a column, with dotted names under `name`."""
    flat = jax.tree_util.tree_flatten_with_path({name: column})[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in flat]
