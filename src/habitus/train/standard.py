"""Standard data sets of MuJoCo's worlds: everything comes from one run of SAC on this machine.

`random` is uniform actions; `medium-replay` the replay buffer up to the point at which the policy
first earns a third of the best return of the run; `medium` stochastic roll-outs of the policy at that
point; `expert` those of the best policy; `medium-expert` both. Made in a quarter of an hour or more, then
kept in the cache; what was done when it was killed is kept there too, and gone on with. The tasks without
a simulator of their own are in `habitus.data.maker`.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from habitus.core.errors import UnknownName, suggest
from habitus.core.policy import Deployed
from habitus.core.protocols import HostEnv, Policy
from habitus.core.trees import is_array
from habitus.data import maker
from habitus.data.dataset import Dataset
from habitus.data.formats import npz
from habitus.data.io import load as load_plain
from habitus.envs.registry import make
from habitus.train.checkpoint import from_host, to_host
from habitus.train.collect import HostCollector, run_episodes
from habitus.train.engine import HostEngine
from habitus.train.host import Actor
from habitus.train.progress import Progress
from habitus.train.runtime import prepare
from habitus.train.setup import entry
from habitus.train.sources import Replay, Uniform

VERSION = 2
SPLITS = ("random", "medium-replay", "medium", "expert", "medium-expert")
CHECK_EPISODES = 5


@dataclasses.dataclass(frozen=True)
class Task:
    """A world of Gymnasium, and how long SAC trains in it."""

    world: str
    steps: int
    size: int = 50_000
    warmup: int = 5_000
    check_every: int = 1_000
    save_every: int = 5_000


TASKS = {
    "hopper": Task("Hopper-v5", 100_000),
    "halfcheetah": Task("HalfCheetah-v5", 60_000),
    "walker2d": Task("Walker2d-v5", 150_000),
    "inverted-double-pendulum": Task("InvertedDoublePendulum-v5", 20_000, 20_000),
}


def names() -> list[str]:
    """Every standard data set, those that are made in seconds first."""
    return maker.names() + [f"{task}-{split}" for task in TASKS for split in SPLITS]


def tasks() -> list[str]:
    """Every task that has standard data sets."""
    return [*maker.TASKS, *TASKS]


def splits_of(task: str) -> tuple[str, ...]:
    """The splits of a task. Raises `UnknownName`, saying what is near."""
    if task in TASKS:
        return SPLITS
    if task in maker.TASKS:
        return maker.TASKS[task].splits
    raise UnknownName(f"no standard data set is of the task {task!r}: {suggest(task, [*maker.TASKS, *TASKS])}")


def is_made(task: str, split: str, seed: int = 0) -> bool:
    """Whether a set is in the cache, or is made in seconds."""
    return task in maker.TASKS or _path(task, split, seed).exists()


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


def make_offline(task: str, split: str, seed: int = 0, size: int | None = None, quiet: bool = True) -> Dataset:
    """A standard data set of any task; see `habitus.data.maker.make_offline` and the top of this file.

    Args:
        size: rows at most; by default all of them.
        quiet: show no progress bar while one is made.

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
        _make_all(task, seed, quiet)
    dataset = npz.read(path, validate=False)
    return dataset if size is None or size >= len(dataset) else dataset.subset(rows=slice(0, size))


def _path(task: str, split: str, seed: int) -> Path:
    return maker.cache_folder() / f"{task}-{split}-seed{seed}-v{VERSION}.npz"


def _make_all(task: str, seed: int, quiet: bool = True) -> None:
    """Trains once, rolls out and writes every split; goes on where an earlier call was killed."""
    prepare()
    plan, home = TASKS[task], maker.cache_folder() / f"{task}-seed{seed}-v{VERSION}.making"
    training = Training(plan, seed, home, quiet)
    training.run()
    checks, replay = training.checks(), home / "medium-replay.npz"
    scores = [score for _, score, _ in checks]
    best = int(np.argmax(scores))
    smooth = np.convolve(scores, np.ones(3) / 3, mode="valid")
    third = int(np.argmax(smooth >= max(smooth) / 3))
    rows, _, medium = checks[third]
    if not replay.exists():
        _write(replay, _columns(training.engine.source_state.buffer.data, training.source.spec, rows))  # type: ignore[attr-defined]
    uniform = Uniform.over(training.source.spec, checks[0][2])
    for name, policy in (("random", uniform), ("medium", medium), ("expert", checks[best][2])):
        if not (home / f"{name}.npz").exists():
            _write(home / f"{name}.npz", _roll_out(Deployed.of(policy, training.source.spec), plan, seed, name, quiet))
    splits = {name: _read(home / f"{name}.npz") for name in ("random", "medium-replay", "medium", "expert")}
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
            "horizon": training.world.horizon,
            "random_return": float(returns["random"].mean()),
            "expert_return": float(returns["expert"].mean()),
            "behaviour_return": float(returns[name].mean()),
            "behaviour_return_std": float(returns[name].std()),
            "learning_curve": [[step, score] for step, score, _ in checks],
        }
        spaces: dict[str, Any] = {
            "observation_space": training.world.observation_space,
            "action_space": training.world.action_space,
        }
        npz.write(Dataset.from_arrays(**columns, **spaces, meta=meta), _path(task, name, seed))
    training.close()
    shutil.rmtree(home)


