"""Which methods suit a log, according to our own results."""

from __future__ import annotations

from typing import Any

from habitus.data.dataset import Dataset
from habitus.data.inspect import DataCard, inspect
from habitus.measure.results import read_results

SHOWN = 3


def inspection(dataset: Dataset) -> list[tuple[str, str]]:
    """The card of a data set, and what our results say suits it, as (label, text)."""
    found = inspect(dataset)
    return [*found.rows(), *advice(found, dataset)]


def advice(found: DataCard, dataset: Dataset) -> list[tuple[str, str]]:
    """The best methods on the log in our results that is most like this one.

    Alike means the same kind of actions and the nearest quality of the behaviour (TQ), and coverage
    (SACo) where both are known. Nothing is said where no result applies.
    """
    kind = "continuous" if dataset.spec.continuous else "discrete"
    if found.trajectory_quality is None:
        return [("methods that suit it", "unknown: give reference returns (random_return, expert_return) in its meta")]
    logs = [log for log in studied_logs() if log["actions"] == kind]
    if not logs:
        return [("methods that suit it", f"unknown: no result yet on logs with {kind} actions")]
    nearest = min(logs, key=lambda log: _distance(found, log))
    ranked = sorted(nearest["scores"].items(), key=lambda item: -item[1])[:SHOWN]
    scores = ", ".join(f"{method} ({score:.0f})" for method, score in ranked)
    where = f"{nearest['log']} (TQ {nearest['TQ']:.2f})"
    return [("methods that suit it", f"{scores}: normalised scores on {where}, the log most like it in our results")]


def _distance(found: DataCard, log: dict[str, Any]) -> float:
    assert found.trajectory_quality is not None
    gap = abs(found.trajectory_quality - log["TQ"])
    if found.coverage is not None and log.get("SACo") is not None:
        gap += abs(found.coverage - log["SACo"])
    return gap


def studied_logs() -> list[dict[str, Any]]:
    """Every log in our results: `log`, `actions`, `TQ`, `SACo` or None, and mean normalised `scores` by method."""
    return [log for result in read_results() for log in result["figures"].get("logs", [])]
