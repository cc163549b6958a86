"""A small tabular gridworld: four rooms joined by doors."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Int, PRNGKeyArray

from habitus.core.experience import Action, Step
from habitus.core.protocols import Env
from habitus.envs.actions import fit_action

SIZE = 8
DOORS = ((4, 1), (4, 6), (1, 4), (6, 4))
GOAL = (7, 7)
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left


def _walls() -> np.ndarray:
    walls = np.zeros((SIZE, SIZE), bool)
    walls[4, :] = walls[:, 4] = True
    walls[tuple(np.transpose(DOORS))] = False
    return walls


def _successors(walls: np.ndarray) -> np.ndarray:
    """The cell that each action leads to: int [cells, actions]. Walls and edges leave one where one is."""
    table = np.repeat(np.arange(SIZE * SIZE), len(MOVES)).reshape(-1, len(MOVES)).astype(np.int32)
    for row, column in np.argwhere(~walls):
        for action, (down, right) in enumerate(MOVES):
            r, c = row + down, column + right
            if 0 <= r < SIZE and 0 <= c < SIZE and not walls[r, c]:
                table[row * SIZE + column, action] = r * SIZE + c
    return table


WALLS = _walls()
SUCCESSORS = _successors(WALLS)
STARTS = np.setdiff1d(np.flatnonzero(~WALLS), GOAL[0] * SIZE + GOAL[1]).astype(np.int32)


class FourRooms(Env):
    """An 8×8 grid with walls in row 4 and column 4 and a goal in the corner; deterministic.

    Observation: the cell, row · 8 + column. State: (cell, steps taken). Actions: up, right, down, left.
    Starts are uniform over the free cells except the goal. Reward: 1 − .9 t / limit on reaching the
    goal at step t, which terminates; else 0.
    """

    limit: int = eqx.field(default=40, static=True)
    """steps in which the reward of the goal falls to a tenth; `make` ends episodes there"""

    @property
    def observation_space(self) -> spaces.Discrete:
        return spaces.Discrete(SIZE * SIZE)

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(len(MOVES))

    def reset(self, key: PRNGKeyArray) -> tuple[Int[Array, "2"], Int[Array, ""]]:
        cell = jax.random.choice(key, STARTS)
        return jnp.stack([cell, jnp.zeros_like(cell)]), cell

    def step(self, state: Int[Array, "2"], action: Action, key: PRNGKeyArray) -> tuple[Int[Array, "2"], Step]:
        cell = jnp.asarray(SUCCESSORS)[state[0], fit_action(self.action_space, action)]
        time = state[1] + 1
        there = cell == GOAL[0] * SIZE + GOAL[1]
        reward = there * (1.0 - 0.9 * time.astype(jnp.float32) / self.limit)
        return jnp.stack([cell, time]), Step(cell, reward, there, jnp.array(False), {"success": there})
