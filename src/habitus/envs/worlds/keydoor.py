"""A key, a locked door and a goal: MiniGrid's DoorKey, compiled.

M. Chevalier-Boisvert et al., "Minigrid & Miniworld: Modular & Customizable Reinforcement Learning
Environments for Goal-Oriented Tasks", NeurIPS 2023.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from habitus.core.experience import Action, Step
from habitus.core.protocols import Env, require
from habitus.envs.actions import fit_action

LEFT, RIGHT, FORWARD, PICK_UP, DROP, TOGGLE, DONE = range(7)
OPEN, CLOSED, LOCKED = range(3)
VIEW = 7
UNSEEN, EMPTY, WALL, DOOR, KEY, GOAL = 0, 1, 2, 4, 5, 8  # MiniGrid's codes of objects
COLOURS = np.array([0, 0, 5, 0, 4, 4, 0, 0, 1])  # of each: grey walls, yellow door and key, green goal
HEADINGS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])  # east, south, west, north; y points down
CODES = (11, 6, 4)  # objects, colours and states that MiniGrid knows


class KeyDoorState(eqx.Module):
    """Positions are (x, y) from the upper left corner, walls included; `heading` indexes `HEADINGS`."""

    agent: Int[Array, "2"]
    heading: Int[Array, ""]
    key: Int[Array, "2"]
    carried: Bool[Array, ""]
    door: Int[Array, "2"]
    lock: Int[Array, ""]
    time: Int[Array, ""]


class KeyDoor(Env):
    """Two rooms, the goal behind a locked door; everything but the goal is placed at random.

    Observation: the 7 × 7 cells before the agent, as far as it can see, each as (object, colour, state);
    integers [147], by columns from the left, each from far to near. Actions: left, right, forward, pick up,
    drop, toggle, done. Reward: 1 − .9 t / (10 size²) on reaching the goal at step t, which terminates;
    else 0. `make` ends episodes after 10 size² steps.
    """

    size: int = eqx.field(default=8, static=True)
    """cells along an edge, walls included"""

    def __check_init__(self) -> None:
        require(self.size >= 5, f"size must be 5 or more to hold two rooms, but is {self.size}.")

    @property
    def limit(self) -> int:
        """Steps in which the reward of the goal falls to a tenth."""
        return 10 * self.size**2

    @property
    def observation_space(self) -> spaces.MultiDiscrete:
        return spaces.MultiDiscrete(list(CODES) * VIEW**2)

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(7)

    def reset(self, key: PRNGKeyArray) -> tuple[KeyDoorState, Int[Array, "147"]]:
        wall_key, door_key, agent_key, item_key, turn_key = jax.random.split(key, 5)
        inner = self.size - 2
        wall = jax.random.randint(wall_key, (), 2, inner)
        door = jnp.stack([wall, jax.random.randint(door_key, (), 1, inner)])
        cells = (wall - 1) * inner
        agent = jax.random.randint(agent_key, (), 0, cells)
        item = jax.random.randint(item_key, (), 0, cells - 1)
        item = item + (item >= agent)  # any cell but the agent's
        place = lambda cell: jnp.stack([1 + cell // inner, 1 + cell % inner])  # noqa: E731
        zero = jnp.zeros((), jnp.int32)
        heading = jax.random.randint(turn_key, (), 0, 4)
        state = KeyDoorState(place(agent), heading, place(item), jnp.array(False), door, zero + LOCKED, zero)
        return state, self.view(state)

    def step(self, state: KeyDoorState, action: Action, key: PRNGKeyArray) -> tuple[KeyDoorState, Step]:
        action = fit_action(self.action_space, action)
        front = state.agent + jnp.asarray(HEADINGS)[state.heading]
        ahead, time = self.objects(state, front), state.time + 1
        turn = jnp.where(action == RIGHT, 1, jnp.where(action == LEFT, 3, 0))
        free = (ahead == EMPTY) | (ahead == GOAL) | ((ahead == DOOR) & (state.lock == OPEN))
        moved = (action == FORWARD) & free
        picked = (action == PICK_UP) & (ahead == KEY) & ~state.carried
        dropped = (action == DROP) & (ahead == EMPTY) & state.carried
        turned = (action == TOGGLE) & (ahead == DOOR) & ((state.lock != LOCKED) | state.carried)
        there = moved & (ahead == GOAL)
        after = KeyDoorState(
            agent=jnp.where(moved, front, state.agent),
            heading=(state.heading + turn) % 4,
            key=jnp.where(dropped, front, state.key),
            carried=(state.carried | picked) & ~dropped,
            door=state.door,
            lock=jnp.where(turned, jnp.where(state.lock == OPEN, CLOSED, OPEN), state.lock),
            time=time,
        )
        reward = there * (1.0 - 0.9 * time.astype(jnp.float32) / self.limit)
        return after, Step(self.view(after), reward, there, jnp.array(False), {"success": there})

    def objects(self, state: KeyDoorState, at: Int[Array, "*cells 2"]) -> Int[Array, "*cells"]:
        """What lies at some cells, as MiniGrid's codes; beyond the grid are walls."""
        x, last = at[..., 0], self.size - 1
        wall = ((at <= 0) | (at >= last)).any(-1) | (x == state.door[0])
        out = jnp.where(wall, WALL, EMPTY)
        out = jnp.where((at == last - 1).all(-1), GOAL, out)
        out = jnp.where((at == state.door).all(-1), DOOR, out)
        return jnp.where((at == state.key).all(-1) & ~state.carried, KEY, out)

    def view(self, state: KeyDoorState) -> Int[Array, "147"]:
        """What the agent sees from the middle of the near edge, facing the far one, carrying what it holds."""
        headings = jnp.asarray(HEADINGS)
        right, far = jnp.meshgrid(jnp.arange(VIEW) - VIEW // 2, VIEW - 1 - jnp.arange(VIEW), indexing="ij")
        at = state.agent + far[..., None] * headings[state.heading]
        at = at + right[..., None] * headings[(state.heading + 1) % 4]
        seen = self.objects(state, at)
        visible = _visible((seen != WALL) & ((seen != DOOR) | (state.lock == OPEN)))
        seen = seen.at[VIEW // 2, VIEW - 1].set(jnp.where(state.carried, KEY, EMPTY))
        seen = jnp.where(visible, seen, UNSEEN)
        lock = jnp.where(seen == DOOR, state.lock, 0)
        return jnp.stack([seen, jnp.asarray(COLOURS)[seen], lock], -1).ravel().astype(jnp.int32)


def _rows() -> Int[np.ndarray, "lit clear"]:
    """What one row of the view does to the light, as bits by column: of the row itself, and 7 bits higher of the next.

    Light spreads through clear cells to the right and then to the left, each time also away from the
    agent, straight and diagonally. Which way it went matters, so that order is MiniGrid's.
    """
    lit, clear = (((grid[..., None] >> np.arange(VIEW)) & 1) == 1 for grid in np.indices((1 << VIEW, 1 << VIEW)))
    after = np.zeros_like(lit)
    for side, columns in ((1, range(VIEW - 1)), (-1, range(VIEW - 1, 0, -1))):
        for i in columns:
            passes = lit[..., i] & clear[..., i]
            lit[..., i + side] |= passes
            after[..., i + side] |= passes
            after[..., i] |= passes
    return (np.concatenate([lit, after], -1) << np.arange(2 * VIEW)).sum(-1, dtype=np.int32)


_ROWS = _rows()


def _visible(clear: Bool[Array, "7 7"]) -> Bool[Array, "7 7"]:
    """Cells that light from the agent reaches, as in MiniGrid; row by row from a table, as it compiles in no time."""
    columns, table = jnp.arange(VIEW), jnp.asarray(_ROWS)
    clear_bits = (clear << columns[:, None]).sum(0)
    light, rows = jnp.asarray(1 << VIEW // 2, jnp.int32), []
    for j in reversed(range(VIEW)):
        found = table[light, clear_bits[j]]
        rows.append(found)
        light = found >> VIEW
    lit = jnp.stack(rows[::-1])
    return ((lit >> columns[:, None]) & 1) == 1
