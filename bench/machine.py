"""The machine that is measured on, and how much of it others are using. Standard library only."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any, Self

# Of all cores. PyTorch's threads wait for each other by spinning: where something else takes a
# share of a core, its rates fall twentyfold, and the ratios would flatter everyone else.
IDLE = 0.1
PATIENCE_S = 300
STAT = Path("/proc/stat")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """What the numbers depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        cpu = {name.strip(): value.strip() for name, value in fields.items()}.get("model name", cpu)
    system = f"{platform.system()} {platform.machine()}"
    return {"cpu": cpu, "cores": cores(), "system": system, "python": platform.python_version()}


class Others:
    """Measures, from entering to leaving, the share of all cores that processes other than our children took.

    Attributes:
        share: in [0, 1]; None where the system does not tell (it does on Linux).
    """

    share: float | None = None

    def __enter__(self) -> Self:
        self._before = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        if STAT.exists():
            wall, busy, own = (after - before for after, before in zip(self._now(), self._before, strict=True))
            self.share = min(1.0, max(0.0, (busy - own) / (wall * (os.cpu_count() or 1))))

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds on the clock, seconds of all cores spent working, and those of our children that ended."""
        ticks = [int(x) for x in STAT.read_text().split("\n", 1)[0].split()[1:9]] if STAT.exists() else [0] * 8
        user, nice, system, _idle, _wait, irq, soft_irq, stolen = ticks
        busy = (user + nice + system + irq + soft_irq + stolen) / os.sysconf("SC_CLK_TCK")
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.monotonic(), busy, usage.ru_utime + usage.ru_stime


def wait_until_idle() -> None:
    """Returns once others leave the machine alone for two seconds; ends the program if they do not."""
    deadline = time.monotonic() + PATIENCE_S
    told = False
    while True:
        with Others() as others:
            time.sleep(2)
        if others.share is None or others.share < IDLE:
            return
        if time.monotonic() > deadline:
            sys.exit(
                f"other programs still take {others.share:.0%} of this machine after {PATIENCE_S} s of waiting; "
                "rates measured now would be wrong. Stop them, or pass --anyway."
            )
        if not told:
            print(f"waiting: other programs take {others.share:.0%} of this machine", file=sys.stderr, flush=True)
            told = True
