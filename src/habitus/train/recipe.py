"""Recipes: plain functions that call `learn` several times, each call a stage with a folder of its own.

A recipe takes what it learns from (`data`, `env`, or both), its `stages`, and then typed keyword
arguments with defaults, each with a comment; it answers with a `Run`. `habitus.learn` and
`habitus learn` reach it by its slug, as they do learners.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from habitus.core.card import card
from habitus.core.errors import ConfigError, suggest
from habitus.core.protocols import Learner
from habitus.envs.registry import make, name_of
from habitus.train.log import RunFolder, command
from habitus.train.run import Run
from habitus.train.setup import entry, load_data, plain

SOURCES = ("data", "env")  # what a recipe may learn from
Seeds = int | Sequence[int]


@dataclasses.dataclass(frozen=True)
class Stages:
    """How a recipe runs its stages.

    Attributes:
        seeds: of stages that are run once for each seed.
        folder: where each stage has a folder; None keeps nothing.
        resume: go on where an earlier call with the same folder stopped: a stage that was finished is
            read back and not repeated.
        overwrite: replace what the folder holds.
        logs, quiet: as in `learn`.
        home: the recipe's own record in the folder, opened as the first stage begins.
    """

    seeds: Sequence[int] = (0,)
    folder: Path | None = None
    resume: bool = False
    overwrite: bool = False
    logs: Sequence[str] = ()
    quiet: bool = True
    home: RunFolder | None = None

    def learn(self, name: str, learner: Learner | str, *source: Any, seeds: Seeds | None = None, **options: Any) -> Run:
        """`learn(learner, *source, ...)` as the stage `name`, with the recipe's seeds unless others are given."""
        from habitus.train.loop import learn

        if self.home is not None:
            self.home.open()
        folder = None if self.folder is None else self.folder / name
        shared: dict[str, Any] = {"logs": self.logs, "quiet": self.quiet, "overwrite": self.overwrite}
        shared |= {"resume": self.resume and folder is not None}
        return learn(
            learner, *source, seeds=self.seeds if seeds is None else seeds, folder=folder, **(shared | options)
        )


@dataclasses.dataclass(frozen=True)
class Argument:
    """One keyword argument of a recipe: its name, type, default, and the comment beside it."""

    name: str
    kind: Any
    default: Any
    comment: str


def comments(text: str, function: str) -> dict[str, str]:
    """The comment beside each keyword argument of a function, from the text of its file."""
    lines = text.splitlines()
    node = next(n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == function)
    given = {a.arg: lines[(a.end_lineno or a.lineno) - 1] for a in node.args.kwonlyargs}
    return {name: line.partition("  # ")[2].strip() for name, line in given.items()}


def arguments(recipe: Callable[..., Run]) -> list[Argument]:
    """The keyword arguments of a recipe that are its own, in order."""
    kinds = typing.get_type_hints(recipe)
    said = comments(textwrap.dedent(inspect.getsource(recipe)), recipe.__name__)
    return [
        Argument(p.name, kinds[p.name], p.default, said[p.name])
        for p in inspect.signature(recipe).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name != "stages"
    ]


def is_recipe(method: Any) -> bool:
    """Whether `method` is the slug of a recipe."""
    return isinstance(method, str) and card(method).kind == "recipe"


def check_settings(slug: str, recipe: Callable[..., Run], settings: dict[str, Any]) -> None:
    """Raises `ConfigError` for a setting that the recipe does not have, naming those near."""
    known = [argument.name for argument in arguments(recipe)]
    for name in settings:
        if name not in known:
            raise ConfigError(f"{slug} has no argument {name!r}: {suggest(name, known)}")


def run_recipe(
    slug: str,
    source: Any = None,
    *,
    env: Any = None,
    data: Any = None,
    seeds: Seeds = 1,
    folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    logs: Sequence[str] = (),
    quiet: bool = True,
    **settings: Any,
) -> Run:
    """Runs a recipe by its slug; the arguments are those of `learn`, `settings` the recipe's own.

    The folder holds a folder for each stage, `config.json`, and the policies of the run that the recipe answers.

    Raises:
        ConfigError: for an argument that it does not have, or if what it learns from is missing.
        RunExists: if `folder` holds a run and neither `resume` nor `overwrite` is set.
        CheckpointError: on resuming with other settings.
    """
    recipe = entry(slug)
    check_settings(slug, recipe, settings)
    given = _sources(slug, recipe, source, env, data)
    seed_list = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    home = None
    if folder is not None:
        all_of_them = {a.name: settings.get(a.name, a.default) for a in arguments(recipe)}
        config = {
            "method": slug,
            "hyperparameters": {name: plain(value) for name, value in all_of_them.items()},
            "source": {name: plain(value) for name, value in given.items()},
            "env": name_of(given["env"]) if "env" in given else None,
            "seeds": seed_list,
            "command": command(),
        }
        home = RunFolder(Path(folder), config, resume, overwrite)
    path = None if home is None else home.path
    run: Run = recipe(**given, stages=Stages(seed_list, path, resume, overwrite, logs, quiet, home), **settings)
    if path is not None:
        run = dataclasses.replace(run, folder=path)
        run.save_policies()
    return run


def recipe_of(call: dict[str, Any], defaults: Mapping[str, Any]) -> Run:
    """`run_recipe` from the arguments of a call of `learn`; those that are not at their `defaults` are settings."""
    settings, slug = call.pop("settings"), call.pop("learner")
    own = {name: value for name, value in call.items() if name in inspect.signature(run_recipe).parameters}
    more = {name: value for name, value in call.items() if name not in own and value != defaults[name]}
    return run_recipe(slug, **own, **more, **settings)


def _sources(slug: str, recipe: Callable[..., Run], source: Any, env: Any, data: Any) -> dict[str, Any]:
    """What the recipe learns from, as objects."""
    wanted = [name for name in SOURCES if name in inspect.signature(recipe).parameters]
    found = {"data": data, "env": env}
    if source is not None:  # as in `learn`, what is given without a name is what the method learns from
        first = next((name for name in wanted if found[name] is None), None)
        if first is None:
            raise ConfigError(f"{slug} takes {' and '.join(f'{name}=' for name in wanted)}, and no further source.")
        found[first] = source
    for name, value in found.items():
        if (value is None) == (name in wanted):
            said = f"learns from {name}=..., which is missing" if value is None else f"takes no {name}="
            raise ConfigError(f"{slug} {said}.")
    make_it: dict[str, Any] = {"data": load_data, "env": make}
    return {name: make_it[name](found[name]) for name in wanted}
