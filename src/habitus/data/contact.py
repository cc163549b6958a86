"""Phases of contact in demonstrations, and what a change of task asks for in each.

M. Li et al., "SwitchVLA: Execution-Aware Task Switching for Vision-Language-Action Models", arXiv 2506.03574.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from habitus.core.domains import require
from habitus.core.errors import DataError
from habitus.data.dataset import Dataset

FORWARD, ROLLBACK, ADVANCE = 0, 1, 2
BEFORE, DURING, AFTER = 0, 1, 2


def behaviour_of(
    previous: Int[np.ndarray, "*rows"], current: Int[np.ndarray, "*rows"], contact: Bool[np.ndarray, "*rows"]
) -> Int[np.ndarray, "*rows"]:
    """What to do: go on (`FORWARD`) where the task is the same; else undo in contact (`ROLLBACK`), or go to the new
    task's start (`ADVANCE`)."""
    return np.where(previous == current, FORWARD, np.where(contact, ROLLBACK, ADVANCE))


def without_flicker(log: Dataset, contact: Bool[np.ndarray, "rows"], shortest: int = 2) -> Bool[np.ndarray, "rows"]:
    """Contact flags of a log without runs of fewer than `shortest` rows in the midst of an episode.

    Such a run takes the value of the one before it. The first and the last run of an episode stay as they are.

    Raises:
        ConfigError: if `shortest` is below 1.
        DataError: if there is not one flag a row.
    """
    require(shortest >= 1, f"the shortest run must be 1 row or more, but is {shortest}.")
    _check_flags(log, contact)
    cleaned = np.array(contact)
    for start, end in zip(log.starts, log.ends + 1, strict=True):
        begin = start
        while begin < end:
            differs = np.flatnonzero(cleaned[begin:end] != cleaned[begin])
            stop = begin + differs[0] if len(differs) else end
            if stop - begin < shortest and begin > start and stop < end:
                cleaned[begin:stop] = cleaned[begin - 1]
            begin = stop
    return cleaned


def phases(log: Dataset, contact: Bool[np.ndarray, "rows"]) -> Int[np.ndarray, "rows"]:
    """For each row `BEFORE` its episode's first contact, `DURING` one, or `AFTER` the first without being in one.

    Raises:
        DataError: if there is not one flag a row.
    """
    _check_flags(log, contact)
    total = np.cumsum(contact)
    earlier = total - np.repeat(total[log.starts] - contact[log.starts], log.lengths)
    return np.where(contact, DURING, np.where(earlier > 0, AFTER, BEFORE))


def _check_flags(log: Dataset, contact: Bool[np.ndarray, "rows"]) -> None:
    if contact.shape != (len(log),):
        raise DataError(f"contact has shape {contact.shape}, expected ({len(log)},), a flag for each row of the log.")
