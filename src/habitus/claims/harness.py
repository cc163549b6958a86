"""A claim is an experiment with a verdict.

Each file `claims/<family>/<slug>.py` holds a `CLAIM`: what the paper says, and a function that runs
the experiment under a budget fixed in the file and answers with measures. The condition of each
measure is fixed there too, before anything runs.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from habitus.core.card import card, cards
from habitus.core.errors import UnknownName, suggest
from habitus.core.files import write_json
from habitus.measure.statistics import Interval
from habitus.train.log import command, git_state, versions
from habitus.train.runtime import prepare

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"


@dataclasses.dataclass(frozen=True)
class Measure:
    """One figure of a claim and the condition on it.

    Attributes:
        name: what was measured.
        ours, baseline: the figures compared; `baseline` is None where there is none.
        difference: the estimate that the condition is about.
        ci: its interval; an end is None where there is no bound.
        condition: in words.
        holds: whether the condition is met.
        refuted: whether even the favourable end of the interval misses it.
    """

    name: str
    ours: float
    baseline: float | None
    difference: float
    ci: tuple[float | None, float | None]
    condition: str
    holds: bool
    refuted: bool


def above(name: str, ours: float, baseline: float | None, interval: Interval, threshold: float = 0.0) -> Measure:
    """The whole interval must lie above `threshold`."""
    level = f"{100 * interval.level:.0f} % interval"
    return Measure(
        name, ours, baseline, interval.estimate, (interval.ends[0], interval.ends[1]),
        f"{level} above {threshold:g}", interval.low > threshold, interval.high <= threshold,
    )  # fmt: skip


def not_below(name: str, ours: float, baseline: float | None, interval: Interval, threshold: float) -> Measure:
    """The interval must not lie wholly below `threshold`."""
    level = f"{100 * interval.level:.0f} % interval"
    holds = interval.high >= threshold
    return Measure(
        name, ours, baseline, interval.estimate, (interval.ends[0], interval.ends[1]),
        f"{level} not wholly below {threshold:g}", holds, not holds,
    )  # fmt: skip


def fact(name: str, value: float, condition: str, holds: bool | np.bool_, baseline: float | None = None) -> Measure:
    """A figure without an interval: exact, or decided by its value."""
    difference = value if baseline is None else value - baseline
    return Measure(name, float(value), baseline, float(difference), (None, None), condition, bool(holds), not holds)


def any_of(name: str, measures: Sequence[Measure]) -> Measure:
    """Holds if one of several does, and shows the best of them; refuted only if all are."""
    best = max(measures, key=lambda m: (m.holds, not m.refuted, m.difference))
    return dataclasses.replace(
        best, name=f"{name}: {best.name}", condition=f"on at least one of {len(measures)}: {best.condition}",
        refuted=all(m.refuted for m in measures),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    Attributes:
        measures: the figures with conditions.
        notes: what was tried, what differs from the paper and why; one sentence or more each.
        figures: further figures without a condition, as plain data.
    """

    measures: Sequence[Measure]
    notes: Sequence[str] = ()
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Reproduced if every condition holds, not reproduced if one is refuted, else inconclusive."""
        if all(m.holds for m in self.measures):
            return REPRODUCED
        return NOT_REPRODUCED if any(m.refuted for m in self.measures) else INCONCLUSIVE


@dataclasses.dataclass(frozen=True)
class Claim:
    """An experiment.

    Attributes:
        statement: what the paper says, in one sentence.
        run: the experiment, a function of a budget.
        full, smoke: budgets (dataclasses of the file's own); `smoke` runs the same code in seconds.
        seeds: of the full budget.
    """

    statement: str
    run: Callable[[Any], Outcome]
    full: Any
    smoke: Any
    seeds: Sequence[int]


def claim(slug: str) -> Claim:
    """The claim of a method.

    Raises:
        UnknownName: if there is no such method, or it has no claim.
    """
    found = card(slug)
    if slug not in claimed():
        raise UnknownName(f"{slug} has no claim: {suggest(slug, claimed())}")
    return importlib.import_module(f"habitus.claims.{found.family}.{slug.replace('-', '_')}").CLAIM


def claimed() -> list[str]:
    """Slugs of the methods that have a claim."""
    folder = Path(__file__).parent
    return [s for s, c in cards().items() if (folder / c.family / f"{s.replace('-', '_')}.py").exists()]


def machine() -> dict[str, Any]:
    """Processor, cores and devices."""
    import jax

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    devices = sorted({device.device_kind for device in jax.devices()})
    return {"cpu": model, "cores": os.cpu_count(), "devices": devices}


def run_claim(slug: str, smoke: bool = False, out: Path | None = None) -> dict[str, Any]:
    """Runs the experiment of a claim and returns its result as plain data.

    Args:
        smoke: run the same code with a tiny budget; the verdict then means nothing.
        out: folder to write `<slug>.json` to.
    """
    prepare()
    experiment, about = claim(slug), card(slug)
    budget = experiment.smoke if smoke else experiment.full
    began = time.perf_counter()
    outcome = experiment.run(budget)
    result = {
        "slug": slug,
        "paper": about.arxiv,
        "title": about.title,
        "claim": experiment.statement,
        "verdict": outcome.verdict,
        "smoke": smoke,
        "measures": [dataclasses.asdict(m) for m in outcome.measures],
        "seeds": list(getattr(budget, "seeds", experiment.seeds)),
        "budget": dataclasses.asdict(budget),
        "wall_seconds": round(time.perf_counter() - began, 1),
        "command": command(),
        "machine": machine(),
        "versions": versions(),
        "commit": git_state(Path(__file__).parent).get("commit"),
        "date": datetime.date.today().isoformat(),
        "notes": list(outcome.notes),
        "figures": outcome.figures,
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / f"{slug}.json", result)
    return result
