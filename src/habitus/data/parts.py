"""More parts beside the observations of a log: labels, goals, instructions; or only the first of their numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from habitus.core.errors import ConfigError, SpaceMismatch
from habitus.data.dataset import Dataset

OBSERVATION = "observation"


def with_parts(log: Dataset, parts: Mapping[str, tuple[np.ndarray, spaces.Space]]) -> Dataset:
    """The log with more parts in its observations.

    Args:
        parts: by name, a column [rows, ...] and the space of one entry. A successor has that of the next row, or that
            of its own row where the episode ends.

    Returns:
        a log whose observations are a Dict: of the old parts and the new ones, or of `observation` and the new ones.

    Raises:
        ConfigError: if a name is taken.
        DataError: if a column does not fit its space or the log.
    """
    after = np.minimum(np.arange(len(log)) + 1, np.repeat(log.ends, log.lengths))
    columns = {name: np.asarray(column) for name, (column, _) in parts.items()}
    space = widened(log.observation_space, {name: kind for name, (_, kind) in parts.items()})
    short = {name: column[after] if len(column) == len(log) else column for name, column in columns.items()}
    return dataclasses.replace(
        log,
        obs=joined(log.obs, columns),
        next_obs=joined(log.next_obs, short),
        observation_space=space,
    )


def joined(obs: Any, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Observations with more parts."""
    return (dict(obs) if isinstance(obs, dict) else {OBSERVATION: obs}) | dict(parts)


def widened(space: spaces.Space, parts: Mapping[str, spaces.Space]) -> spaces.Dict:
    """The space of observations with more parts. Raises `ConfigError` if a name is taken."""
    old = dict(space.spaces) if isinstance(space, spaces.Dict) else {OBSERVATION: space}
    taken = sorted(set(old) & set(parts))
    if taken:
        raise ConfigError(f"the observations have a part {taken[0]!r} already; give the new one another name.")
    return spaces.Dict(old | dict(parts))


def narrowed(log: Dataset, size: int) -> Dataset:
    """The log with only the first `size` numbers of each observation [numbers], such as those that a learner may see.

    Raises:
        SpaceMismatch: if observations are not vectors of so many numbers or more.
    """
    space = log.observation_space
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not 1 <= size <= space.shape[0]:
        raise SpaceMismatch(
            f"only vectors of {size} numbers or more have a first {size}, but observations are {space}."
        )
    obs, next_obs = (np.asarray(column)[:, :size] for column in (log.obs, log.next_obs))
    kept = spaces.Box(space.low[:size], space.high[:size], dtype=space.dtype.type)  # type: ignore[union-attr]
    return dataclasses.replace(log, obs=obs, next_obs=next_obs, observation_space=kept)
