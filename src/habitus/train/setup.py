"""From names and objects of the user's to a learner and a source."""

from __future__ import annotations

import importlib
from inspect import signature
from pathlib import Path
from typing import Any

from habitus.core.card import card, cards
from habitus.core.errors import ConfigError, suggest
from habitus.core.protocols import Env, HostEnv, Learner, Source, hyperparameters
from habitus.data.dataset import Dataset
from habitus.data.hindsight import HindsightSource
from habitus.data.prioritised import Prioritised
from habitus.data.source import DatasetSource
from habitus.envs.registry import make, name_of
from habitus.train.rollouts import Aside, Rollouts
from habitus.train.sources import Replay


def entry(slug: str) -> Any:
    """The class or function that a method is. Imports only that method's file."""
    found = card(slug)
    return getattr(importlib.import_module(found.module), found.entry)


def slug_of(learner: Learner) -> str:
    """The slug of a learner, or its class name if it is the user's own."""
    return _slug_of(type(learner))


def slugs_of(learner: Learner) -> set[str]:
    """The slugs of a learner and of all that it extends."""
    return {_slug_of(cls) for cls in type(learner).__mro__}


def _slug_of(cls: type) -> str:
    for found in cards().values():
        if found.module == cls.__module__:
            return next((slug for slug, name in found.variants if name == cls.__name__), found.slug)
    return cls.__name__


def make_learner(learner: Learner | str, settings: dict[str, Any]) -> Learner:
    """A learner from its slug and hyperparameters.

    Raises:
        ConfigError: for a hyperparameter it does not have, naming those near.
    """
    if isinstance(learner, Learner):
        if settings:
            raise ConfigError(f"{', '.join(settings)}: give hyperparameters to the learner itself, not to learn().")
        return learner
    cls = entry(learner)
    if not (isinstance(cls, type) and issubclass(cls, Learner)):
        raise ConfigError(f"{learner} is a {card(learner).kind}, not a learner; `habitus methods` lists the learners.")
    known = list(cls.__dataclass_fields__)
    for name in settings:
        if name not in known:
            raise ConfigError(f"{learner} has no hyperparameter {name!r}: {suggest(name, known)}")
    return cls(**settings)


def source_class(slug: str) -> type[Source]:
    """The class of a method that is a source. Raises `ConfigError` for any other method."""
    if card(slug).kind != "source":
        known = [c.slug for c in cards().values() if c.kind == "source"]
        raise ConfigError(f"{slug} is a {card(slug).kind}, not a source; the sources are {', '.join(known)}.")
    return entry(slug)  # type: ignore[no-any-return]


def wrap_log(slug: str, learner: Learner, data: Any, env: Any, options: dict[str, Any]) -> Source:
    """The source `slug`, which makes experience out of a log.

    Raises:
        ConfigError: if it is not a source, or what was given does not fit.
    """
    cls, dataset = source_class(slug), load_data(data)
    if dataset is None or env is not None:
        raise ConfigError(f"{slug} makes experience out of a log: give data=..., and no world to act in.")
    if learner.on_policy:
        raise ConfigError(f"{slug_of(learner)} learns from its own actions, so it needs env=..., not only a log.")
    return cls(dataset, **({"batch_size": _batch_size(learner)} | options))  # type: ignore[call-arg]


def load_data(data: Dataset | str | Path | None) -> Dataset | None:
    """A data set from itself, a file, or the name of a standard set."""
    if data is None or isinstance(data, Dataset):
        return data
    from habitus.train.standard import load

    return load(data)


def make_source(
    learner: Learner,
    source: Any,
    env: Any,
    data: Dataset | str | Path | None,
    mix: float | str | None,
    options: dict[str, Any],
    warm: bool = False,
) -> tuple[Source, Env | HostEnv | None]:
    """The source that a learner needs for what the user has, and the world to evaluate in.

    Raises:
        ConfigError: if nothing was given to learn from, or what was given does not fit the learner.
    """
    if isinstance(source, Source):
        if env is not None or data is not None or options:
            raise ConfigError("give either a source, or env= and data= with their options, not both.")
        _check_window(learner, getattr(source, "window", None), type(source).__name__, getattr(source, "before", 0))
        if learner.on_policy and not source.acts:
            raise ConfigError(f"{slug_of(learner)} learns from its own actions, so it needs env=..., not only a log.")
        if learner.sides and not getattr(source, "apart", False):
            raise ConfigError(
                f"{slug_of(learner)} learns from a world and a log at once: give both env=... and data=..."
            )
        log = source.spec.dataset
        world = _raw(getattr(source, "env", None))
        return source, _home(log) if world is None and isinstance(log, Dataset) else world
    if isinstance(source, (Dataset, str, Path)):
        data = source if data is None else data
    elif source is not None:
        env = source
    dataset = load_data(data)
    if learner.sides and (dataset is None or env is None):
        raise ConfigError(f"{slug_of(learner)} learns from a world and a log at once: give both env=... and data=...")
    if env is None:
        if dataset is None:
            raise ConfigError("learn() needs something to learn from: a source, env=... or data=...")
        if learner.on_policy:
            if (built := learner.world(dataset)) is not None:
                return make_source(learner, None, built, None, None, options)[0], _home(dataset)
            raise ConfigError(f"{slug_of(learner)} learns from its own actions, so it needs env=..., not only a log.")
        return log_source(learner, dataset, **options), _home(dataset)
    num_envs = options.get("num_envs", getattr(learner, "num_envs", 1))
    world = make(env, num_envs=num_envs) if not isinstance(env, (Env, HostEnv)) else env
    if learner.on_policy:
        if dataset is not None and not (learner.sides or learner.takes_log):
            raise ConfigError(f"{slug_of(learner)} learns from its own actions; it cannot mix in a log.")
        return _rollouts(learner, world, dataset, {"num_envs": num_envs} | options), world
    _check_window(learner, None, "a replay of env=...")
    defaults = {"batch_size": _batch_size(learner), "prefill": dataset, "mix": 0.5 if mix is None else mix}
    defaults |= {"explore": "policy" if warm else "uniform", "apart": learner.sides}
    return Replay(world, **(defaults | options)), world


