"""Statistics of a column, in one pass over it, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from habitus.data.canonical import CHUNK

PIECE_BYTES = 2**24  # of the pieces that a column is read in


class Summary(NamedTuple):
    """Of each feature of a column [rows, *feature]: extremes, mean and population standard deviation, float64."""

    low: Float[np.ndarray, "*feature"]
    high: Float[np.ndarray, "*feature"]
    mean: Float[np.ndarray, "*feature"]
    std: Float[np.ndarray, "*feature"]


def pieces(column: Any) -> Iterator[np.ndarray]:
    """A column in memory piece by piece."""
    row = int(np.prod(column.shape[1:], dtype=object)) * column.dtype.itemsize
    step = max(1, min(CHUNK, PIECE_BYTES // max(1, row)))
    for start in range(0, len(column), step):
        yield np.asarray(column[start : start + step])


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


class Moments:
    """Extremes, mean and spread of samples [rows, *feature] that come in parts.

    Attributes:
        count: how many came so far.
        low, high, mean: of each feature, float64.
    """

    def __init__(self) -> None:
        self.count = 0
        self.low = self.high = self.mean = self._squares = np.zeros(())

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation."""
        return np.sqrt(self._squares / self.count)

    def add(self, samples: np.ndarray) -> None:
        """Takes samples, at least one."""
        part = Moments()
        part.count, part.mean = len(samples), samples.mean(0, dtype=np.float64)
        part.low, part.high = (np.asarray(x, np.float64) for x in (samples.min(0), samples.max(0)))
        part._squares = np.square(samples - part.mean).sum(0)
        self.merge(part)

    def merge(self, other: Moments) -> None:
        """Takes the samples that another has taken (Chan, Golub and LeVeque 1983)."""
        if self.count == 0:
            self.__dict__ |= other.__dict__
            return
        total, gap = self.count + other.count, other.mean - self.mean
        self._squares = self._squares + other._squares + np.square(gap) * self.count * other.count / total
        self.mean = self.mean + gap * other.count / total
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.count = total
