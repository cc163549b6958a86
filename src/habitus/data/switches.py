"""Samples of switching tasks, made of demonstrations in which nobody ever switched.

M. Li et al., "SwitchVLA: Execution-Aware Task Switching for Vision-Language-Action Models", arXiv 2506.03574.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float, Int

from habitus.core.domains import require
from habitus.core.errors import DataError, SpaceMismatch
from habitus.data.contact import ADVANCE, FORWARD, ROLLBACK, without_flicker
from habitus.data.dataset import Dataset
from habitus.data.parts import joined, widened


@dataclasses.dataclass(frozen=True)
class Hand:
    """How the poses of a hand are read off observations, and how actions move it.

    Attributes:
        pose: of observations [rows, ...], the poses [rows, dimensions].
        action: of poses [rows, dimensions], the poses to be reached next and gripper commands [rows], the actions
            [rows, actions]. Absolute targets are safe; displacements drift where they are clipped.
        hold: the gripper command that holds.
        open: the gripper command that lets go.
        max_step: the greatest distance between two poses of a path that is made up.
    """

    pose: Callable[[Any], np.ndarray]
    action: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    hold: float = 1.0
    open: float = -1.0
    max_step: float = 0.02

    def __post_init__(self) -> None:
        require(self.max_step > 0, f"max_step must be above 0, but is {self.max_step}.")

    def along(self, path: Float[np.ndarray, "poses dimensions"], grip: Sequence[float]) -> np.ndarray:
        """The actions along a path, one fewer than its poses, with a gripper command for each."""
        return np.asarray(self.action(path[:-1], path[1:], np.asarray(grip, np.float32)))

    def straight(self, start: Float[np.ndarray, "dimensions"], end: Float[np.ndarray, "dimensions"]) -> np.ndarray:
        """Poses at constant speed from `start` to `end`, both included, `max_step` apart at most."""
        steps = max(int(np.ceil(np.linalg.norm(end - start) / self.max_step - 1e-6)), 0)
        share = np.arange(steps + 1)[:, None] / max(steps, 1)
        return np.asarray(start + share * (end - start), np.float32) if steps else start[None]


@dataclasses.dataclass
class Demonstrations:
    """A log of single tasks as switch samples need it.

    Attributes:
        log: the demonstrations.
        task: of each episode.
        contact: of each row.
        hand: how it moves.
        pose: of each row, and `final` after each row.
        scene: of each row, what must look alike for a path to another demonstration to make sense; or None.
    """

    log: Dataset
    task: Int[np.ndarray, "episodes"]
    contact: Bool[np.ndarray, "rows"]
    hand: Hand
    pose: Float[np.ndarray, "rows dimensions"]
    final: Float[np.ndarray, "rows dimensions"]
    scene: Float[np.ndarray, "rows scene"] | None = None

    def forward(self, row: int, length: int) -> np.ndarray:
        """The recorded actions from a row on; where the episode ends sooner the hand stays as it is."""
        episode = int(self.log.episode_of(row))
        end = int(self.log.ends[episode])
        actions = np.asarray(self.log.action[row : min(row + length, end + 1)])
        return self._stay(actions, self.final[end], bool(self.contact[end]), length)

    def rollback(self, row: int, length: int) -> np.ndarray:
        """Back along the poses to the last one before the contact; the gripper opens where it had closed."""
        start = int(self.log.starts[self.log.episode_of(row)])
        free = np.flatnonzero(~self.contact[start:row])
        first = start + int(free[-1]) if len(free) else start
        back = np.arange(row, first - 1, -1)
        grip = [self.hand.hold if self.contact[to] else self.hand.open for to in back[1:]]
        actions = self.hand.along(self.pose[back], grip)[:length]
        return self._stay(actions, self.pose[first], False, length)

    def advance(self, row: int, to: int, length: int) -> np.ndarray:
        """Straight to the start of episode `to` with an open gripper, then as that episode goes on."""
        start = int(self.log.starts[to])
        path = self.hand.straight(self.pose[row], self.pose[start])
        actions = self.hand.along(path, [self.hand.open] * (len(path) - 1))[:length]
        rest = length - len(actions)
        return np.concatenate([actions, self.forward(start, rest)]) if rest else actions

    def nearest(self, row: int, task: int) -> int:
        """The episode of a task that starts in the scene most like that of a row."""
        episodes = np.flatnonzero(self.task == task)
        if self.scene is None:
            return int(episodes[0])
        away = np.linalg.norm(self.scene[self.log.starts[episodes]] - self.scene[row], axis=-1)
        return int(episodes[away.argmin()])

    def _stay(self, actions: np.ndarray, pose: np.ndarray, held: bool, length: int) -> np.ndarray:
        missing = length - len(actions)
        if missing <= 0:
            return actions
        grip = [self.hand.hold if held else self.hand.open] * missing
        still = self.hand.along(np.repeat(pose[None], missing + 1, 0), grip)
        return np.concatenate([actions, still]) if len(actions) else still


def switch_samples(
    log: Dataset,
    task: Int[np.ndarray, "episodes"],
    contact: Bool[np.ndarray, "rows"],
    hand: Hand,
    size: int,
    *,
    length: int = 16,
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2),
    scene: Callable[[Any], np.ndarray] | None = None,
    reversible: Sequence[bool] | None = None,
    shortest: int = 2,
    seed: int = 0,
) -> Dataset:
    """Samples for a policy that hears of a new task in the midst of an old one.

    Each of them begins at a row of a demonstration of task i, drawn uniformly. *Forward*: i goes on, with the recorded
    actions. *Rollback*, in contact only: another task is asked for, and the hand goes back along its own poses to
    where it was free. *Advance*, out of contact only: another task j is asked for, and the hand goes straight to the
    start of a demonstration of j in a similar scene, then as that one does.

    Args:
        log: demonstrations of single tasks, with real actions [actions].
        task: the task of each episode, from 0.
        contact: of each row, whether the hand holds something; runs shorter than `shortest` are taken for noise.
        hand: how poses are read, and actions made.
        size: how many samples.
        length: steps of a sample's actions.
        shares: probabilities of forward, rollback and advance; what a row does not allow is left out and the rest
            scaled up, and a row that allows none of those wanted goes forward.
        scene: of observations [rows, ...], what must be alike where an advance leads, [rows, features]; without it the
            first demonstration of the task serves.
        reversible: for each task, whether its contact can be undone; if not, its rows in contact only go forward. All
            can, if left out.
        seed: of the choice.

    Returns:
        a log of `size` episodes of one row. The action is a chunk [length, actions]. Observations hold, besides what
        they did, `previous` and `current` task, `contact_before` (of the row before, False at first); and what a policy
        has to predict, `contact` and `behaviour` (0 forward, 1 rollback, 2 advance).

    Raises:
        ConfigError: if a number is out of its domain, or a switch is wanted with one task only.
        DataError: if tasks, flags or actions made by `hand` do not fit the log.
        SpaceMismatch: if actions are not real vectors.
    """
    shown, tasks = _demonstrations(log, task, without_flicker(log, contact, shortest), hand, scene)
    able = np.ones(tasks, bool) if reversible is None else np.asarray(reversible, bool)
    require(size >= 1 and length >= 1, f"size is {size} and length {length}; both must be 1 or more.")
    require(min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6, f"shares are three probabilities of sum 1: {shares}.")
    require(tasks > 1 or shares[0] == 1, "there is one task only, so nothing to switch to; use shares=(1, 0, 0).")
    require(able.shape == (tasks,), f"reversible needs one flag for each of {tasks} tasks.")
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(log), size)
    old = shown.task[log.episode_of(rows)]
    held = shown.contact[rows]
    legal = np.stack([np.ones(size, bool), held & able[old], ~held], -1)
    behaviour = _drawn(legal, np.asarray(shares), rng)
    others = (old + rng.integers(1, max(tasks, 2), size)) % tasks
    new = np.where(behaviour == FORWARD, old, others)
    samples = zip(rows.tolist(), behaviour.tolist(), new.tolist(), strict=True)
    made = np.stack([_chunk(shown, *sample, length) for sample in samples])
    first = np.isin(rows, log.starts)
    parts = {
        "previous": (old, spaces.Discrete(tasks)),
        "current": (new, spaces.Discrete(tasks)),
        "contact_before": (shown.contact[np.maximum(rows - 1, 0)] & ~first, spaces.Discrete(2)),
        "contact": (held, spaces.Discrete(2)),
        "behaviour": (behaviour, spaces.Discrete(3)),
    }
    return _as_log(log, rows, made, parts)


def _demonstrations(
    log: Dataset, task: np.ndarray, contact: np.ndarray, hand: Hand, scene: Callable[[Any], np.ndarray] | None
) -> tuple[Demonstrations, int]:
    """The log with what is read off it, and the number of tasks."""
    if not isinstance(log.action_space, spaces.Box) or len(log.action_space.shape) != 1:
        raise SpaceMismatch(f"switch samples are of real actions [actions], but the space is {log.action_space}.")
    if task.shape != log.starts.shape or task.dtype.kind not in "iu" or task.min() < 0:
        raise DataError(f"task needs a whole number from 0 for each of the {len(log.starts)} episodes.")
    missing = np.setdiff1d(np.arange(task.max() + 1), task)
    if len(missing):
        raise DataError(f"no episode shows task {missing[0]}; number the tasks from 0 without gaps.")
    obs, after = (jax.tree.map(np.asarray, column) for column in (log.obs, log.next_obs))
    seen = None if scene is None else np.asarray(scene(obs))
    pose, final = np.asarray(hand.pose(obs)), np.asarray(hand.pose(after))
    return Demonstrations(log, np.asarray(task), contact, hand, pose, final, seen), int(task.max()) + 1


def _drawn(
    legal: Bool[np.ndarray, "samples 3"], shares: np.ndarray, rng: np.random.Generator
) -> Int[np.ndarray, "samples"]:
    """A behaviour for each sample, of those that its row allows."""
    weight = np.cumsum(legal * shares, -1)
    drawn = (rng.random((len(legal), 1)) * weight[:, -1:] >= weight).sum(-1)
    return np.where(weight[:, -1] > 0, np.minimum(drawn, ADVANCE), FORWARD)


def _chunk(shown: Demonstrations, row: int, behaviour: int, new: int, length: int) -> np.ndarray:
    if behaviour == FORWARD:
        return shown.forward(row, length)
    if behaviour == ROLLBACK:
        return shown.rollback(row, length)
    return shown.advance(row, shown.nearest(row, new), length)


def _as_log(log: Dataset, rows: np.ndarray, made: np.ndarray, parts: dict[str, tuple[np.ndarray, Any]]) -> Dataset:
    space: Any = log.action_space
    if made.shape[2:] != space.shape:
        raise DataError(f"hand makes actions {made.shape[2:]}, but those of the log are {space.shape}.")
    made = made.astype(space.dtype)
    outside = ((made < space.low - 1e-5) | (made > space.high + 1e-5)).any((1, 2))
    if outside.any():
        at = rows[np.argmax(outside)]
        raise DataError(f"the actions made for row {at} leave {space}; lower max_step, or widen the space of the log.")
    low, high = (np.broadcast_to(bound, made.shape[1:]) for bound in (space.low, space.high))
    obs = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], log.obs)
    columns = {name: column.astype(np.int64) for name, (column, _) in parts.items()}
    seen = joined(obs, columns)
    return Dataset.from_arrays(
        obs=seen,
        next_obs=seen,
        action=made,
        reward=np.zeros(len(rows), np.float32),
        terminated=np.ones(len(rows), bool),
        observation_space=widened(log.observation_space, {name: kind for name, (_, kind) in parts.items()}),
        action_space=spaces.Box(low, high, dtype=space.dtype),
        meta=dict(log.meta),
        validate=False,
    )
