"""A frozen lake: slip, and you go where you did not mean to; the dynamics of Gymnasium's FrozenLake."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.experience import Action, Step
from habitus.core.protocols import Env, require
from habitus.envs.actions import fit_action
from habitus.envs.tabular import Tabular

MAP = ("SFFF", "FHFH", "FFFH", "HFFG")
MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))  # left, down, right, up


def _successors(lake: tuple[str, ...]) -> np.ndarray:
    """The cell that each move leads to: int [cells, moves]. Edges, holes and goals leave one where one is."""
    rows, columns = len(lake), len(lake[0])
    cells = np.arange(rows * columns)
    row, column = np.divmod(cells, columns)
    down, right = np.transpose(MOVES)
    r = np.clip(row[:, None] + down, 0, rows - 1)
    c = np.clip(column[:, None] + right, 0, columns - 1)
    over = np.isin(list("".join(lake)), ["H", "G"])
    return np.where(over[:, None], cells[:, None], r * columns + c).astype(np.int32)


class FrozenLake(Env):
    """A lake of ice with holes, to be crossed from S to G; a hole (H) or the goal ends the episode.

    Observation and state: the cell, row by row. Actions: left, down, right, up; one goes where one means
    to with probability `intended`, and else to one of the two sides. Reward: 1 at the goal, else 0.

    Raises:
        ConfigError: for a map that is no rectangle of S, F, H and G with one S and a G.
    """

    lake: tuple[str, ...] = eqx.field(default=MAP, static=True)
    intended: float | Float[Array, ""] = 1 / 3  # as Gymnasium's slippery lake; 1 for ice that holds

    def __check_init__(self) -> None:
        text = "".join(self.lake)
        shape = bool(self.lake) and all(len(row) == len(self.lake[0]) for row in self.lake) and set(text) <= set("SFHG")
        good = shape and text.count("S") == 1 and "G" in text
        require(good, f"the lake must be a rectangle of S, F, H and G with one S and a G, but is {self.lake}.")
        inside = (self.intended >= 0) & (self.intended <= 1)
        require(inside, f"intended is a probability, in [0, 1], but is {self.intended}.")

    @property
    def observation_space(self) -> spaces.Discrete:
        return spaces.Discrete(sum(map(len, self.lake)))

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(len(MOVES))

    def reset(self, key: PRNGKeyArray) -> tuple[Int[Array, ""], Int[Array, ""]]:
        cell = jnp.asarray("".join(self.lake).index("S"), jnp.int32)
        return cell, cell

    def step(self, state: Int[Array, ""], action: Action, key: PRNGKeyArray) -> tuple[Int[Array, ""], Step]:
        sides = (1 - self.intended) / 2
        turn = jax.random.choice(key, jnp.array([-1, 0, 1]), p=jnp.stack([sides, 1.0 - 2 * sides, sides]))
        move = (fit_action(self.action_space, action) + turn) % len(MOVES)
        cell = jnp.asarray(_successors(self.lake))[state, move]
        kind = np.array(list("".join(self.lake)))
        there, lost = jnp.asarray(kind == "G")[cell], jnp.asarray(kind == "H")[cell]
        paid = (there & (cell != state)).astype(jnp.float32)
        return cell, Step(cell, paid, there | lost, jnp.array(False), {"success": there})

    def model(self) -> Tabular:
        """Transition probabilities and expected rewards, for exact solutions."""
        successors, kind = _successors(self.lake), np.array(list("".join(self.lake)))
        n, sides = len(kind), (1 - float(self.intended)) / 2
        terminal = np.isin(kind, ["H", "G"])
        transition = np.zeros((n, len(MOVES), n))
        for turn, chance in ((-1, sides), (0, 1 - 2 * sides), (1, sides)):
            for action in range(len(MOVES)):
                transition[np.arange(n), action, successors[:, (action + turn) % len(MOVES)]] += chance
        reward = transition @ (kind == "G") * ~terminal[:, None]
        return Tabular(transition, reward, (kind == "S").astype(float), terminal)
