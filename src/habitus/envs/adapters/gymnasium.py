"""Gymnasium's environments, as worlds that run in Python."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from habitus.core.errors import ConfigError, HabitusError, MissingExtra, SpaceMismatch
from habitus.core.experience import Action, Obs, Step
from habitus.core.protocols import HostEnv, require
from habitus.envs.host import check_actions, host_step

Factory = Callable[[], gymnasium.Env]


class GymnasiumEnv(HostEnv):
    """Copies of one Gymnasium environment, stepped one after the other in this process.

    Ends of episodes are handled here and not by Gymnasium's vector environments, whose way of
    resetting differs between its versions. Observations of Dict and Tuple spaces are dicts and tuples
    of arrays [num_envs, ...]. `Step.info["success"]` is there if the environment reports `success`
    or `is_success`.

    Attributes:
        copies: the environments.
    """

    def __init__(self, env: str | gymnasium.Env | Factory, num_envs: int = 1, **kwargs: Any):
        """Args:
            env: an id, a function that makes an environment, or one environment.
            num_envs: number of copies.
            kwargs: for `gymnasium.make`, with an id.

        Raises:
            ConfigError: if an argument is out of its domain, or copies are asked for of one object.
            SpaceMismatch: if a space has no canonical form.
            MissingExtra: if the environment needs an optional dependency.
        """
        require(num_envs > 0, f"num_envs must be above 0, but is {num_envs}.")
        self.copies = _copies(env, num_envs, kwargs)
        self.num_envs = num_envs
        self.observation_space = self.copies[0].observation_space
        self.action_space = self.copies[0].action_space
        self.horizon = _horizon(self.copies[0])
        _ = self.spec  # raises now, and not at the first step, if a space has no canonical form
        self._action_shape = (num_envs, *(self.action_space.shape or ()))
        self._action_kind = "f" if isinstance(self.action_space, spaces.Box) else "iu"

    def reset(self, seed: int) -> Obs:
        seeds = np.random.SeedSequence(seed).generate_state(self.num_envs).tolist()
        first = [env.reset(seed=s)[0] for env, s in zip(self.copies, seeds, strict=True)]
        return _batch(self.observation_space, first)

    def step(self, action: Action) -> tuple[Step, Obs]:
        after, first, success = [], [], []
        reward, terminated, truncated = [], [], []
        for env, own_action in zip(self.copies, self._split(action), strict=True):
            obs, paid, ended, cut, info = env.step(own_action)
            reward.append(float(paid))
            terminated.append(ended)
            truncated.append(cut and not ended)  # a limit that strikes with a termination cuts nothing off
            if info:
                success.append(info.get("success", info.get("is_success")))
            if ended or cut:
                after.append(deepcopy(obs))  # resetting may overwrite it
                first.append(env.reset()[0])
            else:
                after.append(obs)
                first.append(obs)
        successor = _batch(self.observation_space, after)
        following = _batch(self.observation_space, first) if True in terminated or True in truncated else successor
        known = len(success) == self.num_envs and None not in success
        report = {"success": np.array(success, bool)} if known else {}
        flags = np.array(terminated, bool), np.array(truncated, bool)
        return host_step(successor, np.array(reward, np.float32), *flags, report), following

    def close(self) -> None:
        for env in self.copies:
            env.close()

    def _split(self, action: Action) -> Any:
        """One action for each copy."""
        action = np.asarray(action)
        check_actions(action, self._action_shape, self._action_kind, "actions")
        if action.ndim == 1 and self._action_kind != "f":
            return action.tolist()  # Python integers are quickest for environments to look at
        return action.astype(self.action_space.dtype, copy=False)


def _copies(env: str | gymnasium.Env | Factory, num_envs: int, kwargs: dict[str, Any]) -> list[gymnasium.Env]:
    if isinstance(env, str):
        return [_registered(env, kwargs) for _ in range(num_envs)]
    if kwargs:
        raise ConfigError(f"{', '.join(kwargs)} can only be given with an id; set it when making the environment.")
    if isinstance(env, gymnasium.Env):
        if num_envs > 1:
            raise ConfigError("one environment cannot be stepped as several; give its id or a function that makes it.")
        return [env]
    if not callable(env):
        raise SpaceMismatch(f"a world is wanted, but this is a {type(env).__name__}, which is neither that nor a name.")
    copies = [env() for _ in range(num_envs)]
    for made in copies:
        if not isinstance(made, gymnasium.Env):
            raise SpaceMismatch(f"the function should make a gymnasium.Env, but it returned a {type(made).__name__}.")
    if len({id(made.unwrapped) for made in copies}) < num_envs:
        raise ConfigError("the function returns the same environment each time; it must make a new one.")
    return copies


def _registered(name: str, kwargs: dict[str, Any]) -> gymnasium.Env:
    try:
        return gymnasium.make(name, disable_env_checker=True, **kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        if "mujoco" in str(error).lower():
            raise MissingExtra(name, "mujoco") from error
        raise HabitusError(f"{name} needs something that is not installed: {error}") from error
    except ImportError as error:
        raise HabitusError(f"{name} cannot be made: {error}") from error
    except TypeError as error:
        raise ConfigError(f"{name} cannot be made with {kwargs}: {error}") from error


def _horizon(env: gymnasium.Env) -> int | None:
    """The time limit: of the wrapper if there is one, else of the registered specification."""
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, gymnasium.wrappers.TimeLimit):
            return int(layer._max_episode_steps)
        layer = layer.env
    return None


def _batch(space: gymnasium.Space, parts: list[Any]) -> Any:
    """Observations of several copies as arrays [num_envs, ...], owning their memory."""
    if space.shape is None:  # several spaces in one
        if isinstance(space, spaces.Dict):
            return {name: _batch(inner, [part[name] for part in parts]) for name, inner in space.spaces.items()}
        assert isinstance(space, spaces.Tuple)  # `Spec` lets no other through
        return tuple(_batch(inner, [part[i] for part in parts]) for i, inner in enumerate(space.spaces))
    batch = np.array(parts, space.dtype)
    if batch.shape[1:] != space.shape:
        raise SpaceMismatch(f"the environment shows observations of shape {batch.shape[1:]}, but declares {space}.")
    return batch
