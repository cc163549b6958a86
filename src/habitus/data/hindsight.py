"""Hindsight: an episode that missed its goal shows how to reach what it did reach.

M. Andrychowicz et al., "Hindsight Experience Replay", NeurIPS 2017. C. Lynch et al., "Learning Latent Plans from
Play", CoRL 2019, for goals of windows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from habitus.core.domains import require
from habitus.core.errors import ConfigError, DataError
from habitus.core.experience import Trajectory
from habitus.core.protocols import Explorer
from habitus.data.dataset import Dataset
from habitus.data.source import DatasetSource

STRATEGIES = ("final", "future", "random")
OfGoals = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Goals:
    """Where observations [rows, ...] hold goals.

    Attributes:
        achieved: what they reach, [rows, goal].
        desired: what they were to reach, [rows, goal].
        replaced: the same observations with other desired goals.
    """

    achieved: Callable[[Any], np.ndarray]
    desired: Callable[[Any], np.ndarray]
    replaced: Callable[[Any, np.ndarray], Any]

    @classmethod
    def keys(cls, achieved: str = "achieved_goal", desired: str = "desired_goal") -> Goals:
        """Parts of Dict observations, by default under the names of Gymnasium-Robotics."""

        def part(name: str) -> Callable[[Any], np.ndarray]:
            def read(obs: Any) -> np.ndarray:
                if not isinstance(obs, dict) or name not in obs:
                    raise DataError(f"the observations have no part {name!r}; say where goals are with Goals.")
                return np.asarray(obs[name])

            return read

        return cls(part(achieved), part(desired), lambda obs, goal: obs | {desired: goal})

    @classmethod
    def columns(cls, achieved: Sequence[int], desired: Sequence[int]) -> Goals:
        """Features of vector observations, as many of each."""
        require(len(achieved) == len(desired), "achieved and desired goals need as many features each.")
        old, new = list(achieved), list(desired)

        def replaced(obs: Any, goal: np.ndarray) -> np.ndarray:
            changed = np.array(obs)
            changed[:, new] = goal
            return changed

        return cls(lambda obs: np.asarray(obs[:, old]), lambda obs: np.asarray(obs[:, new]), replaced)


def relabel_goals(
    log: Dataset,
    reward: OfGoals,
    shares: Mapping[str, float],
    goals: Goals | None = None,
    terminates: OfGoals | None = None,
    seed: int = 0,
) -> Dataset:
    """The log with other goals in some of its rows, and the rewards that these would have earned.

    Each row is relabelled by itself, so a row need not go on where the one before it ended: for learners from
    transitions, not from windows (but a share 1 of "final" gives a whole episode one goal).

    Args:
        log: the log.
        reward: of goals achieved [rows, goal] by the successors and desired ones [rows, goal], the rewards [rows].
        shares: the probability that a row's goal is replaced, by strategy; of the rest the goal stays. "final": by
            what its episode achieved at last. "future": by what it achieved with this row or a later one, uniformly.
            "random": by what any row of the log achieved. Four replays of "future" for one as it was, as in the paper,
            is `{"future": 0.8}`.
        goals: where the goals are; by default `Goals.keys()`.
        terminates: whether reaching the goal ends an episode, of the same arguments as `reward`; a relabelled row then
            terminates just there, and the log is cut into episodes accordingly. Without it flags stay as they were.
        seed: of the choice.

    Raises:
        ConfigError: for an unknown strategy, or shares that are no probabilities.
        DataError: if the observations hold no goals there, or `reward` is not one number a row.
    """
    unknown = sorted(set(shares) - set(STRATEGIES))
    require(not unknown, f"no strategy {unknown[:1]}; they are {', '.join(STRATEGIES)}.")
    values = [shares.get(name, 0.0) for name in STRATEGIES]
    require(min(values) >= 0 and sum(values) <= 1 + 1e-9, f"shares are probabilities, 1 in sum at most: {shares}.")
    goals = Goals.keys() if goals is None else goals
    obs, next_obs = (jax.tree.map(np.asarray, column) for column in (log.obs, log.next_obs))
    reached, wanted = goals.achieved(next_obs), goals.desired(obs)
    if reached.shape != wanted.shape:
        raise DataError(f"achieved goals are {reached.shape}, desired ones {wanted.shape}; they must be alike.")
    source, relabelled = _choice(log, values, np.random.default_rng(seed))
    goal = np.where(_column(relabelled, wanted), reached[source], wanted).astype(wanted.dtype)
    earned = np.asarray(reward(reached, goal), np.float32)
    if earned.shape != (len(log),):
        raise DataError(f"reward gave shape {earned.shape}, expected ({len(log)},), one number a row.")
    changed = dataclasses.replace(
        log,
        obs=goals.replaced(obs, goal),
        next_obs=goals.replaced(next_obs, np.where(_column(relabelled, wanted), goal, goals.desired(next_obs))),
        reward=np.where(relabelled, earned, log.reward),
    )
    if terminates is None:
        return changed
    ends = np.asarray(terminates(reached, goal), bool)
    return _cut(changed, np.where(relabelled, ends, log.terminated))


def _choice(
    log: Dataset, shares: list[float], rng: np.random.Generator
) -> tuple[Int[np.ndarray, "rows"], Bool[np.ndarray, "rows"]]:
    """The row whose achievement becomes each row's goal, and whether it does."""
    rows, last = np.arange(len(log)), np.repeat(log.ends, log.lengths)
    sources = last, rng.integers(rows, last + 1), rng.integers(0, len(log), len(log))
    strategy = np.searchsorted(np.cumsum(shares), rng.random(len(log)), side="right")
    relabelled = strategy < len(STRATEGIES)
    return np.choose(np.minimum(strategy, len(STRATEGIES) - 1), sources), relabelled


