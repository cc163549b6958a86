"""Options of `habitus learn` that are not hyperparameters. Apart, as tyro reads the comments."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from habitus.train.log import default_folder


@dataclasses.dataclass(frozen=True)
class LearnOptions:
    """What to learn from, for how long, and what to keep."""

    env: str | None = None  # a world: a built-in name or a Gymnasium id
    data: str | None = None  # a log: a file, a folder, or the name of a standard data set
    steps: int = 50_000  # environment steps; updates where there is only a log
    evaluate_in: str | None = None  # a world to evaluate in, for a log of your own
    mix: float | Literal["proportional"] | None = None  # share of each batch from the log, if there is a world too
    seeds: tuple[int, ...] = (1,)  # how many; or, if several numbers, which
    evaluations: int = 10  # how many along the way
    episodes: int = 10  # in each evaluation
    folder: Path | None = None  # where to keep the run; by default runs/<method>-<time>
    resume: bool = False  # go on from the newest checkpoint in the folder
    overwrite: bool = False  # replace the run in the folder
    logs: tuple[str, ...] = ()  # also log to tensorboard, wandb or mlflow
    quiet: bool = False  # no progress bar

    def resolved(self, slug: str) -> dict[str, Any]:
        """As keyword arguments of `learn`."""
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        options["seeds"] = self.seeds[0] if len(self.seeds) == 1 else self.seeds
        options["folder"] = self.folder or default_folder(f"{slug}-{self.env or Path(self.data or '').stem}")
        return options


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """How the world is run, where that is not a hyperparameter of the learner."""

    num_envs: int | None = None  # copies of the world

    def resolved(self) -> dict[str, Any]:
        """As options of the source."""
        return {} if self.num_envs is None else {"num_envs": self.num_envs}
