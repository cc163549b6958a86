"""`learn`: one function drives every learner from every source."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from habitus.core.errors import CheckpointError, ConfigError, Diverged
from habitus.core.policy import Deployed
from habitus.core.protocols import Env, HostEnv, Learner, Source, require
from habitus.core.spec import Spec
from habitus.data.dataset import Dataset
from habitus.envs.registry import make
from habitus.train.checkpoint import Checkpoints
from habitus.train.collect import Episodes, run_episodes
from habitus.train.engine import NEVER, HostEngine, PureEngine, Summary
from habitus.train.log import RunFolder, command
from habitus.train.progress import Clock, Interrupt, Progress
from habitus.train.recipe import is_recipe, recipe_of
from habitus.train.record import Record
from habitus.train.run import Run, merge
from habitus.train.runtime import make_room, prepare
from habitus.train.setup import describe, make_learner, make_source, slugs_of
from habitus.train.sinks import Sink, make_sinks

EVALUATION_SEED = 1_000_000  # far from the seeds that people choose


def learn(
    learner: Learner | str,
    source: Source | Dataset | Env | HostEnv | str | Path | None = None,
    steps: int = 10_000,
    *,
    env: Any = None,
    data: Dataset | str | Path | None = None,
    mix: float | str | None = None,
    seeds: int | Sequence[int] = 1,
    evaluations: int | Sequence[int] = 0,
    episodes: int = 10,
    folder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoints: int = 5,
    keep: int = 2,
    logs: Sequence[str] = (),
    points: int = 100,
    warm_start: Run | None = None,
    evaluate_in: Any = None,
    quiet: bool = True,
    source_options: dict[str, Any] | None = None,
    **settings: Any,
) -> Run:
    """Improves a policy with a learner, from a source of experience; or runs a recipe of several stages.

    Args:
        learner: a learner, or the slug of one (then `settings` are its hyperparameters), or of a recipe
            (then they are its arguments; it says itself how long each stage is).
        source: where experience comes from; or a world, a data set, or a file, from which the
            source that the learner needs is made.
        steps: environment steps where the source acts; updates where it only reads a log.
        env: a world: a built-in name, a Gymnasium id, or an object.
        data: a log: a data set, a file, or the name of a standard set.
        mix: share of each batch that comes from the log, if there is a world too (default 0.5); or
            'proportional', which draws from both as from one buffer.
        seeds: how many seeds (from 0), or which. Compiled sources run them all at once.
        evaluations: how many times to evaluate along the way, the last at the end; or after which steps.
        episodes: episodes in one evaluation of one seed.
        folder: where to keep the run; None keeps nothing.
        resume: go on from the newest checkpoint in `folder`; starts anew if there is none.
        overwrite: replace the run that `folder` holds.
        checkpoints: how many to write along the way; one more is written at the end.
        keep: how many of the newest stay, besides the best by evaluation.
        logs: also log to any of 'tensorboard', 'wandb', 'mlflow'.
        points: how many points the learning curves have.
        evaluate_in: the world to evaluate in, where it is not the one to learn in.
        warm_start: begin where an earlier run of the same learner ended: learn offline, then online.
        quiet: show no progress bar.
        source_options: keyword arguments for the source that is made (`num_envs`, `warmup`, ...).

    Returns:
        The run: policies, curves, evaluations.

    Raises:
        ConfigError, SpaceMismatch: before anything is compiled, if the parts do not fit.
        RunExists: if `folder` holds a run and neither `resume` nor `overwrite` is set.
        Diverged: if a metric or parameter stops being finite.
    """
    if is_recipe(learner):
        return recipe_of(dict(locals()), {p.name: p.default for p in signature(learn).parameters.values()})
    prepare()
    make_room()
    require(steps > 0, f"steps must be above 0, but is {steps}.")
    seed_list = list(range(seeds)) if isinstance(seeds, int) else [int(s) for s in seeds]
    require(len(seed_list) > 0 and len(set(seed_list)) == len(seed_list), "seeds must be one or more different seeds.")
    require(resume is False or folder is not None, "resume needs the folder of the run.")
    learner = make_learner(learner, settings)
    options = source_options or {}
    source, world = make_source(learner, source, env, data, mix, options, warm=warm_start is not None)
    if evaluate_in is not None:
        world = make(evaluate_in)
        source.spec.check_same(world.spec, "the world to evaluate in")
    require(
        not evaluations or world is not None,
        "evaluations need a world: give evaluate_in=...",
    )
    config = describe(learner, source, world)
    config |= {"steps": steps, "seeds": seed_list, "command": command()}
    if warm_start is not None:
        _check_warm(warm_start, learner, source.spec)
    home = RunFolder(Path(folder), config, resume, overwrite) if folder is not None else None
    sinks = make_sinks(tuple(logs), home.path if home else None)
    plan = Plan(learner, source, world, source.draws(steps), evaluations, episodes, checkpoints, keep, points, resume)
    return _run(plan, seed_list, warm_start, config, home, sinks, quiet)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one call of `learn` was asked to do."""

    learner: Learner
    source: Source
    world: Env | HostEnv | None
    draws: int
    evaluations: int | Sequence[int]
    episodes: int
    checkpoints: int
    keep: int
    points: int
    resume: bool

    @property
    def spec(self) -> Spec:
        """The contract of the source, with the number of updates planned."""
        updates = self.draws * self.source.updates_per_draw
        return dataclasses.replace(self.source.spec, updates=updates, acts=self.source.acts)

    def at(self, n: int | Sequence[int]) -> set[int]:
        """`n` evenly spaced draws, the last of all among them; or the draws that reach the steps `n`."""
        if not isinstance(n, int):
            return {self.source.draws(step) for step in n}
        n = min(n, self.draws)
        return {round(self.draws * (i + 1) / n) for i in range(n)}


