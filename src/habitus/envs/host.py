"""Worlds that run in Python: what all of them share, and their canonical form."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from habitus.core.errors import SpaceMismatch
from habitus.core.experience import Obs, Step
from habitus.core.protocols import HostEnv
from habitus.envs.wrappers import canonical_spaces


class HostCanonical(HostEnv):
    """A world that runs in Python as learners see it: in the canonical form of `Spec`.

    Attributes:
        env: the world in the user's spaces.
    """

    def __init__(self, env: HostEnv):
        self.env, self.num_envs, self.horizon, self.costs = env, env.num_envs, env.horizon, env.costs
        self.switches = env.switches
        spec = env.spec
        self.observation_space, self.action_space = canonical_spaces(spec)
        self._obs_shape, self._obs_dtype = (self.num_envs, *spec.obs_shape), spec.obs_dtype
        self._action_shape, self._action_kind = (self.num_envs, *spec.action_shape), "f" if spec.continuous else "iu"
        own = env.action_space
        self._own_shape = (self.num_envs, *(own.shape or ()))
        self._first_action = int(own.start) if isinstance(own, spaces.Discrete) else 0
        self._edge = 1.0 if spec.bounded else np.inf
        if isinstance(own, spaces.Box):
            low, high = (own.low, own.high) if spec.bounded else (-np.ones(own.shape), np.ones(own.shape))
            self._centre, self._half = ((x / 2).astype(np.float32) for x in (high + low, high - low))
        # Box and Discrete take a few NumPy calls; the rest goes through what compiled worlds use.
        self._plain = isinstance(env.observation_space, (spaces.Box, spaces.Discrete))
        seen = env.observation_space
        self._first_obs = int(seen.start) if isinstance(seen, spaces.Discrete) else 0
        self._encode = jax.jit(jax.vmap(spec.encode_obs))

    def reset(self, seed: int) -> np.ndarray:
        return self._obs(self.env.reset(seed))

    def step(self, action: np.ndarray) -> tuple[Step, np.ndarray]:
        step, first = self.env.step(self._action(np.asarray(action)))
        successor = self._obs(step.obs)
        following = successor if first is step.obs else self._obs(first)
        return host_step(successor, step.reward, step.terminated, step.truncated, step.info), following

    def close(self) -> None:
        self.env.close()

    def _obs(self, obs: Obs) -> np.ndarray:
        if not self._plain:
            return np.asarray(self._encode(obs))
        shifted = obs - self._first_obs if self._first_obs else obs
        return shifted.astype(self._obs_dtype, copy=False).reshape(self._obs_shape)

    def _action(self, action: np.ndarray) -> np.ndarray:
        check_actions(action, self._action_shape, self._action_kind, "canonical actions")
        if self._action_kind == "f":
            clipped = np.minimum(np.maximum(action, -self._edge), self._edge)
            return self._centre + self._half * clipped.reshape(self._own_shape)
        return (action + self._first_action if self._first_action else action).reshape(self._own_shape)


def check_actions(action: np.ndarray, shape: tuple[int, ...], kind: str, what: str) -> None:
    """Raises `SpaceMismatch` unless the actions of all copies have this shape and a NumPy kind among `kind`."""
    if action.shape != shape or action.dtype.kind not in kind:
        raise SpaceMismatch(
            f"the {what} have shape {action.shape} and dtype {action.dtype}, but must have shape {shape} "
            f"(the first axis counts the copies) and hold {'real numbers' if kind == 'f' else 'integers'}."
        )


def host_step(obs: Obs, reward: Any, terminated: Any, truncated: Any, info: dict[str, Any]) -> Step:
    """A `Step` of NumPy arrays. Its constructor takes longer than CartPole does to step; this does not."""
    names = tuple(sorted(info))
    return _structure(names).unflatten((obs, reward, terminated, truncated, *(info[name] for name in names)))


@cache
def _structure(names: tuple[str, ...]) -> jax.tree_util.PyTreeDef:
    no, zero = jnp.array(False), jnp.zeros(())
    return jax.tree.structure(Step(zero, zero, no, no, dict.fromkeys(names, zero)))
