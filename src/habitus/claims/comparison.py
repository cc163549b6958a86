"""Every offline method on the same logs with the same budget and seeds: `habitus bench offline`.

Settings are each method's defaults, but for the networks, which are alike. The result is what
`habitus data inspect` recommends from, so it says what did well out of the box, not what could do
well after tuning.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from habitus.claims.arms import final_scores
from habitus.claims.harness import machine
from habitus.core.card import cards
from habitus.core.files import write_json
from habitus.core.protocols import Learner
from habitus.data.dataset import Dataset
from habitus.data.inspect import inspect
from habitus.measure.statistics import bootstrap_ci
from habitus.train.log import command, git_state, versions
from habitus.train.runtime import prepare
from habitus.train.setup import entry
from habitus.train.standard import make_offline, split_name

NAME = "offline-comparison"


@dataclasses.dataclass(frozen=True)
class Budget:
    """Sizes of the comparison."""

    logs: tuple[str, ...] = (
        "pendulum-medium", "pendulum-replay", "pointmaze-medium", "hopper-medium", "hopper-medium-replay",
    )  # fmt: skip
    methods: tuple[str, ...] = ()
    rows: int = 20_000
    updates: int = 10_000
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    episodes: int = 10
    hidden: tuple[int, ...] = (64, 64)


FULL = Budget()
SMOKE = Budget(
    logs=("pendulum-medium",), methods=("bc", "td3bc"), rows=1_000, updates=45, seeds=(0, 1), episodes=2, hidden=(8, 8)
)


def offline_methods() -> list[str]:
    """Slugs of the learners that a log of real actions is enough for."""
    return [
        slug
        for slug, card in cards().items()
        if card.kind == "learner" and card.family == "offline" and "log" in card.data and "continuous" in card.actions
        and not entry(slug).sides and not entry(slug).on_policy
    ]  # fmt: skip


def small(slug: str, hidden: tuple[int, ...]) -> Learner:
    """A method at its defaults, with every network of the same shape."""
    cls = entry(slug)
    return cls(**{f.name: hidden for f in dataclasses.fields(cls) if f.name.endswith("hidden")})


def compare(
    budget: Budget = FULL, out: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Runs every method on every log.

    Args:
        out: folder for `offline-comparison.json`, written anew after every run.
        say: told what was found, a line a run.

    Returns:
        for each log its quality (TQ), coverage (SACo) and, for each method, the interquartile mean of the
        normalised scores over seeds with its 95 % interval, and seconds for all seeds.
    """
    prepare()
    logs: list[dict[str, Any]] = []
    result = {
        "slug": NAME, "budget": dataclasses.asdict(budget), "figures": {"logs": logs}, "machine": machine(),
        "versions": versions(), "commit": git_state(Path(__file__).parent).get("commit"), "command": command(),
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    for name in budget.logs:
        log = make_offline(*split_name(name), size=budget.rows)
        logs.append(_about(name, log))
        for slug in budget.methods or offline_methods():
            began = time.perf_counter()
            scores, _ = final_scores(small(slug, budget.hidden), log, budget.updates, budget.seeds, budget.episodes)
            found = bootstrap_ci(scores)
            logs[-1]["scores"][slug] = float(found.estimate)
            logs[-1]["intervals"][slug] = found.ends
            logs[-1]["seconds"][slug] = round(time.perf_counter() - began, 1)
            say(f"{name:<24}{slug:<12}{found}  {logs[-1]['seconds'][slug]:.0f} s")
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                write_json(out / f"{NAME}.json", result)
    return result


def _about(name: str, log: Dataset) -> dict[str, Any]:
    """A log and what is known of it."""
    card = inspect(log)
    kind = "continuous" if log.spec.continuous else "discrete"
    return {"log": name, "rows": len(log), "actions": kind, "TQ": card.trajectory_quality, "SACo": card.coverage,
            "scores": {}, "intervals": {}, "seconds": {}}  # fmt: skip


def page(result: dict[str, Any]) -> str:
    """The comparison as a page in Markdown."""
    logs: Sequence[dict[str, Any]] = result["figures"]["logs"]
    methods = sorted({slug for log in logs for slug in log["scores"]})
    budget = result["budget"]

    def cell(log: dict[str, Any], slug: str) -> str:
        if slug not in log["scores"]:
            return ""
        low, high = log["intervals"][slug]
        best = log["scores"][slug] == max(log["scores"].values())
        text = f"{log['scores'][slug]:.0f}" + (f" [{low:.0f}, {high:.0f}]" if low is not None else "")
        return f"**{text}**" if best else text

    def table(title: str, rows: list[list[str]]) -> str:
        head = ["method", *(log["log"] for log in logs)]
        lines = [head, ["---"] + ["---:"] * len(logs), *rows]
        return f"## {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)

    quality = [
        [label, *("" if log[label] is None else f"{log[label]:.2f}" for log in logs)] for label in ("TQ", "SACo")
    ]
    scores = [[f"[{slug}](methods/{slug}.md)", *(cell(log, slug) for log in logs)] for slug in methods]
    times = [[slug, *(f"{log['seconds'].get(slug, float('nan')):.0f}" for log in logs)] for slug in methods]
    seeds, steps = len(budget["seeds"]), budget["updates"]
    return "\n\n".join([
        "# Offline methods compared",
        f"Every offline learner on the same logs, out of the box: default settings, networks {budget['hidden']}, "
        f"{steps:,} updates, {seeds} seeds, the last three of fifteen evaluations of {budget['episodes']} episodes. "
        "Made by `habitus bench offline --out results` and `make docs`; `habitus data inspect` recommends from it.",
        table("What the logs hold", quality) + "\n\nTQ: trajectory quality, 0 random and 1 expert; SACo: coverage of "
        "the reference log, where there is one.",
        table("Scores", scores) + "\n\nInterquartile means of normalised scores (0 random, 100 expert), 95 % bootstrap "
        "intervals over seeds; the best of each log in bold.",
        table("Seconds for all seeds, compilation and evaluation included", times),
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores; {result['date']}, commit "
        f"`{(result['commit'] or '')[:10]}`.",
    ]) + "\n"  # fmt: skip