def _run(
    plan: Plan,
    seeds: list[int],
    warm_start: Run | None,
    config: dict[str, Any],
    home: RunFolder | None,
    sinks: list[Sink],
    quiet: bool,
) -> Run:
    """All seeds at once where the source is compiled, else one after the other."""
    groups = [seeds] if plan.source.pure else [[seed] for seed in seeds]
    parts: list[Run] = []
    with Progress(config["method"], plan.source.steps(plan.draws), quiet) as progress, Interrupt() as interrupt:
        for group in groups:
            clock = Clock()
            engine = _engine(plan, group, _warm(warm_start, len(parts)))
            if home and not parts:  # only now, as a run that cannot start must not take another's place
                home.open()
                for sink in sinks:
                    sink.open(home.path, config)
            progress.begin(f"seed {group[0]}" if len(groups) > 1 else "")
            record = Record(plan.source, group, home, sinks)
            parts.append(_drive(plan, engine, record, clock, progress, interrupt))
            if interrupt.asked:
                break
    for sink in sinks:
        sink.close()
    run = parts[0] if len(parts) == 1 else merge(parts)
    return run if len(parts) == len(groups) else dataclasses.replace(run, interrupted=True)


def _engine(plan: Plan, seeds: list[int], warm: Any) -> PureEngine | HostEngine:
    """What runs a group of seeds, at its start."""
    if plan.source.pure:
        return PureEngine(plan.learner, plan.source, plan.spec, seeds, warm)
    return HostEngine(plan.learner, plan.source, plan.spec, seeds[0], warm)


