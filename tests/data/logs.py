"""Small logs of every kind of space, for the tests of this folder."""

import numpy as np
from gymnasium import spaces

from habitus.data.dataset import Dataset

KINDS = ("box", "discrete", "multi-discrete", "image", "dict", "tuple")


def _observations(kind, rng, rows):
    """Observations [rows, ...] of a kind of space, and the space."""
    box = rng.normal(size=(rows, 3)).astype(np.float32)
    whole = rng.integers(2, 6, rows)
    if kind == "discrete":
        return whole, spaces.Discrete(4, start=2)
    if kind == "image":
        return rng.integers(0, 256, (rows, 4, 5, 3), dtype=np.uint8), spaces.Box(0, 255, (4, 5, 3), np.uint8)
    inner = {"goal": spaces.Discrete(4, start=2), "at": spaces.Box(-np.inf, np.inf, (3,))}
    if kind == "dict":
        nested = {"arm": {"goal": whole, "at": box}, "time": box[:, :1]}
        return nested, spaces.Dict({"arm": spaces.Dict(inner), "time": spaces.Box(-np.inf, np.inf, (1,))})
    if kind == "tuple":
        return (whole, box), spaces.Tuple(list(inner.values()))
    return box, spaces.Box(-np.inf, np.inf, (3,))


def _actions(kind, rng, rows):
    if kind == "discrete":
        return rng.integers(1, 4, rows), spaces.Discrete(3, start=1)
    if kind == "multi-discrete":
        return rng.integers(0, 2, (rows, 2)) + [1, 0], spaces.MultiDiscrete([2, 3], start=[1, 0])
    return rng.uniform(-2, 3, (rows, 2)).astype(np.float32), spaces.Box(-2, 3, (2,))


def each(function, column):
    """`function` of every array of a column."""
    if isinstance(column, dict):
        return {key: each(function, part) for key, part in column.items()}
    return tuple(each(function, part) for part in column) if isinstance(column, tuple) else function(column)


def log(kind="box", lengths=(5, 3, 7), ends="tT.", seed=0):
    """A data set whose successors are the next observations; ends as 't'erminated, 'T'runcated or '.' not at all."""
    rng, rows = np.random.default_rng(seed), sum(lengths)
    observed, observation_space = _observations(kind, rng, rows + len(lengths))
    action, action_space = _actions(kind, rng, rows)
    after = np.cumsum(np.array(lengths) + 1) - 1  # rows of `observed` that are final observations
    now = np.setdiff1d(np.arange(rows + len(lengths)), after)
    last = np.cumsum(lengths) - 1
    terminated, truncated = np.zeros(rows, bool), np.zeros(rows, bool)
    terminated[last], truncated[last] = [e == "t" for e in ends], [e == "T" for e in ends]
    return Dataset.from_arrays(
        obs=each(lambda leaf: leaf[now], observed),
        next_obs=each(lambda leaf: leaf[now + 1], observed),
        action=action,
        reward=rng.normal(size=rows).astype(np.float32),
        terminated=terminated,
        truncated=truncated,
        observation_space=observation_space,
        action_space=action_space,
        meta={"task": "test", "split": kind, "random_return": -1.0, "expert_return": 2.5},
    )
