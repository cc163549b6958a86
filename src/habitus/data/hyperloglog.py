"""Counting distinct things in fixed memory, over data that arrive in parts."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8, UInt64

from habitus.core.errors import ConfigError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_rows(words: UInt64[np.ndarray, "rows words"], seed: int = 0) -> UInt64[np.ndarray, "rows"]:
    """A 64-bit hash of each row: equal rows have equal ones, others differ but for odds of 2^-64.

    Each word goes through the finaliser of SplitMix64 (Steele et al., 2014), chained.
    """
    out = np.full(len(words), _mix(np.full(1, seed, np.uint64) + _GOLDEN)[0], np.uint64)
    for column in words.T:
        out = _mix((out ^ column) + _GOLDEN)
    return out


def _mix(x: UInt64[np.ndarray, "rows"]) -> UInt64[np.ndarray, "rows"]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class HyperLogLog:
    """An estimate of how many distinct hashes were added (Flajolet et al., 2007).

    The standard error is 1.04 / sqrt(2^precision): 0.8% for the 16,384 registers of precision 14.

    Attributes:
        registers: for each bucket of hashes, the longest run of leading zeros seen, plus one.
    """

    def __init__(self, precision: int = 14):
        if not 11 <= precision <= 18:
            raise ConfigError(f"precision is {precision}, expected 11 to 18.")
        self.precision = precision
        self.registers: UInt8[np.ndarray, "buckets"] = np.zeros(2**precision, np.uint8)

    def add(self, hashes: UInt64[np.ndarray, "rows"]) -> None:
        """Takes in some hashes; the order and repetitions make no difference."""
        rest = 64 - self.precision
        bucket = (hashes >> np.uint64(rest)).astype(np.int64)
        low = hashes & np.uint64(2**rest - 1)
        bits = np.frexp(low.astype(np.float64))[1]  # of at most 53, so that the conversion is exact
        np.maximum.at(self.registers, bucket, (rest - bits + 1).astype(np.uint8))

    def merge(self, other: HyperLogLog) -> HyperLogLog:
        """The counter of everything that either has seen."""
        if self.precision != other.precision:
            raise ConfigError(f"counters of precision {self.precision} and {other.precision} cannot be merged.")
        union = HyperLogLog(self.precision)
        union.registers = np.maximum(self.registers, other.registers)
        return union

    def count(self) -> float:
        """The estimate; below 2.5 times the registers, from how many of them are still empty."""
        size = len(self.registers)
        alpha = 0.7213 / (1 + 1.079 / size)
        estimate = alpha * size**2 / np.ldexp(1.0, -self.registers.astype(np.int64)).sum()
        empty = int((self.registers == 0).sum())
        return float(size * np.log(size / empty) if estimate <= 2.5 * size and empty else estimate)
