"""MiniGrid's and BabyAI's worlds, with the agent's view as numbers."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Int

from habitus.core.errors import MissingExtra
from habitus.envs.adapters.gymnasium import GymnasiumEnv

PREFIXES = ("MiniGrid-", "BabyAI-")


def make_minigrid(name: str, num_envs: int = 1, **kwargs: Any) -> GymnasiumEnv:
    """A MiniGrid or BabyAI world by its id; observations are those of `View`.

    Raises:
        MissingExtra: if minigrid is not installed.
        gymnasium.error.Error: if no world has this id.
    """
    try:
        import minigrid  # noqa: F401 - registers its worlds
    except ImportError as error:
        raise MissingExtra(name, "minigrid") from error
    made = GymnasiumEnv(lambda: View(gymnasium.make(name, disable_env_checker=True, **kwargs)), num_envs)
    own_limit = int(made.copies[0].unwrapped.max_steps)  # type: ignore[attr-defined]
    made.horizon = min(own_limit, made.horizon or own_limit)
    return made


class View(gymnasium.ObservationWrapper):
    """The cells that the agent sees, each as (object, colour, state): integers [height · width · 3].

    Learners see their one-hot codes. Left out are the compass direction, as the view turns with the
    agent, and the mission, which is text.
    """

    def __init__(self, env: gymnasium.Env):
        from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, spaces.Dict)
        height, width, _ = space["image"].shape  # type: ignore[misc]
        # an agent carries its direction as its state, of which there are four
        codes = [len(OBJECT_TO_IDX), len(COLOR_TO_IDX), max(len(STATE_TO_IDX), 4)]
        self.observation_space = spaces.MultiDiscrete(codes * (height * width))

    def observation(self, observation: dict[str, Any]) -> Int[np.ndarray, "cells"]:
        return np.asarray(observation["image"], np.int64).ravel()
