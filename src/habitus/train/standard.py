"""Standard data sets of MuJoCo's worlds: everything comes from one run of SAC on this machine.

`random` is uniform actions; `medium-replay` the replay buffer up to the point at which the policy
first earns a third of the best return of the run; `medium` stochastic roll-outs of the policy at that
point; `expert` those of the best policy; `medium-expert` both. Made in a quarter of an hour, then
kept in the cache. The tasks without a simulator of their own are in `habitus.data.maker`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from habitus.core.errors import UnknownName, suggest
from habitus.core.policy import Deployed
from habitus.core.protocols import HostEnv, Policy
from habitus.data import maker
from habitus.data.dataset import Dataset
from habitus.data.formats import npz
from habitus.data.io import load as load_plain
from habitus.envs.registry import make
from habitus.train.collect import HostCollector, run_episodes
from habitus.train.engine import HostEngine
from habitus.train.host import Actor
from habitus.train.runtime import prepare
from habitus.train.setup import entry
from habitus.train.sources import Replay, Uniform

VERSION = 2
SPLITS = ("random", "medium-replay", "medium", "expert", "medium-expert")
CHECK_EVERY = 1_000
CHECK_EPISODES = 5


@dataclasses.dataclass(frozen=True)
class Task:
    """A world of Gymnasium, and how long SAC trains in it."""

    world: str
    steps: int
    size: int = 50_000


TASKS = {
    "hopper": Task("Hopper-v5", 100_000),
    "halfcheetah": Task("HalfCheetah-v5", 60_000),
    "walker2d": Task("Walker2d-v5", 150_000),
    "inverted-double-pendulum": Task("InvertedDoublePendulum-v5", 20_000, 20_000),
}


def names() -> list[str]:
    """Every standard data set, those that are made in seconds first."""
    return maker.names() + [f"{task}-{split}" for task in TASKS for split in SPLITS]


def split_name(name: str) -> tuple[str, str]:
    """Task and split of a standard data set. Raises `UnknownName`, saying what is near."""
    if name not in names():
        raise UnknownName(f"{name!r} is neither a file nor a standard data set: {suggest(name, names())}")
    task = next(t for t in (*maker.TASKS, *TASKS) if name.startswith(f"{t}-"))
    return task, name.removeprefix(f"{task}-")


def load(source: str | Path, **options: Any) -> Dataset:
    """A data set from a file or folder, or the standard one of that name.

    Args:
        source: a path, or a name such as 'pendulum-medium' or 'hopper-medium-replay'.
        options: see `habitus.data.io.load`.

    Raises:
        DataError: naming the file, the rows and the remedy.
        UnknownName: if there is neither such a file nor such a standard set.
    """
    path = Path(source)
    if path.exists() or path.suffix or len(path.parts) > 1:
        return load_plain(source, **options)
    return make_offline(*split_name(str(source)))


def make_offline(task: str, split: str, seed: int = 0, size: int | None = None) -> Dataset:
    """A standard data set of any task; see `habitus.data.maker.make_offline` and the top of this file.

    Args:
        size: rows at most; by default all of them.

    Raises:
        UnknownName: if there is no such task or split.
        MissingExtra: if MuJoCo is needed and missing.
    """
    if task not in TASKS:
        return maker.make_offline(task, split, seed, size)
    if split not in SPLITS:
        raise UnknownName(f"{task} has no split {split!r}: {suggest(split, list(SPLITS))}")
    path = _path(task, split, seed)
    if not path.exists():
        _make_all(task, seed)
    dataset = npz.read(path, validate=False)
    return dataset if size is None or size >= len(dataset) else dataset.subset(rows=slice(0, size))


def _path(task: str, split: str, seed: int) -> Path:
    return maker.cache_folder() / f"{task}-{split}-seed{seed}-v{VERSION}.npz"


def _make_all(task: str, seed: int) -> None:
    """Trains once and writes every split."""
    prepare()
    plan = TASKS[task]
    sac = entry("sac")(hidden=(128, 128))
    world = make(plan.world)
    assert isinstance(world, HostEnv)
    source = Replay(world, capacity=plan.steps, warmup=5_000, batch_size=sac.batch_size)
    engine = HostEngine(sac, source, source.spec, seed, None)
    checks: list[tuple[int, float, Policy]] = []
    trial = make(plan.world)
    assert isinstance(trial, HostEnv)
    for done in range(CHECK_EVERY, source.draws(plan.steps) + 1, CHECK_EVERY):
        engine.advance(CHECK_EVERY)
        greedy = Deployed.of(engine.policy(0), source.spec)
        score = float(run_episodes(greedy, trial, CHECK_EPISODES, done).returns.mean())
        checks.append((source.steps(done), score, sac.explorer(engine.learner_state(0))))
    scores = [score for _, score, _ in checks]
    best = int(np.argmax(scores))
    smooth = np.convolve(scores, np.ones(3) / 3, mode="valid")
    third = int(np.argmax(smooth >= max(smooth) / 3))
    rows, _, medium = checks[third]
    splits = {"medium-replay": _columns(engine.source_state.buffer.data, source.spec, rows)}
    uniform = Uniform.over(source.spec, checks[0][2])
    for name, policy in (("random", uniform), ("medium", medium), ("expert", checks[best][2])):
        splits[name] = _roll_out(Deployed.of(policy, source.spec), plan, seed)
    splits["medium-expert"] = {
        k: np.concatenate([splits[s][k] for s in ("medium", "expert")]) for k in splits["medium"]
    }
    returns = {name: Dataset.from_arrays(**columns).returns for name, columns in splits.items()}
    for name, columns in splits.items():
        meta = {
            "task": plan.world,
            "split": name,
            "seed": seed,
            "maker": VERSION,
            "horizon": world.horizon,
            "random_return": float(returns["random"].mean()),
            "expert_return": float(returns["expert"].mean()),
            "behaviour_return": float(returns[name].mean()),
            "behaviour_return_std": float(returns[name].std()),
            "learning_curve": [[step, score] for step, score, _ in checks],
        }
        columns |= {"observation_space": world.observation_space, "action_space": world.action_space}
        npz.write(Dataset.from_arrays(**columns, meta=meta), _path(task, name, seed))
    engine.close()
    trial.close()


def _columns(rows: Any, spec: Any, n: int) -> dict[str, Any]:
    """The first `n` canonical transitions, in the user's spaces; the last of them ends its episode."""
    columns = {k: np.array(v[:n]) for k, v in rows.columns.items()}
    columns["action"] = np.asarray(jax.vmap(spec.decode_action)(columns["action"]))
    columns["truncated"][-1] |= not columns["terminated"][-1]
    return columns


def _roll_out(policy: Deployed, plan: Task, seed: int) -> dict[str, Any]:
    """`plan.size` transitions of a policy."""
    env = make(plan.world)
    assert isinstance(env, HostEnv)
    actor = Actor.of(policy)
    collector = HostCollector(env, actor, seed + 1)
    rows = [collector.step(actor) for _ in range(plan.size)]
    env.close()
    columns = {k: np.concatenate([getattr(row, k) for row in rows]) for k in rows[0].columns}
    columns["truncated"][-1] |= not columns["terminated"][-1]
    return columns
