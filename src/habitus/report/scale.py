"""From values to places on a chart: ranges, ticks, and numbers as people write them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

MINUS = "\N{MINUS SIGN}"


@dataclasses.dataclass(frozen=True)
class Scale:
    """Where values lie between the ends of an axis.

    Attributes:
        low, high: values at the ends, `low < high`; above 0 if `log`.
        log: whether equal ratios, not equal differences, take equal room.
    """

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], margin: float = 0.06, log: bool = False) -> Scale:
        """The scale that shows all finite `values` with some air."""
        finite = np.array([v for v in values if math.isfinite(v)])
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        if log:
            air = (high / low) ** margin if high > low else 2.0
            return cls(low / air, high * air, True)
        air = (high - low) * margin or abs(high) * 0.1 or 1.0
        return cls(low - air, high + air)

    def place(self, values: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """Places in [0, 1]; outside it for values outside the range."""
        if not self.log:
            return np.asarray((values - self.low) / (self.high - self.low))
        return np.asarray(np.log(np.maximum(values, 1e-300) / self.low) / math.log(self.high / self.low))

    def at(self, value: float) -> float:
        """Place of one value."""
        return float(self.place(np.asarray(value, dtype=float)))

    def ticks(self, most: int = 5) -> list[float]:
        """At most about `most` round values within the range."""
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            stride = max(1, math.ceil((last - first + 1) / most))
            return [10.0**k for k in range(first, last + 1, stride)]
        rough = (self.high - self.low) / most
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * (1 - 1e-9))
        return [k * step for k in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def wants_log(values: Float[np.ndarray, " n"]) -> bool:
    """Whether values are all positive and spread over more than two and a half decades."""
    finite = values[np.isfinite(values)]
    return bool(finite.size and finite.min() > 0 and finite.max() / finite.min() > 10**2.5)


UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def number(value: float, figures: int = 4) -> str:
    """A number as text: few figures, thousands from ten on as k, M and G, a true minus."""
    if not math.isfinite(value):
        return "\N{EM DASH}"
    size = abs(value)
    if size >= 1e12 or 0 < size < 1e-3:
        mantissa, exponent = f"{value:.{figures - 1}e}".split("e")
        return _shorten(mantissa) + f"e{int(exponent)}".replace("-", MINUS)
    unit, name = (1.0, "") if size < 1e4 else _unit(size)
    return _round(value / unit, figures) + name


def labels(ticks: Sequence[float]) -> list[str]:
    """Ticks of an axis as text, all in the same unit."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if not 1e4 <= largest < 1e12:
        return [number(tick) for tick in ticks]
    unit, name = _unit(largest)
    return [_round(tick / unit, 4) + name if tick else "0" for tick in ticks]


def _unit(size: float) -> tuple[float, str]:
    return next((unit, name) for unit, name in UNITS if size >= unit)


def _round(value: float, figures: int) -> str:
    decimals = max(figures - 1 - math.floor(math.log10(abs(value))), 0) if value else 0
    return _shorten(f"{value:.{decimals}f}")


def _shorten(text: str) -> str:
    """Without zeros that say nothing, and with a true minus."""
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", MINUS)


def duration(seconds: float) -> str:
    """Wall time as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def count(many: int, what: str) -> str:
    """A number of things, in words."""
    return f"{many} {what}{'s' if many != 1 else ''}"
