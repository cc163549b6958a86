"""Options of `habitus learn` that are not hyperparameters. Apart, as tyro reads the comments."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from habitus.train.log import default_folder


@dataclasses.dataclass(frozen=True)
class LearnOptions:
    """What to learn from, for how long, and what to keep."""

    env: str | None = None  # a world: a built-in name or a Gymnasium id
    data: str | None = None  # a log: a file, a folder, or the name of a standard data set
    steps: int = 50_000  # environment steps; updates where there is only a log
    evaluate_in: str | None = None  # a world to evaluate in, for a log of your own
    mix: float | None = None  # share of each batch from the log, if there is a world too
    seeds: tuple[int, ...] = (0,)  # which seeds
    evaluations: int = 10  # how many along the way
    episodes: int = 10  # in each evaluation
    num_envs: int | None = None  # copies of the world
    folder: Path | None = None  # where to keep the run; by default runs/<method>-<time>
    resume: bool = False  # go on from the newest checkpoint in the folder
    overwrite: bool = False  # replace the run in the folder
    logs: tuple[str, ...] = ()  # also log to tensorboard, wandb or mlflow
    quiet: bool = False  # no progress bar

    def resolved(self, slug: str) -> dict[str, Any]:
        """As keyword arguments of `learn`."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        num_envs = options.pop("num_envs")
        options["source_options"] = {} if num_envs is None else {"num_envs": num_envs}
        options["folder"] = self.folder or default_folder(f"{slug}-{self.env or Path(self.data or '').stem}")
        return options
