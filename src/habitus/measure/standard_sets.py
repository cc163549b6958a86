"""What each standard data set holds, as one table: `habitus data table`."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from habitus.core.files import write_json
from habitus.data import maker
from habitus.data.dataset import Dataset
from habitus.data.measures import of_equal_size, state_action_coverage, trajectory_quality
from habitus.train import standard
from habitus.train.log import command, git_state, versions

NAME = "standard-sets"


def describe_sets(
    tasks: Sequence[str] | None = None, out: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Looks at every standard data set that is there or is made in seconds; those that take SAC are not made.

    Args:
        tasks: only these; all by default.
        out: folder for `standard-sets.json`.
        say: told of each set.

    Returns:
        a row a set: name, rows, episodes, mean and standard deviation of the returns of whole episodes, trajectory
        quality (TQ) and coverage of the replay log of the task (SACo), with the returns that TQ counts from; and the
        names of those that are not made.
    """
    rows, missing = [], []
    for task in tasks or (*maker.TASKS, *standard.TASKS):
        for split in standard.splits_of(task):
            name = f"{task}-{split}"
            if standard.is_made(task, split):
                rows.append(_row(name, *(standard.make_offline(task, s) for s in (split, _replay(task)))))
                say("  ".join(str(value) for value in rows[-1].values()))
            else:
                missing.append(name)
                say(f"{name}: not made; `habitus data make {task}` makes it")
    result = {
        "slug": NAME, "sets": rows, "not made": missing, "versions": versions(), "command": command(),
        "commit": git_state(Path(__file__).parent).get("commit"), "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / f"{NAME}.json", result)
    return result


def _replay(task: str) -> str:
    return "replay" if task in maker.TASKS else "medium-replay"


def _row(name: str, log: Dataset, reference: Dataset) -> dict[str, Any]:
    whole = log.returns[log.complete]
    return {
        "name": name,
        "rows": len(log),
        "episodes": len(log.starts),
        "mean return": round(float(whole.mean()), 2),
        "std": round(float(whole.std()), 2),
        "TQ": round(float(trajectory_quality(log)), 4),
        "SACo": round(float(state_action_coverage(*of_equal_size(log, reference))), 4),
        "random": round(float(log.meta["random_return"]), 2),
        "expert": round(float(log.meta["expert_return"]), 2),
    }


def table(result: dict[str, Any]) -> str:
    """The sets as a table in Markdown."""
    lines = ["| set | rows | episodes | return | TQ | SACo | random, expert |", "|---|---:|---:|---:|---:|---:|---:|"]
    for row in result["sets"]:
        returns = f"{row['mean return']:.1f} ± {row['std']:.1f}"
        ends = f"{row['random']:.1f}, {row['expert']:.1f}"
        cells = (
            f"`{row['name']}`", f"{row['rows']:,}", f"{row['episodes']:,}", returns, f"{row['TQ']:.2f}",
            f"{row['SACo']:.2f}", ends,
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
