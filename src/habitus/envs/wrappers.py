"""Worlds around worlds; each keeps the one it wraps as `.env`."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Int, PRNGKeyArray

from habitus.core.experience import Action, Obs, Step
from habitus.core.protocols import Env, EnvState, require
from habitus.core.spec import Spec
from habitus.envs.actions import fit_action


class Wrapper(Env):
    """A world that holds a world, and is like it but for what a subclass says."""

    env: Env

    @property
    def observation_space(self) -> gymnasium.Space:
        return self.env.observation_space

    @property
    def action_space(self) -> gymnasium.Space:
        return self.env.action_space

    @property
    def horizon(self) -> int | None:
        return self.env.horizon

    @property
    def costs(self) -> tuple[str, ...]:
        return self.env.costs

    @property
    def switches(self) -> tuple[int, ...]:
        return self.env.switches

    def reset(self, key: PRNGKeyArray) -> tuple[EnvState, Obs]:
        return self.env.reset(key)

    def inner(self, state: EnvState) -> EnvState:
        """The state of the world inside, given this one's."""
        return state


def innermost(env: Any) -> Any:
    """The world inside all wrappers."""
    while isinstance(env, Wrapper):
        env = env.env
    return env


class Timed(eqx.Module):
    """A state and how many steps led to it."""

    state: EnvState
    time: Int[Array, ""]


class TimeLimit(Wrapper):
    """Truncates episodes after `limit` steps; one that terminates there is not truncated."""

    limit: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        require(self.limit > 0, f"a time limit must be above 0, but is {self.limit}.")

    @property
    def horizon(self) -> int:
        return min(self.limit, self.env.horizon or self.limit)

    def reset(self, key: PRNGKeyArray) -> tuple[Timed, Obs]:
        state, obs = self.env.reset(key)
        return Timed(state, jnp.zeros((), jnp.int32)), obs

    def step(self, state: Timed, action: Action, key: PRNGKeyArray) -> tuple[Timed, Step]:
        inner, step = self.env.step(state.state, action, key)
        time = state.time + 1
        truncated = (step.truncated | (time >= self.limit)) & ~step.terminated
        return Timed(inner, time), Step(step.obs, step.reward, step.terminated, truncated, step.info)

    def inner(self, state: Timed) -> EnvState:
        return state.state


class Levels(Wrapper):
    """Starts every episode in one of `count` levels: level `s` is the start that `jax.random.key(s)` draws.

    Levels are numbered from `first`, so that ranges that do not overlap share no seed. The i-th
    episode of an evaluation from seed `n` in the world itself is level `n + i`.
    """

    count: int = eqx.field(static=True)
    first: int = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        require(self.count > 0, f"levels must be above 0, but is {self.count}.")
        require(self.first >= 0, f"first_level must be 0 or more, but is {self.first}.")

    def reset(self, key: PRNGKeyArray) -> tuple[EnvState, Obs]:
        level = self.first + jax.random.randint(key, (), 0, self.count)
        return self.env.reset(jax.random.key(level))

    def step(self, state: EnvState, action: Action, key: PRNGKeyArray) -> tuple[EnvState, Step]:
        return self.env.step(state, action, key)


class ScaledReward(Wrapper):
    """Multiplies rewards by `scale`."""

    scale: float

    def step(self, state: EnvState, action: Action, key: PRNGKeyArray) -> tuple[EnvState, Step]:
        state, step = self.env.step(state, action, key)
        return state, eqx.tree_at(lambda s: s.reward, step, self.scale * step.reward)


class Canonical(Wrapper):
    """A world as learners see it: observations and actions in the canonical form of `Spec`."""

    @property
    def observation_space(self) -> gymnasium.Space:
        return canonical_spaces(self.env.spec)[0]

    @property
    def action_space(self) -> gymnasium.Space:
        return canonical_spaces(self.env.spec)[1]

    def reset(self, key: PRNGKeyArray) -> tuple[EnvState, Array]:
        state, obs = self.env.reset(key)
        return state, self.env.spec.encode_obs(obs)

    def step(self, state: EnvState, action: Action, key: PRNGKeyArray) -> tuple[EnvState, Step]:
        spec = self.env.spec
        action = spec.decode_action(fit_action(self.action_space, action))
        state, step = self.env.step(state, action, key)
        return state, eqx.tree_at(lambda s: s.obs, step, spec.encode_obs(step.obs))


def canonical_spaces(spec: Spec) -> tuple[gymnasium.Space, gymnasium.Space]:
    """The observation and action space of the canonical form."""
    if spec.tabular:
        observation: gymnasium.Space = spaces.Discrete(spec.obs_size)
    elif spec.image:
        observation = spec.observation_space
    else:
        bounds = [_bounds(space) for _, space in spec.leaves]
        low, high = (np.concatenate([b[i] for b in bounds]).astype(np.float32) for i in (0, 1))
        observation = spaces.Box(low, high)
    if spec.discrete:
        return observation, spaces.Discrete(spec.num_actions)
    if spec.multi_discrete:
        return observation, spaces.MultiDiscrete(np.ravel(spec.action_space.nvec))  # type: ignore[attr-defined]
    edge = 1.0 if spec.bounded else np.inf
    return observation, spaces.Box(-edge, edge, spec.action_shape)


def _bounds(space: Any) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of one part of an observation once it is a vector; codes lie in [0, 1]."""
    if isinstance(space, spaces.Box):
        return space.low.ravel(), space.high.ravel()
    width = spaces.flatdim(space)
    return np.zeros(width), np.ones(width)
