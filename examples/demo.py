"""The main job, end to end: from the logs of a mediocre controller to a policy one can trust.

For each log: look at it, learn three policies from it with four seeds each, compare them with the
controller that was logged, and write one page about all of it. A minute on two cores.
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import habitus
from habitus.measure.advise import inspection
from habitus.measure.statistics import bootstrap_ci, iqm, paired_difference

SEEDS = 4
METHODS = {
    "bc": {"hidden": (64, 64)},
    "td3bc": {"hidden": (64, 64), "batch_size": 128, "learning_rate": 1e-3},
    "prdc": {"hidden": (64, 64), "batch_size": 128, "learning_rate": 1e-3},
}
# In a maze half a standard deviation may lie across a wall, where other actions are right: there the
# state must count more.
PAIRS = {"pointmaze-medium": {"prdc": {"beta": 30.0}}}
STEPS = 8_000
OUT = Path("runs/demo")


def study(log: habitus.Dataset, console: Console) -> list[Path]:
    """Everything about one log; returns the run folders."""
    name = log.name
    console.rule(f"[bold]{name}")
    card = Table.grid(padding=(0, 2))
    for row in inspection(log):
        card.add_row(*row)
    console.print(card)
    table = Table("policy", "return, interquartile mean [95 %]", "gain over the log [95 %]", "seconds", box=None)
    table.add_row("the logged controller", str(bootstrap_ci(log.returns, iqm)), "", "")
    folders = []
    for method, common in METHODS.items():
        began = time.perf_counter()
        settings = common | PAIRS.get(name, {}).get(method, {})
        run = habitus.learn(
            method, log, STEPS, seeds=SEEDS, evaluations=8, folder=OUT / f"{name}-{method}", overwrite=True, **settings
        )
        result = habitus.evaluate(run, episodes=50)
        baseline = [log.returns.mean()] * SEEDS
        gain = paired_difference(result.scores, baseline)
        table.add_row(method, str(result.iqm()), str(gain), f"{time.perf_counter() - began:.0f}")
        assert run.folder is not None
        folders.append(run.folder)
    console.print(table)
    return folders


def main() -> None:
    """Both logs, then the page."""
    console = Console()
    logs = [habitus.load(name) for name in ("pointmaze-medium", "pendulum-replay")]
    folders = [folder for log in logs for folder in study(log, console)]
    logged = {log.meta["task"]: {"the logged controller": log.returns} for log in logs}
    page = habitus.write_report(folders, OUT / "report.html", references=logged)
    console.print("\nThe whole story on one page:", style="bold")
    print(page.resolve())


if __name__ == "__main__":
    main()
