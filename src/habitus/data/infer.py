"""What a log leaves unsaid: its spaces, its episodes, the successors of its observations."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Int

from habitus.core.errors import DataError


def observation_space_of(obs: Any, next_obs: Any = None) -> spaces.Space:
    """The space of logged observations [rows, ...].

    A dict or tuple of columns is a Dict or Tuple space. Integers [rows] are states of a
    Discrete space that ends at the greatest one seen, also as a successor; bytes [rows, height, width, channels] are
    images; anything else is an unbounded Box.

    Raises:
        DataError: for real numbers [rows], which may mean one feature or a flattened table.
    """
    if isinstance(obs, dict):
        named = next_obs if isinstance(next_obs, dict) else {}
        return spaces.Dict({name: observation_space_of(part, named.get(name)) for name, part in obs.items()})
    if isinstance(obs, tuple):
        after = next_obs if isinstance(next_obs, tuple) and len(next_obs) == len(obs) else (None,) * len(obs)
        return spaces.Tuple([observation_space_of(*parts) for parts in zip(obs, after, strict=True)])
    _require_numbers(obs, "obs")
    if obs.ndim == 1 and obs.dtype.kind in "iu":
        also = next_obs if getattr(next_obs, "ndim", 0) == 1 and next_obs.dtype.kind in "iu" else obs[:0]
        return _discrete(np.concatenate([obs, also]), "obs")
    if obs.ndim == 1:
        raise DataError(f"obs has shape {obs.shape}, expected [rows, features]: for one feature pass obs[:, None].")
    if obs.ndim == 4 and obs.dtype == np.uint8:
        return spaces.Box(0, 255, obs.shape[1:], np.uint8)
    return spaces.Box(-np.inf, np.inf, obs.shape[1:], np.float32)


def action_space_of(action: np.ndarray) -> spaces.Space:
    """The space of logged actions.

    Integers [rows] are Discrete, integers [rows, dimensions] MultiDiscrete, each ending at the
    greatest value seen. Real numbers [rows, dimensions] are a Box: [-1, 1] where every action lies
    in it, else from the least to the greatest value seen in each dimension.

    Raises:
        DataError: for real numbers [rows], or for anything that is not finite.
    """
    _require_numbers(action, "action")
    if action.dtype.kind in "iu":
        return _discrete(action, "action") if action.ndim == 1 else _multi_discrete(action)
    if action.ndim == 1:
        shape = action.shape
        raise DataError(f"action has shape {shape}, expected [rows, dimensions]: pass action[:, None], or integers.")
    low, high = action.min(0).astype(np.float32), action.max(0).astype(np.float32)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        row = int(np.argmin(np.isfinite(action).reshape(len(action), -1).all(1)))
        raise DataError(f"action holds NaN or Inf (row {row}); remove the episode, or give the action_space.")
    if (low >= -1).all() and (high <= 1).all():
        return spaces.Box(-1, 1, action.shape[1:], np.float32)
    constant = low == high  # a Box of no width cannot be scaled
    return spaces.Box(low - constant, high + constant, dtype=np.float32)


def _require_numbers(column: np.ndarray, name: str) -> None:
    if column.dtype.kind not in "fiub" or column.ndim == 0 or len(column) == 0:
        what = f"{column.dtype}{list(column.shape)}"
        raise DataError(f"{name} holds {what}, expected at least one row of numbers; convert it before.")


def _discrete(column: np.ndarray, name: str) -> spaces.Discrete:
    if column.min() < 0:
        row = int(column.argmin())
        raise DataError(f"{name} is {column[row]} at row {row}, expected integers from 0; or give the {name} space.")
    return spaces.Discrete(int(column.max()) + 1)


def _multi_discrete(action: np.ndarray) -> spaces.MultiDiscrete:
    if action.min() < 0:
        raise DataError("action holds negative integers, expected integers from 0; or give the action_space.")
    return spaces.MultiDiscrete(action.max(0).astype(np.int64) + 1)


def arrays(column: Any) -> Any:
    """Lists and the like as arrays, inside dicts and tuples too; memory maps stay what they are."""
    if isinstance(column, dict):
        return {name: arrays(part) for name, part in column.items()}
    if isinstance(column, tuple):
        return tuple(arrays(part) for part in column)
    return None if column is None else np.asanyarray(column)


def flags(column: Any) -> np.ndarray:
    """Flags as booleans where they are 0 and 1; anything else is left for the checks to name."""
    column = np.asanyarray(column)
    zero_one = column.dtype.kind in "iuf" and bool(np.isin(column, (0, 1)).all())
    return column.astype(bool) if zero_one else column


def costs(column: Any) -> np.ndarray:
    """Costs as float32 [rows, costs] where they are numbers; a single one may come as [rows]."""
    column = np.asanyarray(column)
    if column.dtype.kind in "iufb":
        column = column.astype(np.float32, copy=False)
    return column[:, None] if column.ndim == 1 else column


def starts_of(done: Bool[np.ndarray, "rows"]) -> Int[np.ndarray, "episodes"]:
    """The first row of each episode, given where episodes end."""
    return np.concatenate([[0], np.flatnonzero(done[:-1]) + 1]).astype(np.int64)


def breaks(obs: Any, next_obs: Any) -> Bool[np.ndarray, "rows"]:
    """Where the recorded successor is not the next row's observation, so that an episode must have ended."""
    out = np.zeros(len(jax.tree.leaves(obs)[0]), bool)
    for now, after in zip(jax.tree.leaves(obs), jax.tree.leaves(next_obs), strict=True):
        differs = np.asarray(now[1:]) != np.asarray(after[:-1])
        out[:-1] |= differs.any(tuple(range(1, differs.ndim)))
    return out


def shifted(
    obs: Any, terminated: Bool[np.ndarray, "rows"], ends: Int[np.ndarray, "episodes"]
) -> tuple[Any, Bool[np.ndarray, "rows"]]:
    """Successors taken from the next row, and which rows have one.

    The successor of a terminal row was not recorded and is worth nothing to a value: its own
    observation stands in for it. The last row of an episode that did not terminate has a successor
    that matters and is unknown: it is no transition, and must be dropped.
    """
    after = np.minimum(np.arange(len(terminated)) + 1, len(terminated) - 1)
    after[ends] = ends
    known = np.ones(len(terminated), bool)
    known[ends] = terminated[ends]
    return jax.tree.map(lambda leaf: np.asarray(leaf)[after], obs), known
