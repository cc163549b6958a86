"""GC-BC: goal-conditioned behaviour cloning of play.

A causal transformer reads the goal and the last states and answers with the mean action. What somebody did on the
way to a state is a demonstration of how to reach it, so that play without any labels teaches to reach goals. Where
several actions are right their mean may not be, which is what drawing actions from a learned distribution mends.

C. Lynch et al., "Learning Latent Plans from Play", CoRL 2019, where it is the baseline Play-GCBC.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.protocols import Policy
from habitus.methods.generative._goal_imitation import GoalImitation, GoalPolicy, ImitationState
from habitus.nets.goals import GoalRows
from habitus.nets.mlp import Linear
from habitus.nets.transformer import Transformer

CARD = Card(
    title="Learning Latent Plans from Play",
    authors="Lynch, Corey and Khansari, Mohi and Xiao, Ted and Kumar, Vikash and Tompson, Jonathan and Levine, Sergey "
    "and Sermanet, Pierre",
    year=2019,
    venue="Conference on Robot Learning",
    arxiv="1903.01973",
    kind="learner",
    entry="GCBC",
    data=("log",),
    actions=("continuous",),
)


class GoalTransformer(eqx.Module):
    """Rows `[goal_1 .. goal_G, s_1 .. s_W]`, each seeing itself and those before it, to an action for each state."""

    state: Linear
    places: Float[Array, "places width"]
    body: Transformer
    out: Linear
    dropout: float = eqx.field(static=True)

    def __call__(
        self,
        states: Float[Array, "window columns"],
        goal: Float[Array, "goals columns"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "window actions"]:
        tokens = self.state(jnp.concatenate([goal, states])) + self.places
        return self.out(self.body(tokens, jnp.ones(len(tokens), bool), key, self.dropout)[len(goal) :])


class MeanPolicy(GoalPolicy):
    """Takes the mean action."""

    def draw(
        self, past: Array, now: Int[Array, ""], states: Array, goal: Array, key: PRNGKeyArray
    ) -> Float[Array, "actions"]:
        return self.network(states, goal)[now]


class GCBC(GoalImitation):
    """Goal-conditioned behaviour cloning, on windows of a log. Real, bounded actions."""

    def network(self, rows: GoalRows, actions: int, key: PRNGKeyArray) -> GoalTransformer:
        state, place, body, out = jax.random.split(key, 4)
        return GoalTransformer(
            state=Linear.random(rows.width, self.width, state),
            places=0.02 * jax.random.normal(place, (rows.goals + self.context, self.width)),
            body=Transformer(self.width, self.layers, self.heads, body, "gelu"),
            out=Linear.random(self.width, actions, out),
            dropout=self.dropout,
        )

    def errors(
        self, actor: GoalTransformer, actions: Array, states: Array, goal: Array, key: PRNGKeyArray
    ) -> Float[Array, "window actions"]:
        """`(pi(s_1 .. s_t, g) - a_t)^2`."""
        return (actor(states, goal, key) - actions) ** 2

    def policy(self, state: ImitationState) -> Policy:
        return MeanPolicy(state.average, state.rows, state.scale, state.blank, self.clip)