def _check_window(learner: Learner, window: int | None, given: str, before: int = 0) -> None:
    """Raises `ConfigError` unless a source hands over what the learner learns from: windows, or single transitions."""
    wanted = learner.window
    if window != wanted or before != learner.before:
        remedy = f"give data=... alone, or DatasetSource(log, window={wanted}, before={learner.before})."
        kinds = [
            "single transitions"
            if n is None
            else f"windows of {n} steps of a log" + f", {b} before their row" * (b > 0)
            for n, b in ((wanted, learner.before), (window, before))
        ]
        raise ConfigError(
            f"{slug_of(learner)} learns from {kinds[0]}, but {given} gives {kinds[1]}; "
            + ("leave window out." if wanted is None else remedy)
        )


def _rollouts(learner: Learner, world: Env | HostEnv, log: Dataset | None, options: dict[str, Any]) -> Source:
    """Fresh experience, and a log beside it for a learner of both; `options` of either source."""
    if learner.from_start:
        if world.horizon is None:
            raise ConfigError(
                f"{slug_of(learner)} needs episodes of a known length, but the world has no horizon; "
                "wrap it in TimeLimit, or give max_episode_steps to make."
            )
        defaults: dict[str, Any] = {"length": world.horizon, "fresh": True}
        log_defaults = {"batch_size": options["num_envs"], "window": world.horizon, "from_start": True}
    else:
        defaults = {"length": getattr(learner, "rollout_length", 128)}
        log_defaults = {"batch_size": _batch_size(learner)}
    theirs = {k: v for k, v in options.items() if k in signature(DatasetSource).parameters}
    ours = {k: v for k, v in options.items() if k not in theirs}
    if log is None or not learner.sides:
        own = {"log": log} | defaults | ours
        return learner.rollouts(world, **own) or Rollouts(world, **own)
    return Rollouts(world, beside=DatasetSource(log, **(log_defaults | theirs)), **(defaults | ours))


def log_source(learner: Learner, log: Dataset, **options: Any) -> Source:
    """What hands out a log as a learner wants it.

    Its attributes say how, where it has them: `batch_size`; `window` and `from_start`; `priority`, the
    exponents (alpha, beta) of prioritised replay; `hindsight`.
    """
    plain = {"batch_size": _batch_size(learner), "window": learner.window, "from_start": learner.from_start}
    plain |= {"before": learner.before}
    kind = HindsightSource if learner.hindsight and log.spec.goals else DatasetSource
    source = kind(log, **(plain | options))
    _check_window(learner, source.window, "source_options", source.before)
    priority = getattr(learner, "priority", None)
    return source if priority is None else Prioritised(source, *priority)


def _batch_size(learner: Learner) -> int:
    return int(getattr(learner, "batch_size", 256))


def _raw(env: Any) -> Env | HostEnv | None:
    """The world inside its canonical form."""
    return getattr(env, "env", env)


def _home(dataset: Dataset) -> Env | HostEnv | None:
    """The world a standard data set was made in."""
    task = dataset.meta.get("task") if dataset.meta else None
    if not isinstance(task, str) or dataset.meta.get("maker") is None:
        return None
    return make(task, num_envs=10)  # only to evaluate in: copies share the cost of acting


def describe(learner: Learner, source: Source, world: Env | HostEnv | None) -> dict[str, Any]:
    """Method, hyperparameters, source and world as plain data, for the record of a run."""
    fields = {k: plain(v) for k, v in hyperparameters(source).items()}
    return {
        "method": slug_of(learner),
        "hyperparameters": {k: plain(v) for k, v in hyperparameters(learner).items()},
        "source": {"kind": type(source).__name__} | {k: v for k, v in fields.items() if v is not None},
        "env": None if world is None else name_of(world),
    }


def plain(value: Any) -> Any:
    """A setting as JSON can hold it; None for what it cannot."""
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    if isinstance(value, (Env, HostEnv)):
        return name_of(value)
    if isinstance(value, Aside):
        return plain(value.log)
    if isinstance(value, Dataset):
        return {"name": value.name, "rows": len(value), "episodes": len(value.starts)}
    if isinstance(value, Source):
        return {"kind": type(value).__name__} | {k: plain(v) for k, v in hyperparameters(value).items()}
    return float(value) if getattr(value, "shape", None) == () else None
