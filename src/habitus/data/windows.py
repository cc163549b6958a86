"""Windows of a log that lie within one episode, for models of whole stretches of time."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from habitus.core.domains import require
from habitus.core.errors import DataError
from habitus.data.dataset import Dataset


def window_starts(log: Dataset, length: int, stride: int = 1) -> Int[np.ndarray, "windows"]:
    """First rows of the windows of `length` consecutive rows of one episode.

    Of all such windows, in the order of the log, every `stride`-th; and of each episode the first, and the one
    that ends where it terminates.

    Raises:
        ConfigError: if `length` or `stride` is below 1.
        DataError: if no episode is long enough.
    """
    require(length >= 1 and stride >= 1, f"length is {length} and stride {stride}; both must be 1 or more.")
    last = np.repeat(log.ends, log.lengths)
    rows = np.arange(len(log))
    whole = rows[rows + length - 1 <= last]
    if len(whole) == 0:
        raise DataError(
            f"{log.name} has no episode of {length} steps, the longest has {log.lengths.max()}; use shorter windows."
        )
    long = log.lengths >= length
    final = log.ends[long & np.asarray(log.terminated)[log.ends]] - length + 1
    return np.unique(np.concatenate([whole[::stride], log.starts[long], final]))
