"""The operators over time, each with its robustness in discrete time."""

from __future__ import annotations

import abc
import math

import equinox as eqx
from jaxtyping import Array, Float

from habitus.core.domains import require
from habitus.core.errors import DataError
from habitus.core.stl.expressions import Trace
from habitus.core.stl.extremes import Extremes
from habitus.core.stl.formulas import Formula, furthest


class _Timed(Formula):
    """An operator over the steps `t + start` to `t + end`, both included; without an end, to that of the trace."""

    @property
    @abc.abstractmethod
    def interval(self) -> tuple[int, int | None]:
        """`start` and `end`."""

    def __check_init__(self) -> None:
        start, end = self.interval
        whole = isinstance(start, int) and isinstance(end, int | None)
        require(
            whole and start >= 0 and (end is None or end >= start),
            f"an interval is two whole numbers 0 <= start <= end, or has no end, but is [{start}, {end}].",
        )

    def _width(self, steps: int) -> int:
        start, end = self.interval
        return steps if end is None else end - start + 1

    def _count(self, steps: int) -> int:
        """The greatest number of steps that a window holds."""
        return max(1, min(self._width(steps), steps - self.interval[0]))

    def _last(self, latest: int, steps: int) -> int:
        """The last step that a window asked for at `latest` looks at. Raises `DataError` if it is empty."""
        start, end = self.interval
        if latest + start >= steps:
            raise DataError(
                f"{self} is asked for at step {latest} and looks {start} steps ahead, but the trace has {steps} "
                "steps: give a longer one, bound the intervals around it, or allow empty windows (strict=False)."
            )
        return steps - 1 if end is None else min(latest + end, steps - 1)

    def _within(self) -> str:
        start, end = self.interval
        return "" if (start, end) == (0, None) else f"[{start},{'inf' if end is None else end}]"


class _Quantified(_Timed):
    part: Formula
    start: int = eqx.field(static=True, default=0)
    end: int | None = eqx.field(static=True, default=None)

    @property
    def interval(self) -> tuple[int, int | None]:
        return self.start, self.end

    @property
    def horizon(self) -> int | None:
        inner = self.part.horizon
        return None if inner is None or self.end is None else self.end + inner

    def check_reach(self, latest: int, steps: int) -> None:
        self.part.check_reach(self._last(latest, steps), steps)


class Always(_Quantified):
    """`min_{start <= k <= end} r(t + k)`."""

    def signal(self, trace: Trace, extremes: Extremes, steps: int) -> Float[Array, "time"]:
        return extremes.least(self.part.signal(trace, extremes, steps), self.start, self._width(steps))

    def first(self, trace: Trace, extremes: Extremes, steps: int) -> Float[Array, ""]:
        return -extremes.greatest_of(-self.part.signal(trace, extremes, steps), self.start, self._width(steps))

    def log_terms(self, steps: int) -> tuple[float, float]:
        below, above = self.part.log_terms(steps)
        return below + math.log(self._count(steps)), above

    def __str__(self) -> str:
        return f"(always{self._within()} {self.part})"


class Eventually(_Quantified):
    """`max_{start <= k <= end} r(t + k)`."""

    def signal(self, trace: Trace, extremes: Extremes, steps: int) -> Float[Array, "time"]:
        return extremes.greatest(self.part.signal(trace, extremes, steps), self.start, self._width(steps))

    def first(self, trace: Trace, extremes: Extremes, steps: int) -> Float[Array, ""]:
        return extremes.greatest_of(self.part.signal(trace, extremes, steps), self.start, self._width(steps))

    def log_terms(self, steps: int) -> tuple[float, float]:
        below, above = self.part.log_terms(steps)
        return below, above + math.log(self._count(steps))

    def __str__(self) -> str:
        return f"(eventually{self._within()} {self.part})"


class Until(_Timed):
    """`max_{start <= k <= end} min(r_right(t + k), min_{0 <= j < k} r_left(t + j))`.

    `left` holds at every step before the one at which `right` does; it need not hold at that one. Where it must, say
    `left until (left and right)`. Exact, it costs O(T log T); smooth, O(T w) for an interval of w steps.
    """

    left: Formula
    right: Formula
    start: int = eqx.field(static=True, default=0)
    end: int | None = eqx.field(static=True, default=None)

    @property
    def interval(self) -> tuple[int, int | None]:
        return self.start, self.end

    def signal(self, trace: Trace, extremes: Extremes, steps: int) -> Float[Array, "time"]:
        held, goal = (part.signal(trace, extremes, steps) for part in (self.left, self.right))
        return extremes.until(held, goal, self.start, self._width(steps))

    @property
    def horizon(self) -> int | None:
        if self.end is None:
            return None
        inner = self.right.horizon, self.left.horizon
        return furthest(*(None if h is None else self.end - i + h for i, h in enumerate(inner)))

    def log_terms(self, steps: int) -> tuple[float, float]:
        below, above = zip(self.left.log_terms(steps), self.right.log_terms(steps), strict=True)
        most = min(self.start + self._width(steps), steps)  # of `left` k at most, and one of `right`
        return max(below) + math.log(most), max(above) + math.log(self._count(steps))

    def check_reach(self, latest: int, steps: int) -> None:
        last = self._last(latest, steps)
        self.right.check_reach(last, steps)
        if last > latest:
            self.left.check_reach(last - 1, steps)

    def __str__(self) -> str:
        return f"({self.left} until{self._within()} {self.right})"
