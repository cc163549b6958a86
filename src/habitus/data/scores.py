"""Returns on the scale from a random policy (0) to an expert (100)."""

from __future__ import annotations

from typing import Any

import numpy as np

from habitus.core.errors import DataError, UnknownName, suggest
from habitus.data.dataset import Dataset
from habitus.data.formats.d4rl import REFERENCES
from habitus.data.maker import TASKS, references


def reference_returns(of: Dataset | str) -> tuple[float, float]:
    """The returns of a random and of an expert policy, of a data set or of a task by name.

    Raises:
        DataError: if the data set names none, or they are equal.
        UnknownName: if no references are known for the task.
    """
    if isinstance(of, Dataset):
        if not {"random_return", "expert_return"} <= of.meta.keys():
            raise DataError(f"{of.name} names no reference returns; add random_return and expert_return to its meta.")
        low, high = float(of.meta["random_return"]), float(of.meta["expert_return"])
        if low == high:
            raise DataError(f"{of.name}: random_return and expert_return are both {low}, so nothing lies between them.")
        return low, high
    if of in TASKS:
        return references(of)
    if of in REFERENCES:
        return REFERENCES[of]
    raise UnknownName(f"no reference returns are known for {of!r}: {suggest(of, [*TASKS, *REFERENCES])}")


def normalised_score(of: Dataset | str, returns: Any) -> np.ndarray:
    """100 (R - R_random) / (R_expert - R_random) of each of `returns`, any shape; see `reference_returns`."""
    low, high = reference_returns(of)
    return np.asarray(100 * (np.asarray(returns, np.float64) - low) / (high - low))
