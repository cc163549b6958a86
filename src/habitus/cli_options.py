"""Options of `habitus learn` that are not hyperparameters. Apart, as tyro reads the comments."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from habitus.train.log import default_folder


@dataclasses.dataclass(frozen=True)
class LearnOptions:
    """What to learn from, for how long, and what to keep."""

    env: str | None = None  # a world: a built-in name or a Gymnasium id
    data: str | None = None  # a log: a file, a folder, or the name of a standard data set
    source: str | None = None  # what makes experience out of the log, such as pgd; its options are --pgd.…
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
        return _resolved(self, slug)


@dataclasses.dataclass(frozen=True)
class RecipeOptions:
    """What a recipe learns from, and what to keep; how long its stages are it says among its own arguments."""

    env: str | None = None  # a world: a built-in name or a Gymnasium id
    data: str | None = None  # a log: a file, a folder, or the name of a standard data set
    seeds: tuple[int, ...] = (1,)  # how many; or, if several numbers, which
    folder: Path | None = None  # where to keep the stages; by default runs/<method>-<time>
    resume: bool = False  # go on in the folder; a stage that was finished is not repeated
    overwrite: bool = False  # replace the stages in the folder
    logs: tuple[str, ...] = ()  # also log to tensorboard, wandb or mlflow
    quiet: bool = False  # no progress bars

    def resolved(self, slug: str) -> dict[str, Any]:
        """As keyword arguments of `learn`."""
        return _resolved(self, slug)


def _resolved(given: LearnOptions | RecipeOptions, slug: str) -> dict[str, Any]:
    options = {f.name: getattr(given, f.name) for f in dataclasses.fields(given) if f.name != "source"}
    options["seeds"] = given.seeds[0] if len(given.seeds) == 1 else given.seeds
    options["folder"] = given.folder or default_folder(f"{slug}-{given.env or Path(given.data or '').stem}")
    return options


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """How the world is run, where that is not a hyperparameter of the learner."""

    num_envs: int | None = None  # copies of the world

    def resolved(self) -> dict[str, Any]:
        """As options of the source."""
        return {} if self.num_envs is None else {"num_envs": self.num_envs}


def named_source(argv: Sequence[str]) -> str | None:
    """The value of `--source` among the arguments, as its options must be known before they are read."""
    for i, word in enumerate(argv):
        if word.startswith("--source="):
            return word.partition("=")[2]
        if word == "--source" and i + 1 < len(argv):
            return argv[i + 1]
    return None


def plain_fields(cls: type) -> type:
    """A data class of those fields of a module that a command line can set, with their comments as help."""
    hints, text = get_type_hints(cls), inspect.getsource(cls)
    fields = []
    for f in dataclasses.fields(cls):
        if not isinstance(f.default, (bool, int, float, str, tuple)):
            continue
        comment = re.search(rf"^    {f.name}: .*?  # (.*)$", text, re.M)
        help_text = comment.group(1) if comment else ""
        fields.append(
            (f.name, Annotated[hints[f.name], tyro.conf.arg(help=help_text)], dataclasses.field(default=f.default))
        )
    return dataclasses.make_dataclass(f"{cls.__name__}Options", fields, frozen=True)