def _drive(
    plan: Plan, engine: PureEngine | HostEngine, record: Record, clock: Clock, progress: Progress, interrupt: Interrupt
) -> Run:
    """Runs one group of seeds from its newest checkpoint, or its start, to the end."""
    seeds = record.seeds
    store = None
    if record.home:
        name = "checkpoints" if plan.source.pure else f"checkpoints/seed-{seeds[0]}"
        store = Checkpoints(record.home.path / name, plan.keep)
    try:
        done = _restore(plan, engine, store, record)
        evaluate_at = plan.at(plan.evaluations)
        save_at = plan.at(plan.checkpoints) | evaluate_at | {plan.draws}
        clock.lap("start")
        for stop in sorted(d for d in plan.at(plan.points) | evaluate_at | save_at if d > done):
            summary = engine.advance(stop - done)
            done = stop
            clock.lap("learn")
            _check(summary, engine, store)
            record.metrics(done, summary.metrics, clock.total)
            progress.show(plan.source.steps(done), summary.metrics)
            if done in evaluate_at:
                record.evaluation(done, _evaluate(plan, engine, seeds))
                clock.lap("evaluate")
            if store and (done in save_at or interrupt.asked):
                store.save(done, engine.snapshot(), record.score(done))
                clock.lap("save")
            if interrupt.asked:
                break
        states = [engine.learner_state(i) for i in range(len(seeds))]
    finally:
        if store:
            store.close()
        engine.close()
    clock.lap("save")
    run = Run(
        learner=plan.learner,
        spec=plan.source.spec,
        env=plan.world,
        seeds=seeds,
        states=states,
        history=record.history(),
        evaluations=record.evaluations,
        seconds=clock.seconds,
        folder=record.home.path if record.home else None,
        interrupted=done < plan.draws,
    )
    run.save_policies()
    return run


def _restore(plan: Plan, engine: PureEngine | HostEngine, store: Checkpoints | None, record: Record) -> int:
    """Puts the newest checkpoint back; returns how many draws are done."""
    done = store.latest() if plan.resume and store else None
    record.rewind(0 if done is None else done)
    if done is None or store is None:
        return 0
    if done > plan.draws:
        raise CheckpointError(f"the run is already {done} draws long, beyond the {plan.draws} asked for; raise steps.")
    engine.restore(store.load(done, engine.snapshot()))
    return done


def _check(summary: Summary, engine: PureEngine | HostEngine, store: Checkpoints | None) -> None:
    """Raises `Diverged` if a metric or a parameter is not finite; the last good checkpoint stays."""
    bad = {name: int(np.min(at)) for name, at in summary.first_bad.items() if np.min(at) < NEVER}
    if not bad and engine.finite():
        return
    name, update = min(bad.items(), key=lambda item: item[1]) if bad else ("a parameter", summary.update)
    kept = store.latest() if store else None
    raise Diverged(name, update, str(store.path(kept)) if store and kept is not None else None)


def _evaluate(plan: Plan, engine: PureEngine | HostEngine, seeds: list[int]) -> list[Episodes]:
    """The same fresh episodes at each evaluation, so that what changes along a curve is the policy."""
    assert plan.world is not None
    policies = [Deployed.of(engine.policy(i), plan.source.spec) for i in range(len(seeds))]
    return [
        run_episodes(policy, plan.world, plan.episodes, EVALUATION_SEED + 1_000 * seed)
        for policy, seed in zip(policies, seeds, strict=True)
    ]


def _check_warm(run: Run, learner: Learner, spec: Spec) -> None:
    """Raises `ConfigError` or `SpaceMismatch` unless a run of `learner` can begin where `run` ended."""
    if type(run.learner) is not type(learner) and not slugs_of(run.learner) & set(learner.continues):
        others = "".join(f", or of {slug}" for slug in learner.continues)
        raise ConfigError(
            f"warm_start is a run of {type(run.learner).__name__}, but the learner is a {type(learner).__name__}; "
            f"start from a run of the same learner{others}."
        )
    spec.check_same(run.spec, "the run to start from")


def _warm(run: Run | None, group: int) -> Any:
    """The states to begin with: all of them for a compiled source, one for a host source."""
    if run is None:
        return None
    return run.states[group % len(run.states) :] + run.states[: group % len(run.states)]
