"""A log on its way from one file to another, a bounded number of rows at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gymnasium import spaces
from jaxtyping import Int

from habitus.core.errors import DataError
from habitus.data import infer
from habitus.data.canonical import CHUNK
from habitus.data.dataset import Dataset
from habitus.data.defects import Defect, column_leaves, raise_errors, structure
from habitus.data.formats import guard
from habitus.data.summary import PIECE_BYTES
from habitus.data.validate import check, values


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """Consecutive rows of a log, which may begin or stop in the middle of an episode.

    Attributes:
        columns: those of a `Dataset` by name, `starts` left out; arrays [rows, ...].
        starts: the rows of this piece at which episodes begin.
    """

    columns: dict[str, Any]
    starts: Int[np.ndarray, "episodes"]

    def __len__(self) -> int:
        return len(self.columns["reward"])

    def parts(self) -> Iterator[tuple[bool, dict[str, Any]]]:
        """The rows of one episode after the other, and whether it begins here."""
        bounds = np.unique([0, *self.starts, len(self)])
        first = set(self.starts.tolist())
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            yield start in first, rows_of(self.columns, slice(start, stop))


def rows_of(columns: dict[str, Any], rows: Any) -> dict[str, Any]:
    """Some rows of every column."""
    return {name: jax.tree.map(lambda leaf: np.asarray(leaf[rows]), column) for name, column in columns.items()}


def joined(parts: list[Any]) -> Any:
    """Columns, or dicts of them, one after the other."""
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def shaped(column: Any, space: spaces.Space | None) -> Any:
    """A column of named parts, as tuples where its space has tuples."""
    if isinstance(space, spaces.Dict) and isinstance(column, dict):
        return {key: shaped(part, space.spaces.get(key)) for key, part in column.items()}
    if isinstance(space, spaces.Tuple) and isinstance(column, dict):
        return tuple(shaped(column[str(i)], part) for i, part in enumerate(space.spaces))
    return column


def step_of(leaves: Iterable[Any]) -> int:
    """How many rows of these columns make a piece."""
    row = sum(int(np.prod(leaf.shape[1:], dtype=object)) * leaf.dtype.itemsize for leaf in leaves)
    return max(1, min(CHUNK, PIECE_BYTES // max(1, row)))


@dataclasses.dataclass(eq=False)
class Stream:
    """A log that is read once, piece by piece.

    Attributes:
        pieces: of the log in order; whatever goes wrong in them is raised as a `DataError` that names `path`.
        path: where the log comes from, for messages.
        observation_space: of one observation; where the file does not tell, None until the last piece was read.
        action_space: of one action; likewise.
        meta: what is known of the origin; complete once the last piece was read.
        rows: how many rows there will be, as the file says, or None.
    """

    pieces: Iterator[Piece]
    path: Path
    observation_space: spaces.Space | None = None
    action_space: spaces.Space | None = None
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: int | None = None

    @classmethod
    def of(cls, dataset: Dataset) -> Stream:
        """A data set, piece by piece."""
        leaves = [leaf for name, column in dataset.columns.items() for _, leaf in column_leaves(name, column)]
        step = step_of(leaves)

        def pieces() -> Iterator[Piece]:
            for first in range(0, len(dataset), step):
                begin, end = np.searchsorted(dataset.starts, (first, first + step))
                yield Piece(rows_of(dataset.columns, slice(first, first + step)), dataset.starts[begin:end] - first)

        origin = (dataset.observation_space, dataset.action_space, dict(dataset.meta))
        return cls(pieces(), Path(dataset.name), *origin, len(dataset))

    def __iter__(self) -> Iterator[Piece]:
        with guard.reading(self.path):
            like: list[Any] = []
            seen: dict[str, Any] = {}
            for piece in self.pieces:
                if not like:
                    self._check_first(piece)
                    like = _described(piece)
                elif _described(piece) != like:
                    raise DataError(f"its columns change: {_described(piece)} after {like}; make them alike.")
                _extend(seen, piece, [n for n in ("obs", "next_obs", "action") if self._space(n) is None])
                yield piece
            if not like:
                raise DataError("it holds no row that has a successor; a log needs one.")
            if "obs" in seen:
                self.observation_space = infer.observation_space_of(seen["obs"], seen["next_obs"])
            if "action" in seen:
                self.action_space = infer.action_space_of(seen["action"])

    def _space(self, name: str) -> spaces.Space | None:
        return self.action_space if name == "action" else self.observation_space

    def _check_first(self, piece: Piece) -> None:
        known = self.observation_space or infer.observation_space_of(piece.columns["obs"], piece.columns["next_obs"])
        acted = self.action_space or infer.action_space_of(piece.columns["action"])
        raise_errors(structure(piece.columns | {"starts": np.zeros(1, np.int64)}, known, acted), "the data set")

    def checked(self) -> Stream:
        """The same log, each piece looked at for the errors that `validate.check` finds, warnings left out."""
        return dataclasses.replace(self, pieces=self._checked(self.pieces))

    def _checked(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        row, done = 0, np.ones(1, bool)
        for piece in pieces:
            found = values(piece.columns, self.observation_space, self.action_space)
            starts = np.isin(np.arange(len(piece)), piece.starts)
            ended = piece.columns["terminated"] | piece.columns["truncated"]
            before = np.concatenate([done, ended[:-1]])
            found += _ends(np.flatnonzero(before & ~starts) - 1, np.flatnonzero(starts & ~before) - 1)
            raise_errors([dataclasses.replace(d, rows=tuple(r + row for r in d.rows)) for d in found], "the data set")
            row, done = row + len(piece), ended[-1:]
            yield piece

    def watched(self, report: Any) -> Stream:
        """The same log; `report(rows)` is called with the size of each piece once it was taken."""

        def pieces() -> Iterator[Piece]:
            for piece in self.pieces:
                yield piece
                report(len(piece))

        return dataclasses.replace(self, pieces=pieces())

    def gather(self, limit: int | None = None, validate: bool = True) -> Dataset:
        """The whole log in memory.

        Raises:
            DataError: if it takes more than `limit` bytes (by default 8 GiB), or is malformed.
        """
        parts, starts, row, size = [], [], 0, 0
        for piece in self:
            size += sum(leaf.nbytes for leaf in jax.tree.leaves(piece.columns))
            with guard.reading(self.path):
                guard.require_size(size, limit or guard.LIMIT)
            parts.append(dict(piece.columns))
            starts.append(piece.starts + row)
            row += len(piece)
        columns = {name: joined([part.pop(name) for part in parts]) for name in list(parts[0])}
        assert self.observation_space is not None and self.action_space is not None
        with guard.reading(self.path):
            made = Dataset(
                **columns,
                starts=np.concatenate(starts),
                observation_space=self.observation_space,
                action_space=self.action_space,
                meta=self.meta,
            )
            raise_errors(check(made) if validate else [], made.name)
        return made


def _described(piece: Piece) -> list[Any]:
    leaves = [leaf for name, column in sorted(piece.columns.items()) for leaf in column_leaves(name, column)]
    return [(name, str(leaf.dtype), leaf.shape[1:]) for name, leaf in leaves]


def _extend(seen: dict[str, Any], piece: Piece, names: list[str]) -> None:
    """Keeps the least and the greatest value of each feature: all that spaces are inferred from."""
    for name in names:
        column = piece.columns[name]
        both = column if name not in seen else jax.tree.map(lambda *x: np.concatenate(x), seen[name], column)
        seen[name] = jax.tree.map(lambda leaf: np.stack([leaf.min(0), leaf.max(0)]), both)


def _ends(inside: np.ndarray, silent: np.ndarray) -> list[Defect]:
    found = []
    if len(inside):
        what, fix = "ends an episode that `starts` says goes on", "correct starts, or the flags of these rows"
        found.append(Defect.at("terminated", inside, what, fix))
    if len(silent):
        what = "stops an episode that neither terminated nor was truncated"
        found.append(Defect.at("truncated", silent, what, "set terminated or truncated there"))
    return found


class Chain:
    """Follows a log whose format stores each observation once, and refuses what such a format would lose.

    Attributes:
        episode: which one the last rows belonged to.
        steps: rows of it so far.
        total: rows of all.
        final: what follows its last row, [1, ...].
    """

    def __init__(self, remedy: str):
        self.episode, self.steps, self.total = -1, 0, 0
        self.final: Any = None
        self._remedy = remedy

    def follow(self, begins: bool, rows: dict[str, Any]) -> None:
        """Takes the next rows of an episode.

        Raises:
            DataError: if a successor is not the observation of the row after it.
        """
        if begins:
            self.episode, self.steps = self.episode + 1, 0
        before = rows["next_obs"] if begins else joined([self.final, rows["next_obs"]])
        offset = 1 if begins else 0  # the first row of an episode follows nothing
        for now, after in zip(jax.tree.leaves(rows["obs"]), jax.tree.leaves(before), strict=True):
            now = now[offset:]
            differs = now != after[: len(now)]
            broken = np.flatnonzero(differs.any(tuple(range(1, differs.ndim))))
            if len(broken):
                step = self.steps + int(broken[0]) + offset - 1
                raise DataError(
                    f"episode {self.episode}, step {step}: the successor is not the next observation, and "
                    f"{self._remedy}."
                )
        self.final = jax.tree.map(lambda leaf: leaf[-1:], rows["next_obs"])
        self.steps += len(rows["reward"])
        self.total += len(rows["reward"])
