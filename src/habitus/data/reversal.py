"""Episodes of a log told backwards, for tasks that can be undone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from gymnasium import spaces

from habitus.core.errors import DataError
from habitus.data.dataset import Dataset

Undo = Callable[[Any, np.ndarray, Any], np.ndarray]


def reversed_episodes(
    log: Dataset, undo: Undo, reward: Callable[[Any, np.ndarray, Any], np.ndarray] | None = None
) -> Dataset:
    """Each episode from its last observation to its first.

    The step from s to s' becomes one from s' to s. No episode terminates: each ends truncated at its first observation.
    Done twice it gives the log back, if `undo` does and the episodes were truncated. It is true of a world only where
    steps can be undone: a grasp is undone by letting go, a push is not undone by a pull.

    Args:
        log: the log.
        undo: given observations [rows, ...], the recorded actions [rows, ...] and the observations to be reached, all
            in the new order, the actions that lead there: `negated()` or `reached(...)`, or your own.
        reward: of observations, actions and successors in the new order; without it each step keeps what it earned,
            which says nothing about the reverse task.

    Raises:
        DataError: if the new actions do not fit the action space.
    """
    rows = np.arange(len(log))
    order = np.repeat(log.starts + log.ends, log.lengths) - rows

    def turned(column: Any) -> Any:
        return jax.tree.map(lambda leaf: np.asarray(leaf[order]), column)

    obs, next_obs = turned(log.next_obs), turned(log.obs)
    action = np.asarray(undo(obs, turned(log.action), next_obs))
    _check_actions(action, log)
    truncated = np.zeros(len(log), bool)
    truncated[log.ends] = True
    return dataclasses.replace(
        log,
        obs=obs,
        action=action,
        reward=turned(log.reward) if reward is None else np.asarray(reward(obs, action, next_obs), np.float32),
        next_obs=next_obs,
        terminated=np.zeros(len(log), bool),
        truncated=truncated,
        cost=None if log.cost is None else turned(log.cost),
    )


def negated(dimensions: Sequence[int] | None = None) -> Undo:
    """Undoes displacements: `-a` in these dimensions, or in all; the others keep what they were in that step.

    Exact where a step adds its action to the state; clipped or damped steps drift.
    """

    def undo(obs: Any, action: np.ndarray, next_obs: Any) -> np.ndarray:
        del obs, next_obs
        which = list(range(action.shape[-1])) if dimensions is None else list(dimensions)
        undone = np.array(action)
        undone[..., which] = -undone[..., which]
        return undone

    return undo


def reached(command: Callable[[Any], np.ndarray], dimensions: Sequence[int] | None = None) -> Undo:
    """Undoes absolute commands: in these dimensions, or in all, the action is the one that asks for where it leads.

    Args:
        command: the command [rows, dimensions] that asks for the poses of observations, a gripper's state included.
    """

    def undo(obs: Any, action: np.ndarray, next_obs: Any) -> np.ndarray:
        del obs
        which = list(range(action.shape[-1])) if dimensions is None else list(dimensions)
        undone = np.array(action)
        undone[..., which] = command(next_obs)
        return undone

    return undo


def _check_actions(action: np.ndarray, log: Dataset) -> None:
    space, shape = log.action_space, np.shape(log.action)
    if action.shape != shape:
        raise DataError(f"undo gave actions of shape {action.shape}, expected {shape}.")
    if isinstance(space, spaces.Box):
        outside = (action < space.low - 1e-5) | (action > space.high + 1e-5)
        rows = np.flatnonzero(outside.reshape(len(action), -1).any(1))
        if len(rows):
            raise DataError(
                f"the undone action of row {rows[0]} of the reversed log lies outside {space}; clip it in undo, or "
                "widen the action space of the log."
            )