class Training:
    """SAC on a task, tried out every so often, and kept on disk so that a kill costs little."""

    def __init__(self, plan: Task, seed: int, home: Path, quiet: bool):
        self.plan, self.home, self.quiet = plan, home, quiet
        home.mkdir(parents=True, exist_ok=True)
        self.sac = entry("sac")(hidden=(128, 128))
        world, trial = make(plan.world), make(plan.world)
        assert isinstance(world, HostEnv) and isinstance(trial, HostEnv)
        self.world, self.trial = world, trial
        self.source = Replay(world, capacity=plan.steps, warmup=plan.warmup, batch_size=self.sac.batch_size)
        self.engine = HostEngine(self.sac, self.source, self.source.spec, seed, None)

    @property
    def draws(self) -> int:
        """How many make up the whole training."""
        return self.source.draws(self.plan.steps)

    def run(self) -> None:
        """Trains from the last checkpoint to the end."""
        done = self._restore()
        with Progress("training", self.draws, self.quiet) as progress:
            progress.begin(self.plan.world)
            for after in range(done + self.plan.check_every, self.draws + 1, self.plan.check_every):
                self.engine.advance(self.plan.check_every)
                greedy = Deployed.of(_on_device(self.engine.policy(0)), self.source.spec)
                score = float(run_episodes(greedy, self.trial, CHECK_EPISODES, after).returns.mean())
                leaves = to_host(self.sac.explorer(self.engine.learner_state(0)))
                _write(self.home / f"check-{after:08d}.npz", _named(leaves) | {"score": np.asarray(score)})
                if after % self.plan.save_every == 0 or after + self.plan.check_every > self.draws:
                    _write(self.home / "engine.npz", _named(self.engine.snapshot()) | {"done": np.asarray(after)})
                progress.show(after, {"return": np.asarray(score)})

    def _restore(self) -> int:
        """Draws that are done."""
        kept = self.home / "engine.npz"
        if not kept.exists():
            return 0
        found = _read(kept)
        done = int(found.pop("done"))
        self.engine.restore([found[name] for name in sorted(found)])
        buffer = self.engine.source_state.buffer  # type: ignore[attr-defined]
        # the episode under way at the checkpoint is not gone on with
        last = (buffer.position - 1) % buffer.capacity
        buffer.data.truncated[last] |= not buffer.data.terminated[last]
        return done

    def checks(self) -> list[tuple[int, float, Policy]]:
        """Environment steps, mean return of the best actions, and the policy that explored, at every check."""
        like, out = self.sac.explorer(self.engine.learner_state(0)), []
        for after in range(self.plan.check_every, self.draws + 1, self.plan.check_every):
            found = _read(self.home / f"check-{after:08d}.npz")
            score = float(found.pop("score"))
            policy = from_host(like, [found[name] for name in sorted(found)])
            out.append((self.source.steps(after), score, _on_device(policy)))
        return out

    def close(self) -> None:
        """Releases the worlds."""
        self.engine.close()
        self.trial.close()


def _on_device(policy: Policy) -> Policy:
    """With JAX's arrays."""
    return jax.tree.map(lambda x: jnp.asarray(x) if is_array(x) else x, policy)


def _named(leaves: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{i:04d}": leaf for i, leaf in enumerate(leaves)}


def _write(path: Path, arrays: dict[str, Any]) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(part, path)


def _read(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _columns(rows: Any, spec: Any, n: int) -> dict[str, Any]:
    """The first `n` canonical transitions, in the user's spaces; the last of them ends its episode."""
    columns = {k: np.array(v[:n]) for k, v in rows.columns.items()}
    columns["action"] = np.asarray(jax.vmap(spec.decode_action)(columns["action"]))
    columns["truncated"][-1] |= not columns["terminated"][-1]
    return columns


def _roll_out(policy: Deployed, plan: Task, seed: int, name: str, quiet: bool) -> dict[str, Any]:
    """`plan.size` transitions of a policy."""
    env = make(plan.world)
    assert isinstance(env, HostEnv)
    actor = Actor.of(policy)
    collector = HostCollector(env, actor, seed + 1)
    rows = []
    with Progress(f"rolling out {name}", plan.size, quiet) as progress:
        progress.begin(plan.world)
        for step in range(1, plan.size + 1):
            rows.append(collector.step(actor))
            if step % 1_000 == 0 or step == plan.size:
                progress.show(step, {})
    env.close()
    columns = {k: np.concatenate([getattr(row, k) for row in rows]) for k in rows[0].columns}
    columns["truncated"][-1] |= not columns["terminated"][-1]
    return columns
