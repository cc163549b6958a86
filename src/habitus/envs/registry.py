"""Worlds by name: the built-in ones, gymnax's, and whatever Gymnasium knows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import gymnasium

from habitus.core.errors import ConfigError, SpaceMismatch, UnknownName, suggest
from habitus.core.protocols import Env, HostEnv
from habitus.envs.adapters.gymnasium import GymnasiumEnv
from habitus.envs.adapters.minigrid import PREFIXES as MINIGRID
from habitus.envs.adapters.minigrid import make_minigrid
from habitus.envs.host import HostCanonical
from habitus.envs.worlds.acrobot import Acrobot
from habitus.envs.worlds.bit_flip import BitFlip
from habitus.envs.worlds.cartpole import CartPole
from habitus.envs.worlds.cartpole_swingup import CartPoleSwingUp
from habitus.envs.worlds.combination_lock import CombinationLock
from habitus.envs.worlds.finite import LinearMDP, TabularLock
from habitus.envs.worlds.four_rooms import FourRooms
from habitus.envs.worlds.frozen_lake import FrozenLake
from habitus.envs.worlds.icu5 import ICU5
from habitus.envs.worlds.keydoor import KeyDoor
from habitus.envs.worlds.lane_scene import LaneScene
from habitus.envs.worlds.mountaincar_continuous import MountainCarContinuous
from habitus.envs.worlds.pendulum import Pendulum
from habitus.envs.worlds.planar_goals import PlanarGoals
from habitus.envs.worlds.planar_pick import InstructedPick, PlanarPick
from habitus.envs.worlds.planar_wipe import PlanarWipe
from habitus.envs.worlds.pointmaze import PointMaze
from habitus.envs.wrappers import Canonical, Levels, TimeLimit

# Name, class, and the time limit: steps, or the field of the world that holds them.
BUILT_IN: dict[str, tuple[type[Env], int | str]] = {
    "pendulum": (Pendulum, 200),
    "cartpole": (CartPole, 500),
    "cartpole-swingup": (CartPoleSwingUp, 200),
    "mountaincar-continuous": (MountainCarContinuous, 999),
    "acrobot": (Acrobot, 500),
    "pointmaze": (PointMaze, 200),
    "planar-pick": (PlanarPick, "limit"),
    "planar-goals": (PlanarGoals, "limit"),
    "lane-scene": (LaneScene, "limit"),
    "planar-wipe": (PlanarWipe, "limit"),
    "planar-pick-instructed": (InstructedPick, "limit"),
    "four-rooms": (FourRooms, "limit"),
    "bit-flip": (BitFlip, "bits"),
    "frozen-lake": (FrozenLake, 100),
    "keydoor": (KeyDoor, "limit"),
    "icu5": (ICU5, 20),
    "combination-lock": (CombinationLock, "length"),
    "tabular-lock": (TabularLock, "limit"),
    "linear-mdp": (LinearMDP, "limit"),
}

World = str | Env | HostEnv | gymnasium.Env | Callable[[], gymnasium.Env]


def names() -> list[str]:
    """Names of the built-in worlds."""
    return list(BUILT_IN)


def make(world: World, num_envs: int = 1, **kwargs: Any) -> Env | HostEnv:
    """A world, in the user's spaces.

    Args:
        world: a built-in name (see `names`), `gymnax:<id>`, `icu-sepsis`, any Gymnasium id, an
            environment of habitus or Gymnasium, or a function that makes one of Gymnasium's.
        num_envs: copies stepped together; only for worlds that run in Python, as compiled ones are
            copied by whoever maps over them.
        kwargs: parameters of the world; `max_episode_steps` replaces its time limit. Of a built-in
            world, `levels` and `first_level` fix the starts that its episodes are drawn from (`Levels`).

    Raises:
        UnknownName: if nothing has this name; says what is near.
        ConfigError: if the world has no such parameter.
        MissingExtra: if it needs an optional dependency.
    """
    if isinstance(world, (Env, HostEnv)):
        if kwargs:
            raise ConfigError(f"{type(world).__name__} is made already; give {', '.join(kwargs)} when making it.")
        return world
    if not isinstance(world, str):
        return GymnasiumEnv(world, num_envs, **kwargs)
    if world in BUILT_IN:
        return _limited(world, *BUILT_IN[world], kwargs)
    if world.startswith("gymnax:"):
        from habitus.envs.adapters.gymnax import GymnaxEnv

        return GymnaxEnv.make(world.removeprefix("gymnax:"), **kwargs)
    if world == "icu-sepsis":
        from habitus.envs.adapters.icu_sepsis import LIMIT, ICUSepsis

        return _limited(world, ICUSepsis, LIMIT, kwargs)
    try:
        if world.startswith(MINIGRID):
            return make_minigrid(world, num_envs, **kwargs)
        return GymnasiumEnv(world, num_envs, **kwargs)
    except gymnasium.error.Error:  # unregistered, of a version that is gone, or not even shaped like an id
        raise UnknownName(f"no world is called {world!r}: {_near(world)}") from None


def name_of(env: Env | HostEnv) -> str:
    """The name that `make` knows a world by, or that of its class."""
    inner: Any = env
    while isinstance(getattr(inner, "env", None), (Env, HostEnv)):
        inner = inner.env
    if isinstance(inner, GymnasiumEnv):
        spec = inner.copies[0].spec
        return spec.id if spec is not None else type(inner.copies[0].unwrapped).__name__
    known = next((name for name, (kind, _) in BUILT_IN.items() if type(inner) is kind), None)
    return known or type(inner).__name__


def _near(name: str) -> str:
    """The names nearest to one that nothing has; if none is near, the built-in ones, as Gymnasium's fill a page."""
    theirs = get_close_matches(name, gymnasium.registry, n=3)
    clause = suggest(name, names() + theirs)
    return clause if clause.endswith("?") else f"{clause}, or any id that Gymnasium knows"


def canonical(env: Env | HostEnv) -> Canonical | HostCanonical:
    """The world as learners see it: `Canonical`, or `HostCanonical` for one that runs in Python."""
    if isinstance(env, (Canonical, HostCanonical)):
        return env
    if isinstance(env, HostEnv):
        return HostCanonical(env)
    if isinstance(env, Env):
        return Canonical(env)
    raise SpaceMismatch(f"a world is wanted, but this is a {type(env).__name__}; pass it through habitus.make first.")


def _limited(name: str, kind: type[Env], limit: int | str, parameters: dict[str, Any]) -> Env:
    """A world of a class with the parameters given, with its time limit or `max_episode_steps`, and with `levels`."""
    parameters = dict(parameters)
    asked = parameters.pop("max_episode_steps", None)
    levels, first = parameters.pop("levels", None), parameters.pop("first_level", None)
    if levels is None and first is not None:
        raise ConfigError("first_level numbers the levels from there on: say how many there are with levels=...")
    known = list(inspect.signature(kind).parameters)
    for given in parameters:
        if given not in known:
            raise ConfigError(f"{name} has no parameter {given!r}: {suggest(given, known)}")
    world = kind(**parameters)
    own_limit = getattr(world, limit) if isinstance(limit, str) else limit
    return TimeLimit(world if levels is None else Levels(world, levels, first or 0), asked or own_limit)
