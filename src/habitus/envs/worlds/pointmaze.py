"""Drive a point mass through a maze to a goal, with a reward only there."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.experience import Action, Step
from habitus.core.protocols import Env, require
from habitus.envs.actions import fit_action

U_MAZE = (
    "#####",
    "#G..#",
    "###.#",
    "#S..#",
    "#####",
)
MARGIN = 1e-3  # distance kept from walls, so that a position says which cell it is in


class PointMaze(Env):
    """A damped double integrator among walls; state and observation are (position, velocity, goal), two numbers each.

    Lengths are in cells: x to the right and y down from the upper left corner of `layout`, where `#`
    is wall, `S` where episodes start and `G` the cell of the goal. Action: acceleration in [−1, 1]².
    Walls stop the component that runs into them. Reward: 1 for every step that ends within `radius`
    of the goal, else 0; reaching it is `info["success"]` and ends nothing, so an episode lasts as long
    as its time limit (200 steps in `make`) and its return counts the steps spent at the goal.
    """

    dt: float = 0.1
    """time step"""
    damping: float = 0.95
    """share of the velocity that a step keeps"""
    radius: float = 0.3
    """of the goal"""
    jitter: float = 0.2
    """start and goal are uniform within this of the centres of their cells, in each coordinate"""
    layout: tuple[str, ...] = eqx.field(default=U_MAZE, static=True)
    """rows of the maze, all walled in"""

    def __check_init__(self) -> None:
        rows, cells = self.layout, "".join(self.layout)
        walled = {*rows[0], *rows[-1]} == {"#"} and all(row[0] == row[-1] == "#" for row in rows)
        require(
            len({len(row) for row in rows}) == 1 and walled and cells.count("S") == cells.count("G") == 1,
            "a maze layout needs rows of one length, a wall all round, one S and one G.",
        )
        require(
            self.dt**2 < 1 - self.damping,
            f"dt={self.dt} and damping={self.damping} let the point cross a cell in one step; lower one of them.",
        )

    @property
    def observation_space(self) -> spaces.Box:
        size = np.array([len(self.layout[0]), len(self.layout)], np.float32)
        fast = np.full(2, np.inf, np.float32)
        return spaces.Box(np.concatenate([0 * size, -fast, 0 * size]), np.concatenate([size, fast, size]))

    @property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (2,))

    @property
    def walls(self) -> np.ndarray:
        """Whether a cell is wall: bool [rows, columns]."""
        return np.array([[cell == "#" for cell in row] for row in self.layout])

    def centre(self, mark: str) -> np.ndarray:
        """Centre (x, y) of the cell marked `S` or `G`."""
        row, column = np.argwhere([[cell == mark for cell in row] for row in self.layout])[0]
        return np.array([column + 0.5, row + 0.5], np.float32)

    def guide(self) -> np.ndarray:
        """For each cell, the centre of the next one on a shortest way to `G`: float [rows, columns, 2]."""
        walls, goal = self.walls, self.centre("G")
        towards = np.full((*walls.shape, 2), goal, np.float32)
        frontier, seen = [(int(goal[1]), int(goal[0]))], walls.copy()
        while frontier:
            row, column = frontier.pop(0)
            seen[row, column] = True
            for cell in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if not seen[cell]:
                    seen[cell] = True
                    towards[cell] = column + 0.5, row + 0.5
                    frontier.append(cell)
        return towards

    def reset(self, key: PRNGKeyArray) -> tuple[Float[Array, "6"], Float[Array, "6"]]:
        noise = jax.random.uniform(key, (4,), minval=-self.jitter, maxval=self.jitter)
        still = jnp.zeros(2)
        state = jnp.concatenate([self.centre("S") + noise[:2], still, self.centre("G") + noise[2:]])
        return state, state

    def step(self, state: Float[Array, "6"], action: Action, key: PRNGKeyArray) -> tuple[Float[Array, "6"], Step]:
        position, velocity, goal = state[:2], state[2:4], state[4:]
        push = jnp.clip(fit_action(self.action_space, action), -1.0, 1.0)
        velocity = self.damping * velocity + self.dt * push
        x, v_x = self._slide(position, velocity, 0)
        y, v_y = self._slide(position.at[0].set(x), velocity, 1)

        state = jnp.concatenate([jnp.stack([x, y, v_x, v_y]), goal])
        there = jnp.sum((state[:2] - goal) ** 2) <= self.radius**2
        return state, Step(state, there.astype(jnp.float32), jnp.array(False), jnp.array(False), {"success": there})

    def _slide(
        self, position: Float[Array, "2"], velocity: Float[Array, "2"], axis: int
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Coordinate and velocity along one axis after a step, stopped by a wall in the next cell."""
        here = jnp.floor(position[axis])
        wished = position[axis] + self.dt * velocity[axis]
        target = position.at[axis].set(wished).astype(jnp.int32)
        blocked = jnp.asarray(self.walls)[target[1], target[0]]
        stopped = jnp.clip(wished, here + MARGIN, here + 1 - MARGIN)
        return jnp.where(blocked, stopped, wished), jnp.where(blocked, 0.0, velocity[axis])
