"""What a person sees of a run, and how they stop it."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import numpy as np


class Clock:
    """Wall time by kind of work.

    Attributes:
        seconds: so far, by name.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Counts the time since the last lap as `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """All laps together."""
        return sum(self.seconds.values())


class Interrupt:
    """Turns the first Ctrl-C into a request to save and stop; the second one stops at once.

    Attributes:
        asked: whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.asked = False
        self._old: Any = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._old = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._old is not None:
            signal.signal(signal.SIGINT, self._old)


class Progress:
    """A progress bar with steps a second, the main metrics and the time left."""

    def __init__(self, label: str, total: int, quiet: bool):
        self.label, self.total, self.quiet = label, total, quiet
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if not self.quiet:
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            text = TextColumn("{task.fields[rate]:>12}  {task.fields[line]}")
            self._bar = Bar(TextColumn("[bold]{task.description}"), BarColumn(24), TimeRemainingColumn(), text)
            self._bar.start()
        return self

    def begin(self, name: str) -> None:
        """Starts the bar of one group of seeds."""
        self._started = time.perf_counter()
        if self._bar:
            label = f"{self.label} {name}".strip()
            self._task = self._bar.add_task(label, total=self.total, rate="compiling", line="")

    def show(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """Moves the bar to `step`."""
        if self._bar:
            rate = step / max(time.perf_counter() - self._started, 1e-9)
            self._bar.update(self._task, completed=step, rate=f"{rate:,.0f} steps/s", line=main_metrics(metrics))

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()


def main_metrics(metrics: dict[str, np.ndarray], most: int = 3) -> str:
    """The metrics most worth watching, averaged over seeds: returns first, then losses."""
    finite = {k: float(np.mean(v)) for k, v in metrics.items() if np.isfinite(v).all()}
    order = sorted(finite, key=lambda name: ("return" not in name, "loss" not in name, name))
    return "  ".join(f"{name} {finite[name]:.4g}" for name in order[:most])
