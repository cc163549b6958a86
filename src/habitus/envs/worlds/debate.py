"""A debate: two players reveal features of one state in turn, each for an action of its own, before a judge.

The judge sees the revealed features alone. Player 0 argues for the logged action, player 1 for another
one; who starts is drawn. Or player 0 has the floor alone, and reveals everything.

A. Sukovic and G. Radanovic, "Reward Design for Justifiable Sequential Decision-Making", ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.experience import Action, Step
from habitus.core.protocols import Env, require

Scorer = Callable[[Array, Array, Array], Array]  # (features [n], revealed [n], action) -> score


def other_action(key: PRNGKeyArray, action: Int[Array, "*batch"], n: int) -> Int[Array, "*batch"]:
    """Uniformly one of the other `n - 1` actions."""
    return (action + jax.random.randint(key, action.shape, 1, n)) % n


def margin(judge: Scorer, features: Array, revealed: Array, mine: Array, other: Array) -> Float[Array, ""]:
    """`J(mine, e) - J(other, e)` for the evidence `e`; exactly 0 for the same action."""
    return judge(features, revealed, mine) - judge(features, revealed, other)


def check_evidence(evidence: int, n: int, alone: bool) -> None:
    """Raises `ConfigError` unless so many of `n` features can be revealed, by two players or by one alone."""
    require(1 <= evidence <= n, f"evidence must be from 1 to the number of features, {n}, but is {evidence}.")
    require(alone or evidence % 2 == 0, f"two players reveal as much each, so evidence must be even, not {evidence}.")


class DebateState(eqx.Module):
    """What is argued about, what was revealed, who started, and how many moves were made."""

    features: Float[Array, "n"]
    actions: Int[Array, "2"]
    revealed: Float[Array, "n"]
    starter: Int[Array, ""]
    time: Int[Array, ""]

    @property
    def player(self) -> Int[Array, ""]:
        """Whose move it is."""
        return (self.starter + self.time) % 2


class Debate(Env):
    """One state of a log, its action and another one. Action: the feature to reveal.

    Observation: `state` [n], the features, all of which the players see; `action_mask` [n], those not yet
    revealed; `argued`, the action that the player to move argues for; `turn`, which player that is. After
    `evidence` moves it ends, and player 0 is paid 1 if the judge prefers its action, -1 if the other, 0 in
    a tie; player 1 the opposite. A feature revealed again is a move lost.
    """

    judge: Scorer
    states: Float[Array, "rows n"]
    logged: Int[Array, "rows"]
    num_actions: int = eqx.field(static=True)
    evidence: int = eqx.field(static=True)
    alone: bool = eqx.field(static=True)

    def __init__(
        self,
        judge: Scorer,
        states: Float[Array, "rows n"],
        logged: Int[Array, "rows"],
        num_actions: int,
        evidence: int = 6,
        alone: bool = False,
    ):
        """Args:
            evidence: features that are revealed, of both players together.
            alone: player 0 makes every move.

        Raises:
            ConfigError: if `evidence` is out of its domain, or odd with two players.
        """
        check_evidence(evidence, states.shape[1], alone)
        require(num_actions >= 2, f"a debate is about two actions, but there are {num_actions}.")
        self.judge, self.states, self.logged = judge, states, logged
        self.num_actions, self.evidence, self.alone = num_actions, evidence, alone

    @property
    def observation_space(self) -> spaces.Dict:
        n = self.states.shape[1]
        return spaces.Dict({
            "action_mask": spaces.Box(0.0, 1.0, (n,)),
            "argued": spaces.Discrete(self.num_actions),
            "state": spaces.Box(-np.inf, np.inf, (n,)),
            "turn": spaces.Box(0.0, 1.0, (1,)),
        })  # fmt: skip

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(self.states.shape[1])

    @property
    def horizon(self) -> int:
        return self.evidence

    def reset(self, key: PRNGKeyArray) -> tuple[DebateState, dict[str, Array]]:
        row_key, other_key, start_key = jax.random.split(key, 3)
        row = jax.random.randint(row_key, (), 0, len(self.states))
        mine = self.logged[row]
        pair = jnp.stack([mine, other_action(other_key, mine, self.num_actions)])
        state = self.about(self.states[row], pair, jax.random.bernoulli(start_key))
        return state, self.show(state)

    def about(self, features: Float[Array, "n"], actions: Int[Array, "2"], starter: Array) -> DebateState:
        """The start of a debate of one's own choice: `actions` of players 0 and 1, and which of them starts."""
        return DebateState(
            features, actions, jnp.zeros_like(features), starter.astype(jnp.int32), jnp.zeros((), jnp.int32)
        )

    def step(self, state: DebateState, action: Action, key: PRNGKeyArray) -> tuple[DebateState, Step]:
        state = self.reveal(state, action)
        over = state.time >= self.evidence
        # the judge is asked only in steps in which some copy ends
        won = jax.lax.cond(eqxi.unvmap_any(over), lambda: jnp.sign(self.margin(state)), lambda: jnp.zeros(()))
        return state, Step(self.show(state), jnp.where(over, won, 0.0), over, jnp.array(False))

    def reveal(self, state: DebateState, feature: Action) -> DebateState:
        """After one move."""
        revealed = jnp.maximum(state.revealed, jax.nn.one_hot(feature, len(state.revealed)))
        return DebateState(state.features, state.actions, revealed, state.starter, state.time + 1)

    def margin(self, state: DebateState) -> Float[Array, ""]:
        """How much better the judge thinks the action of player 0 justified."""
        return margin(self.judge, state.features, state.revealed, *state.actions)

    def show(self, state: DebateState) -> dict[str, Any]:
        """What the player to move sees."""
        player = jnp.zeros((), jnp.int32) if self.alone else state.player
        return {
            "action_mask": 1 - state.revealed,
            "argued": state.actions[player],
            "state": state.features,
            "turn": player.astype(jnp.float32)[None],
        }
