"""What files leave out of a log, made up for piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from habitus.data import infer
from habitus.data.stream import Piece, joined, rows_of


def completed(
    raw: Iterable[dict[str, Any]], starts: np.ndarray | None, meta: dict[str, Any], rows: int, finals: Any = None
) -> Iterator[Piece]:
    """Rows of which something is left out, made whole as `Dataset.from_arrays` does it.

    Args:
        raw: columns by name, piece by piece; `truncated` and `next_obs` may be missing.
        starts: the first row of each episode, or None where the flags tell.
        meta: `dropped_rows` is added to it, if rows without a successor had to go.
        rows: how many there are.
        finals: what follows the last row of each episode, [episodes, ...], if that is known apart.
    """
    held: dict[str, Any] | None = None
    state = _Completion(None if starts is None else np.append(starts, rows), finals)
    for chunk in raw:
        plain = _plain(chunk)
        here = plain if held is None else joined([held, plain])
        piece = state.advance(here, last=False)
        held = rows_of(here, slice(-1, None))
        if len(piece):
            yield piece
    if held is not None and len(piece := state.advance(held, last=True)):
        yield piece
    if state.dropped:
        meta["dropped_rows"] = state.dropped


def _plain(chunk: dict[str, Any]) -> dict[str, Any]:
    """A piece of a file with flags as booleans, rewards and costs as float32."""
    out = dict(chunk)
    for name in {"terminated", "truncated"} & set(chunk):
        out[name] = infer.flags(chunk[name])
    if chunk["reward"].dtype.kind in "iuf":
        out["reward"] = chunk["reward"].astype(np.float32, copy=False)
    if "cost" in chunk:
        out["cost"] = infer.costs(chunk["cost"])
    return out


class _Completion:
    """Knows of each row, once the next one is there, whether it ends an episode, and what follows it."""

    def __init__(self, bounds: np.ndarray | None, finals: Any):
        self._bounds, self._finals = bounds, finals
        self._row = 0  # of the log, at which the rows in hand begin
        self._begins = True  # whether an episode begins with the first of them
        self.dropped = 0

    def advance(self, rows: dict[str, Any], last: bool) -> Piece:
        """All rows in hand, or all but one that has to wait for its successor."""
        size = len(rows["reward"])
        terminated, end, truncated = self._flags(rows, size, last)
        known, next_obs = np.ones(size, bool), rows.get("next_obs")
        if next_obs is None:
            after = np.minimum(np.arange(size) + 1, size - 1)
            after[end] = np.flatnonzero(end)
            next_obs = jax.tree.map(lambda leaf: leaf[after], rows["obs"])
            if self._finals is None:
                known = ~end | terminated
            else:
                self._put_finals(next_obs, np.flatnonzero(end))
            cut = np.flatnonzero(~known[1:] & ~end[:-1])
            truncated[cut] = truncated[cut + 1]
        whole = rows | {"truncated": truncated, "next_obs": next_obs}
        count = size if last else size - 1
        keep = known[:count]
        first = np.concatenate([[self._begins], end])[:count]
        self.dropped += int(count - keep.sum())
        if count:
            self._begins = bool(end[count - 1])
        self._row += count
        picked = slice(0, count) if keep.all() else np.flatnonzero(keep)
        return Piece(rows_of(whole, picked), np.flatnonzero(first[keep]))

    def _put_finals(self, next_obs: Any, ends: np.ndarray) -> None:
        assert self._bounds is not None
        episodes = np.searchsorted(self._bounds, self._row + ends, side="right") - 1
        for leaf, final in zip(jax.tree.leaves(next_obs), jax.tree.leaves(self._finals), strict=True):
            leaf[ends] = final[episodes]

    def _flags(self, rows: dict[str, Any], size: int, last: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        terminated, given = rows["terminated"], "truncated" in rows
        truncated = np.array(rows["truncated"]) if given else np.zeros(size, bool)
        if not given and self._bounds is None and "next_obs" in rows:
            truncated = infer.breaks(rows["obs"], rows["next_obs"]) & ~terminated
        after = self._row + 1 + np.arange(size)
        end = terminated | truncated if self._bounds is None else np.isin(after, self._bounds)
        if not given and self._bounds is not None:
            truncated |= end & ~terminated & (after != self._bounds[-1])  # the log may stop within its last episode
        end[-1] |= last
        return terminated, end, truncated
