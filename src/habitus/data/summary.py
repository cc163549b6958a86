"""Statistics of a column, in one pass over it, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from habitus.data.canonical import CHUNK


class Summary(NamedTuple):
    """Of each feature of a column [rows, *feature]: extremes, mean and population standard deviation, float64."""

    low: Float[np.ndarray, "*feature"]
    high: Float[np.ndarray, "*feature"]
    mean: Float[np.ndarray, "*feature"]
    std: Float[np.ndarray, "*feature"]


def pieces(column: Any) -> Iterator[np.ndarray]:
    """A column in memory piece by piece."""
    for start in range(0, len(column), CHUNK):
        yield np.asarray(column[start : start + CHUNK])


def summarise(column: Any) -> Summary:
    """The summary of a column, which may lie on disk."""
    shift = np.asarray(column[0], np.float64)  # keeps the squares small where the mean is large
    low, high, total, square = shift, shift, 0 * shift, 0 * shift
    for piece in pieces(column):
        low, high = np.minimum(low, piece.min(0)), np.maximum(high, piece.max(0))
        centred = piece - shift
        total, square = total + centred.sum(0), square + np.square(centred).sum(0)
    mean = total / len(column)
    variance = np.maximum(square / len(column) - np.square(mean), 0)
    return Summary(*(np.asarray(x, np.float64) for x in (low, high, mean + shift, np.sqrt(variance))))
