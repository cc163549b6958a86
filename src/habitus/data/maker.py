"""The standard data sets: made on this machine from controllers written by hand, and kept in a cache."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import platformdirs
from jaxtyping import Array, Float, Key, PRNGKeyArray

from habitus.core.errors import ConfigError, DataError, UnknownName, suggest
from habitus.core.experience import Transition
from habitus.core.protocols import Env, Policy
from habitus.data.behaviours import FollowWay, Spoilt, SwingUp
from habitus.data.dataset import Dataset
from habitus.data.formats import npz
from habitus.envs.registry import make

VERSION = 1  # of the recipes below: raise it whenever their data change
REFERENCE_EPISODES = 50
_REFERENCE_SEED = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Quality:
    """How good the behaviour of an episode is: `gain` and `noise` of the expert's actions, share of uniform ones."""

    gain: float = 1.0
    noise: float = 0.0
    random_share: float = 0.0


RANDOM = Quality(random_share=1.0)
EXPERT = Quality()


@dataclasses.dataclass(frozen=True)
class Task:
    """A world, its expert, and what counts as medium there."""

    expert: Callable[[Any], Policy]
    medium: Quality
    size: int
    splits: tuple[str, ...] = ("random", "medium", "replay", "expert", "medium-expert")


TASKS = {
    "pendulum": Task(
        expert=lambda world: SwingUp(),
        medium=Quality(noise=0.3, random_share=0.5),
        size=10_000,
        splits=("random", "medium", "replay", "expert", "medium-expert", "narrow"),
    ),
    "pointmaze": Task(expert=FollowWay.through, medium=Quality(gain=0.4, noise=0.3), size=50_000),
}
NARROW_SIZE = 4_000
REPLAY_LEVELS = 5


def make_offline(task: str, split: str, seed: int = 0, size: int | None = None) -> Dataset:
    """A standard data set; made in seconds, then kept under the user's cache folder.

    Splits: `random` (uniform actions), `medium` (a weak or distracted controller), `replay` (five
    levels from random to medium), `expert`, `medium-expert` (half and half), and for pendulum
    `narrow` (half expert, half uniform episodes, few of them). Every episode is recorded to its end.

    Args:
        task: 'pendulum' or 'pointmaze'.
        split: see above.
        seed: of the roll-outs.
        size: rows, rounded to whole episodes; by default 10,000 (pendulum; `narrow` 4,000) or
            50,000 (pointmaze).

    Raises:
        UnknownName: if there is no such task or split.
    """
    if task not in TASKS:
        raise UnknownName(f"no standard data set is of the task {task!r}: {suggest(task, list(TASKS))}")
    if split not in TASKS[task].splits:
        raise UnknownName(f"{task} has no split {split!r}: {suggest(split, list(TASKS[task].splits))}")
    size = size or (NARROW_SIZE if split == "narrow" else TASKS[task].size)
    if size < 1:
        raise ConfigError(f"size is {size}, expected at least one row.")
    path = cache_folder() / f"{task}-{split}-{_digest(task, split, seed, size)}.npz"
    if path.exists():
        try:
            return npz.read(path, validate=False)
        except DataError:  # a damaged cache is worth no more than none
            path.unlink(missing_ok=True)
    dataset = _make(task, split, seed, size)
    try:
        npz.write(dataset, path)
    except OSError as error:
        warnings.warn(f"{path} cannot be written ({error.strerror}); the data set is not kept.", stacklevel=2)
    return dataset


def names() -> list[str]:
    """The names that `load` knows."""
    return [f"{task}-{split}" for task, recipe in TASKS.items() for split in recipe.splits]


def split_name(name: str) -> tuple[str, str]:
    """Task and split of a standard data set. Raises `UnknownName`, saying what is near."""
    if name not in names():
        raise UnknownName(f"{name!r} is neither a file nor a standard data set: {suggest(name, names())}")
    task = next(task for task in TASKS if name.startswith(f"{task}-"))
    return task, name.removeprefix(f"{task}-")


