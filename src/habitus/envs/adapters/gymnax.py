"""gymnax's environments (versions 0.x and 1.x), as worlds that compile."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import PRNGKeyArray

from habitus.core.errors import ConfigError, MissingExtra, SpaceMismatch, UnknownName, suggest
from habitus.core.experience import Action, Obs, Step
from habitus.core.protocols import Env, EnvState
from habitus.envs.actions import fit_action

NEVER = 2**30  # a time limit that no episode reaches


class GymnaxEnv(Env):
    """A gymnax environment without its automatic reset.

    In gymnax 0.x `done` means either end of an episode, in 1.x termination alone. In both, a step
    taken with the time limit out of the way is done only if it terminates, and that is asked here;
    XLA shares what the two steps have in common. An episode that is over without terminating is
    truncated.

    Attributes:
        env: gymnax's environment.
        params: its parameters, which are leaves.
        limit: its time limit in steps.
    """

    env: Any = eqx.field(static=True)
    params: Any
    limit: int = eqx.field(static=True)

    @classmethod
    def make(cls, name: str, **parameters: Any) -> GymnaxEnv:
        """By gymnax's id.

        Args:
            parameters: replace fields of its default parameters; `max_episode_steps` its time limit.

        Raises:
            MissingExtra: if gymnax is not installed.
            UnknownName: if gymnax knows no such id; says what is near.
            ConfigError: if the environment has no such parameter.
        """
        try:
            import gymnax
        except ImportError as error:
            raise MissingExtra(f"gymnax:{name}", "gymnax") from error
        if name not in gymnax.registered_envs:
            raise UnknownName(f"gymnax knows no {name!r}: {suggest(name, list(gymnax.registered_envs))}")
        env, params = gymnax.make(name)
        if "max_episode_steps" in parameters:
            parameters["max_steps_in_episode"] = parameters.pop("max_episode_steps")
        for given in parameters:
            if not hasattr(params, given):
                raise ConfigError(f"gymnax:{name} has no parameter {given!r}: {suggest(given, list(vars(params)))}")
        params = params.replace(**parameters)
        return cls(env, params, int(params.max_steps_in_episode))

    @property
    def observation_space(self) -> gymnasium.Space:
        with jax.ensure_compile_time_eval():  # gymnax computes bounds with JAX, also while we trace
            return _space(self.env.observation_space(self.params))

    @property
    def action_space(self) -> gymnasium.Space:
        with jax.ensure_compile_time_eval():
            return _space(self.env.action_space(self.params))

    @property
    def horizon(self) -> int:
        return self.limit

    def reset(self, key: PRNGKeyArray) -> tuple[EnvState, Obs]:
        obs, state = self.env.reset_env(key, self.params)
        # First states hold Python numbers where later ones hold arrays, of another type at times.
        still = jnp.zeros(self.action_space.shape, _narrow(self.action_space.dtype))
        later = jax.eval_shape(lambda s: self.env.step_env(key, s, still, self.params)[1], state)
        state = jax.tree.map(lambda now, then: jnp.asarray(now, then.dtype), state, later)
        return state, self._obs(obs)

    def step(self, state: EnvState, action: Action, key: PRNGKeyArray) -> tuple[EnvState, Step]:
        action = fit_action(self.action_space, action)
        endless = self.params.replace(max_steps_in_episode=NEVER)
        terminated = jnp.reshape(self.env.step_env(key, state, action, endless)[3], ()).astype(bool)
        obs, after, reward, done, _ = self.env.step_env(key, state, action, self.params)
        over = jnp.reshape(done, ()).astype(bool) | (after.time >= self.limit)
        after = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, state)
        reward = jnp.reshape(reward, ()).astype(jnp.float32)
        return after, Step(self._obs(obs), reward, terminated, over & ~terminated)

    def _obs(self, obs: Any) -> Obs:
        return _cast(self.observation_space, obs)


def _cast(space: gymnasium.Space, obs: Any) -> Obs:
    """An observation with the types that its space declares, which gymnax's own do not always have."""
    if isinstance(space, spaces.Dict):
        return {name: _cast(inner, obs[name]) for name, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_cast(inner, part) for inner, part in zip(space.spaces, obs, strict=True))
    return jnp.asarray(obs, _narrow(space.dtype)).reshape(space.shape)


def _narrow(dtype: Any) -> np.dtype:
    """The type that JAX gives to what Gymnasium declares with 64 bits."""
    return jax.dtypes.canonicalize_dtype(dtype)


def _space(theirs: Any) -> gymnasium.Space:
    """One of gymnax's spaces, as Gymnasium's."""
    from gymnax.environments import spaces as gymnax_spaces

    if isinstance(theirs, gymnax_spaces.Discrete):
        return spaces.Discrete(int(theirs.n))
    if isinstance(theirs, gymnax_spaces.Box):
        dtype = np.dtype(theirs.dtype)
        low, high = (
            np.broadcast_to(np.asarray(bound), theirs.shape).astype(dtype) for bound in (theirs.low, theirs.high)
        )
        return spaces.Box(low, high, dtype=dtype.type)
    if isinstance(theirs, gymnax_spaces.Dict):
        return spaces.Dict({name: _space(inner) for name, inner in theirs.spaces.items()})
    if isinstance(theirs, gymnax_spaces.Tuple):
        return spaces.Tuple([_space(inner) for inner in theirs.spaces])
    raise SpaceMismatch(f"gymnax's {type(theirs).__name__} space has no counterpart in Gymnasium.")
