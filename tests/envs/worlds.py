"""Worlds that the tests of this folder share."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces

from habitus.envs.registry import canonical, make, names

BUILT_IN = names()
GYMNAX = ["gymnax:CartPole-v1", "gymnax:Breakout-MinAtar", "gymnax:MountainCarContinuous-v0"]


def pure_worlds() -> dict:
    """Every built-in world and some of gymnax's, plain and in canonical form, each with a short time limit."""
    plain = {name: make(name, max_episode_steps=11) for name in BUILT_IN + GYMNAX}
    return plain | {f"canonical {name}": canonical(world) for name, world in plain.items()}


class Countdown(gymnasium.Env):
    """Counts down from 3 and terminates at 0; shows one buffer that it keeps overwriting.

    Action 1 stops the clock. The observation is (count, resets).
    """

    observation_space = spaces.Box(0, 100, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.buffer, self.resets = np.zeros(2), 0

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.resets += 1
        self.buffer[:] = 3, self.resets
        return self.buffer, {}

    def step(self, action):
        self.buffer[0] -= 1 - action
        done = bool(self.buffer[0] <= 0)
        return self.buffer, float(self.buffer[0]), done, False, {"is_success": done}


class Nested(gymnasium.Env):
    """Dict and Tuple observations and MultiDiscrete actions; shows the last action."""

    observation_space = spaces.Dict(
        {
            "kind": spaces.Discrete(3),
            "pair": spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.MultiBinary(2)]),
        }
    )
    action_space = spaces.MultiDiscrete([3, 2])

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        return self._show([0, 0]), {}

    def step(self, action):
        return self._show(action), 0.0, False, bool(action[0] == 2), {}

    def _show(self, action):
        pair = (np.array([action[0] / 2, -action[1]], np.float32), np.array([action[1], 1], np.int8))
        return {"kind": int(action[0]), "pair": pair}
