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
    CLOSED, FORWARD, HEADINGS, LEFT, LOCKED, OPEN, PICK_UP, RIGHT, TOGGLE, KeyDoor, KeyDoorState,
)  # fmt: skip

USEFUL = (LEFT, RIGHT, FORWARD, PICK_UP, TOGGLE)
FAR = np.int32(1 << 20)  # more steps than any way has


@lru_cache(maxsize=4096)
def distances(size: int, door: tuple[int, int], key: tuple[int, int]) -> Int[np.ndarray, "actions held lock turn x y"]:
    """Steps to the goal if each of `USEFUL` is taken first, whatever the state, by breadth-first search from the goal.

    Axes: the action; whether the key is held; the lock; the heading; where the agent stands. `FAR` where there is no way.
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
    steps = np.where((x == size - 2) & (y == size - 2), 0, FAR)
    while True:
        through = np.stack([1 + steps[way] for way in after])
        nearer = np.minimum(steps, through.min(0))
        if (nearer == steps).all():
            return np.minimum(through, FAR)
        steps = nearer


def best_actions(size: int, state: KeyDoorState) -> Int[np.ndarray, "levels"]:
    """The first step of a shortest way in each of several states [levels].

    Raises:
        DataError: if from one of them no way leads to the goal.
    """
    columns = (state.agent, state.heading, state.key, state.carried, state.door, state.lock)
    out = []
    for agent, heading, key, held, door, lock in zip(*map(np.asarray, columns), strict=True):
        table = distances(size, tuple(door.tolist()), tuple(key.tolist()))
        ways = table[:, int(held), lock, heading, agent[0], agent[1]]
        if ways.min() >= FAR:
            raise DataError(f"no way leads from {agent.tolist()} to the goal; leave this level out.")
        out.append(USEFUL[int(ways.argmin())])
    return np.array(out, np.int32)


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
    rows, over = [], np.zeros(len(levels), bool)
    for time in range(1, horizon + 1):
        action = best_actions(inner.size, _alive(state, over))
        chosen = np.zeros(len(levels), np.int32)
        chosen[~over] = action
        random = rng.random(len(levels)) < noise
        chosen = np.where(random, rng.integers(0, 7, len(levels)), chosen).astype(np.int32)
        state, step = _step(inner, state, jnp.asarray(chosen))
        ended = np.asarray(step.terminated)
        columns = (np.asarray(obs), chosen, np.asarray(step.reward), ended, ~ended & (time == horizon), np.asarray(step.obs))
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


def noise_for(world: Env, share: float, levels: Sequence[int] = range(200), halvings: int = 7) -> float:
    """The share of random actions with which demonstrations earn `share` of what the best ones do, by bisection."""
    wanted = share * float(demonstrate(world, levels).returns.mean())
    low, high = 0.0, 1.0
    for _ in range(halvings):
        middle = (low + high) / 2
        enough = float(demonstrate(world, levels, middle, seed=1).returns.mean()) > wanted
        low, high = (middle, high) if enough else (low, middle)
    return (low + high) / 2


def _alive(state: KeyDoorState, over: Bool[np.ndarray, "levels"]) -> KeyDoorState:
    return jax.tree.map(lambda x: np.asarray(x)[~over], state)


@eqx.filter_jit
def _starts(world: KeyDoor, levels: Any) -> Any:
    return jax.vmap(lambda level: world.reset(jax.random.key(level)))(levels)


@eqx.filter_jit
def _step(world: KeyDoor, state: KeyDoorState, action: Any) -> Any:
    return jax.vmap(lambda s, a: world.step(s, a, jax.random.key(0)))(state, action)
