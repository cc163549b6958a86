"""A small transformer that denoises actions among the observations and goals they belong to.

M. Reuss, M. Li, X. Jia and R. Lioutikov, "Goal-Conditioned Imitation Learning using Score-based Diffusion Policies",
RSS 2023 (BESO).
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray

from habitus.core.domains import require
from habitus.core.errors import SpaceMismatch
from habitus.nets.mlp import Linear
from habitus.nets.transformer import Transformer


class DenoisingTransformer(eqx.Module):
    """Rows `[level, goal_1 .. goal_G, s_1, a_1, s_2, a_2, ..]`, each seeing itself and those before it.

    Observations and goals go through one dense layer, as both are states; actions through another, and the level
    through a third, so it should be of order one: `ln(sigma) / 4`, a time in [0, 1], `k / N`. Goals have the first
    places, `s_i` and `a_i` share one, the level has none. The answer is read off the rows of the actions. Since no
    row sees later ones, a history that is shorter than the window may be filled up at its end with anything.
    """

    tell: Linear
    state: Linear
    action: Linear
    places: Float[Array, "places width"]
    body: Transformer
    out: Linear
    observed: int = eqx.field(static=True)
    predicted: int = eqx.field(static=True)
    goals: int = eqx.field(static=True)
    levels: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        obs: int,
        actions: int,
        key: PRNGKeyArray,
        *,
        observed: int,
        predicted: int,
        goals: int = 0,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        levels: int = 1,
        dropout: float = 0.0,
    ):
        """Args:
            obs, actions: columns of each.
            observed: rows of observations, the first of the window.
            predicted: rows of actions, at least as many; in BESO both are the window.
            goals: rows of goals.
            levels: how many numbers a noise level is.
            dropout: rate after each attention and dense layer, where a key is given.

        Raises:
            ConfigError: if a number is out of its domain.
        """
        require(1 <= observed <= predicted, f"observed is {observed} and predicted {predicted}; 1 <= observed <= it.")
        require(goals >= 0 and levels >= 1, f"goals is {goals} and levels {levels}; expected 0 or more, and 1 or more.")
        require(0 <= dropout < 1, f"dropout must be in [0, 1), but is {dropout}.")
        tell, state, action, place, body, out = jax.random.split(key, 6)
        self.observed, self.predicted, self.goals, self.levels = observed, predicted, goals, levels
        self.dropout = dropout
        self.body = Transformer(width, layers, heads, body, "gelu")
        self.tell, self.state, self.action = (
            Linear.random(n, width, k) for n, k in ((levels, tell), (obs, state), (actions, action))
        )
        self.places = 0.02 * jax.random.normal(place, (goals + predicted, width))
        self.out = Linear.random(width, actions, out)

    def __call__(
        self,
        x: Float[Array, "predicted actions"],
        level: Num[Array, "..."],
        obs: Float[Array, "observed obs"],
        goal: Float[Array, "goals obs"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "predicted actions"]:
        """Args:
            goal: None where there are no goals.
            key: for dropout; None to act.

        Raises:
            SpaceMismatch: if there are more or fewer rows, or numbers of the level, than it is made for.
        """
        goal = jnp.zeros((0, obs.shape[1])) if goal is None else goal
        found = (len(obs), len(x), len(goal), level.size)
        wanted = (self.observed, self.predicted, self.goals, self.levels)
        if found != wanted:
            raise SpaceMismatch(
                f"there are {found[0]} observations, {found[1]} actions, {found[2]} goals and {found[3]} numbers of "
                f"the noise level, but the network is made for {wanted}; give it as many."
            )
        heading = self.tell(level.ravel().astype(jnp.float32))[None]
        aims = self.state(goal) + self.places[: self.goals]
        states = self.state(obs) + self.places[self.goals : self.goals + self.observed]
        acts = self.action(x) + self.places[self.goals :]
        both = jnp.stack([states, acts[: self.observed]], axis=1).reshape(-1, states.shape[1])
        rows = jnp.concatenate([heading, aims, both, acts[self.observed :]])
        seen = self.body(rows, jnp.ones(len(rows), bool), key, self.dropout)[1 + self.goals :]
        paired, rest = seen[1 : 2 * self.observed : 2], seen[2 * self.observed :]
        return self.out(jnp.concatenate([paired, rest]))
