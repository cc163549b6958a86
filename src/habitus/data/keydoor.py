"""Demonstrations in KeyDoor: a solver that sees everything, made as bad as wanted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from habitus.core.errors import ConfigError, DataError
from habitus.core.protocols import Env
from habitus.data.dataset import Dataset
from habitus.envs.worlds.keydoor import (
    CLOSED,
    FORWARD,
    HEADINGS,
    LEFT,
    LOCKED,
    OPEN,
    PICK_UP,
    RIGHT,
    TOGGLE,
    KeyDoor,
    KeyDoorState,
)  # fmt: skip

USEFUL = (LEFT, RIGHT, FORWARD, PICK_UP, TOGGLE)
FAR = np.int32(1 << 20)  # more steps than any way has


@lru_cache(maxsize=4096)
def ways(size: int, door: tuple[int, int], key: tuple[int, int]) -> Int[np.ndarray, "two held lock turn x y"]:
    """The first step of a shortest way to the goal from every state, and its length, by breadth-first search.

    Axes: whether the key is held; the lock; the heading; where the agent stands. The length is `FAR` where
    there is no way.
    """
    held, lock, turn, x, y = np.indices((2, 3, 4, size, size))
    front = np.stack([x, y], -1) + HEADINGS[turn]
    fx, fy = (front[..., i].clip(0, size - 1) for i in (0, 1))
    at_door, at_key = (fx == door[0]) & (fy == door[1]), (fx == key[0]) & (fy == key[1]) & (held == 0)
    wall = (fx % (size - 1) == 0) | (fy % (size - 1) == 0) | ((fx == door[0]) & ~at_door)
    free = ~wall & ~at_key & (~at_door | (lock == OPEN))
    turned = at_door & ((lock != LOCKED) | (held == 1))
    after = [  # held, lock, heading and place after each action
        (held, lock, (turn + 3) % 4, x, y),
        (held, lock, (turn + 1) % 4, x, y),
        (held, lock, turn, np.where(free, fx, x), np.where(free, fy, y)),
        (np.where(at_key, 1, held), lock, turn, x, y),
        (held, np.where(turned, np.where(lock == OPEN, CLOSED, OPEN), lock), turn, x, y),
    ]
    flat = [np.ravel_multi_index(way, held.shape) for way in after]
    steps = np.where((x == size - 2) & (y == size - 2), 0, FAR)
    while True:
        through = np.stack([1 + steps.ravel()[way] for way in flat])
        nearer = np.minimum(steps, through.min(0))
        if (nearer == steps).all():
            return np.stack([np.array(USEFUL)[through.argmin(0)], np.minimum(steps, FAR)])
        steps = nearer


class Solver:
    """The first steps of shortest ways in several levels; a way is searched anew only where the key was moved."""

    def __init__(self, size: int, state: KeyDoorState):
        self.size, self.door = size, np.asarray(state.door)
        self.key = np.full_like(self.door, -1)
        self.ways = np.zeros((len(self.door), 2, 2, 3, 4, size, size), np.int32)

    def __call__(self, state: KeyDoorState, among: Bool[np.ndarray, "levels"]) -> Int[np.ndarray, "levels"]:
        """An action for each level of `among`; what stands for the others means nothing.

        Raises:
            DataError: if from one of them no way leads to the goal.
        """
        key = np.asarray(state.key)
        for i in np.flatnonzero((key != self.key).any(1)):
            self.ways[i] = ways(self.size, tuple(self.door[i].tolist()), tuple(key[i].tolist()))
        self.key = key
        x, y = np.asarray(state.agent).T
        at = (np.asarray(state.carried).astype(int), np.asarray(state.lock), np.asarray(state.heading), x, y)
        action, length = self.ways[(np.arange(len(x)), slice(None), *at)].T
        stuck = among & (length >= FAR)
        if stuck.any():
            raise DataError(f"no way leads to the goal in {stuck.sum()} of the levels; leave them out.")
        return action


def demonstrate(world: Env, levels: Sequence[int], noise: float = 0.0, seed: int = 0) -> Dataset:
    """One episode in each of some levels of KeyDoor: the shortest way, a `noise` share of the actions uniformly random.

    Args:
        world: KeyDoor, as `make` makes it.
        levels: their seeds; see `habitus.envs.wrappers.Levels`.
        seed: of the noise.

    Raises:
        ConfigError: if the world is another, or the share is none.
    """
    inner: Any = world
    while isinstance(getattr(inner, "env", None), Env):
        inner = inner.env
    if not isinstance(inner, KeyDoor):
        raise ConfigError(f"the solver knows KeyDoor, but this is {type(inner).__name__}; give it make('keydoor').")
    if not 0 <= noise <= 1:
        raise ConfigError(f"noise is a share of the actions, in [0, 1], but is {noise}.")
    rng, horizon = np.random.default_rng(seed), world.horizon or inner.limit
    state, obs = _starts(inner, jnp.asarray(levels, jnp.uint32))
    solver, rows, over = Solver(inner.size, state), [], np.zeros(len(levels), bool)
    for time in range(1, horizon + 1):
        random = rng.random(len(levels)) < noise
        chosen = np.where(random, rng.integers(0, 7, len(levels)), solver(state, ~over)).astype(np.int32)
        state, step = _step(inner, state, jnp.asarray(chosen))
        ended = np.asarray(step.terminated)
        last = ~ended & (time == horizon)
        columns = (np.asarray(obs), chosen, np.asarray(step.reward), ended, last, np.asarray(step.obs))
        rows.append((~over, columns))
        over, obs = over | ended, step.obs
        if over.all():
            break
    known = np.stack([row[0] for row in rows], 1)  # [levels, time]
    found = [np.stack([row[1][i] for row in rows], 1)[known] for i in range(6)]
    names = ("obs", "action", "reward", "terminated", "truncated", "next_obs")
    meta = {"task": "keydoor", "split": f"noise-{noise:g}", "seed": seed, "horizon": horizon, "size": inner.size,
            "levels": [int(level) for level in levels]}  # fmt: skip
    spaces = {"observation_space": world.observation_space, "action_space": world.action_space}
    return Dataset.from_arrays(**dict(zip(names, found, strict=True)), **spaces, meta=meta, validate=False)


def noise_for(world: Env, share: float, levels: Sequence[int] = range(100), halvings: int = 6) -> float:
    """The share of random actions with which demonstrations earn `share` of what the best ones do, by bisection."""
    wanted = share * float(demonstrate(world, levels).returns.mean())
    low, high = 0.0, 1.0
    for _ in range(halvings):
        middle = (low + high) / 2
        enough = float(demonstrate(world, levels, middle, seed=1).returns.mean()) > wanted
        low, high = (middle, high) if enough else (low, middle)
    return (low + high) / 2


@eqx.filter_jit
def _starts(world: KeyDoor, levels: Any) -> Any:
    return jax.vmap(lambda level: world.reset(jax.random.key(level)))(levels)


@eqx.filter_jit
def _step(world: KeyDoor, state: KeyDoorState, action: Any) -> Any:
    return jax.vmap(lambda s, a: world.step(s, a, jax.random.key(0)))(state, action)