def _column(flags: Bool[np.ndarray, "rows"], like: np.ndarray) -> np.ndarray:
    return flags.reshape(-1, *(1,) * (like.ndim - 1))


def _cut(log: Dataset, terminated: Bool[np.ndarray, "rows"]) -> Dataset:
    """The log with these terminations: an episode ends with each; one that lost its own ends truncated."""
    starts = np.union1d(log.starts, np.flatnonzero(terminated[:-1]) + 1)
    truncated = np.array(log.truncated)
    lost = log.ends[np.asarray(log.terminated)[log.ends] & ~terminated[log.ends]]
    truncated[lost] = True
    gained = terminated & ~np.asarray(log.terminated)
    return dataclasses.replace(log, terminated=terminated, truncated=truncated & ~gained, starts=starts)


class HindsightSource(DatasetSource):
    """Windows of a log, each with one goal: what its episode achieved at its last step or later, drawn uniformly.

    The log's observations are Dicts with the parts `achieved_goal` and `desired_goal`; the latter is replaced in every
    row, whatever it was, so that play in which nobody followed a goal is as good as anything. Where the desired goal is
    G times as long as the achieved one, it is what G steps in a row achieved; beyond the end of the episode, the last.
    Rewards and flags stay. Attributes as of `DatasetSource`.

    Raises:
        ConfigError: without windows.
        DataError: if the observations hold no goals.
    """

    def __check_init__(self) -> None:
        if self.window is None:
            raise ConfigError("goals in hindsight are of windows; say with window=... how long they are.")
        if self.dataset.spec.goals is None:
            raise DataError(
                f"the observations of {self.dataset.name} hold no goals; hindsight needs Dict observations with the "
                "parts 'achieved_goal' and 'desired_goal'."
            )

    def draw(self, state: tuple[()], explorer: Explorer, key: PRNGKeyArray) -> tuple[tuple[()], Trajectory]:
        """A batch; `explorer` does not take part."""
        row_key, goal_key = jax.random.split(key)
        if self.columns is None or self.bounds is None:
            log, found = self.dataset.canonical(), self._host_rows(row_key)
            windows, rows, last = self._read(found), jnp.asarray(found), jnp.asarray(log.ends[log.episode_of(found)])
        else:
            rows = self._rows(row_key)
            windows, last = self.at(rows), self.bounds.last[rows]
        assert self.window is not None and isinstance(windows, Trajectory)
        first = jnp.minimum(rows - self.before + self.window - 1, last)
        later = jax.random.randint(goal_key, first.shape, first, last + 1)
        return state, self._aimed(windows, later, last)

    def _aimed(self, windows: Trajectory, later: Int[Array, "batch"], last: Int[Array, "batch"]) -> Trajectory:
        """The windows with the goals that rows `later` and those after them achieved, up to the last ones."""
        assert self.spec.goals is not None
        achieved, desired = self.spec.goals
        count = (desired.stop - desired.start) // (achieved.stop - achieved.start)
        found = jnp.minimum(later[:, None] + jnp.arange(count), last[:, None])
        if self.columns is None:
            reached = self.dataset.canonical().transitions(np.asarray(found)).next_obs[..., achieved]
        else:
            reached = self.columns.next_obs[found][..., achieved]
        goal = reached.reshape(len(later), 1, -1)
        steps = windows.steps
        changed = (obs.at[..., desired].set(goal) for obs in (steps.obs, steps.next_obs))
        return eqx.tree_at(lambda w: (w.steps.obs, w.steps.next_obs), windows, tuple(changed))