def cache_folder() -> Path:
    """Where made data sets are kept: `$HABITUS_CACHE`, or the user's cache folder."""
    root = os.environ.get("HABITUS_CACHE") or platformdirs.user_cache_dir("habitus")
    return Path(root).expanduser() / "datasets"


@lru_cache
def references(task: str) -> tuple[float, float]:
    """Mean return of the random and of the expert policy of a task, each over 50 episodes."""
    key = jax.random.key(_REFERENCE_SEED)
    random, expert = (
        np.asarray(_roll_out(task, [quality] * REFERENCE_EPISODES, key).reward.sum(1)) for quality in (RANDOM, EXPERT)
    )
    return float(random.mean()), float(expert.mean())


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr((VERSION, *parts)).encode()).hexdigest()[:12]


def _make(task: str, split: str, seed: int, size: int) -> Dataset:
    world = _world(task)
    horizon = world.horizon or 1
    episodes = max(1, round(size / horizon))
    rolled = _roll_out(task, _qualities(TASKS[task], split, episodes), jax.random.key(seed))
    returns = np.asarray(rolled.reward, np.float64).sum(1)
    columns: dict[str, Any] = {name: np.asarray(x).reshape(-1, *x.shape[2:]) for name, x in rolled.columns.items()}
    random, expert = references(task)
    meta = {
        "task": task,
        "split": split,
        "seed": seed,
        "maker": VERSION,
        "horizon": horizon,
        "random_return": random,
        "expert_return": expert,
        "behaviour_return": float(returns.mean()),
        "behaviour_return_std": float(returns.std()),
    }
    columns |= {"observation_space": world.observation_space, "action_space": world.action_space}
    return Dataset.from_arrays(**columns, meta=meta, validate=False)


def _world(task: str) -> Env:
    world = make(task)
    assert isinstance(world, Env)
    return world


def _qualities(task: Task, split: str, episodes: int) -> list[Quality]:
    """The quality of each episode of a split."""
    half = [RANDOM] * (episodes - episodes // 2)
    if split == "replay":
        shares = np.linspace(1.0, task.medium.random_share, REPLAY_LEVELS)
        levels = np.arange(episodes) * REPLAY_LEVELS // episodes
        return [dataclasses.replace(task.medium, random_share=float(shares[level])) for level in levels]
    if split == "medium-expert":
        return [task.medium] * len(half) + [EXPERT] * (episodes // 2)
    if split == "narrow":
        return [Quality(noise=0.1)] * (episodes // 2) + half
    return [{"random": RANDOM, "medium": task.medium, "expert": EXPERT}[split]] * episodes


def _roll_out(task: str, qualities: list[Quality], key: PRNGKeyArray) -> Transition:
    """One episode of each quality, to the horizon: leading axes [episodes, time]."""
    world = _world(task)
    expert = TASKS[task].expert(getattr(world, "env", world))
    table = jnp.asarray([dataclasses.astuple(quality) for quality in qualities])
    return _episodes(world, expert, table, jax.random.split(key, (len(qualities), 1 + (world.horizon or 1))))


@eqx.filter_jit
def _episodes(
    world: Env, expert: Policy, qualities: Float[Array, "episodes 3"], keys: Key[Array, "episodes steps"]
) -> Transition:
    """Each episode uses its first key for the start and one more for each step."""
    low, high = (jnp.asarray(bound) for bound in (world.action_space.low, world.action_space.high))  # type: ignore[attr-defined]

    def episode(quality: Float[Array, "3"], keys: Key[Array, "steps"]) -> Transition:
        policy = Spoilt(expert, low, high, *quality)

        def advance(now: Any, key: PRNGKeyArray) -> tuple[Any, Transition]:
            state, obs = now
            act_key, step_key = jax.random.split(key)
            action, _ = policy(obs, policy.init(), act_key)
            state, step = world.step(state, action, step_key)
            row = Transition(obs, action, step.reward, step.terminated, step.truncated, step.obs, step.info.get("cost"))
            return (state, step.obs), row

        return jax.lax.scan(advance, world.reset(keys[0]), keys[1:])[1]

    return jax.vmap(episode)(qualities, keys)
