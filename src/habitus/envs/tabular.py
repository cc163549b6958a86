"""Worlds small enough to write down, and their exact solution by dynamic programming."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from habitus.core.errors import ConfigError
from habitus.core.protocols import require

_TIE = 1e-10  # an action must be better by more than this to be preferred, or policy iteration could cycle


@dataclasses.dataclass(frozen=True, eq=False)
class Tabular:
    """The model of a finite world. Arrays are float64, as undiscounted values need the precision.

    Attributes:
        transition: `P(s' | s, a)`, [states, actions, states].
        reward: expected reward of each pair, [states, actions].
        start: probability of each first state, [states].
        terminal: where nothing follows, whatever the other fields say there, [states].

    Raises:
        ConfigError: if shapes disagree, or a row that can be left is no distribution.
    """

    transition: Float[np.ndarray, "states actions states"]
    reward: Float[np.ndarray, "states actions"]
    start: Float[np.ndarray, "states"]
    terminal: Bool[np.ndarray, "states"]

    def __post_init__(self) -> None:
        states, actions = self.reward.shape
        require(
            self.transition.shape == (states, actions, states) and self.start.shape == self.terminal.shape == (states,),
            f"transition {self.transition.shape}, reward {self.reward.shape}, start {self.start.shape} and terminal "
            f"{self.terminal.shape} must be [S, A, S], [S, A], [S] and [S].",
        )
        rows = self.transition[~self.terminal]
        good = (rows >= 0).all() and np.allclose(rows.sum(-1), 1) and np.isclose(self.start.sum(), 1)
        require(bool(good), "rows of transition, and start, must be probabilities that sum to 1.")

    def values(self, policy: Float[np.ndarray, "states actions"], discount: float = 1.0) -> Float[np.ndarray, "states"]:
        """`V = (I - discount P_pi)^-1 r_pi`, by solving the linear system over the states that are left.

        Args:
            policy: action probabilities in each state.

        Raises:
            ConfigError: if, undiscounted, some state never comes to an end under `policy`.
        """
        live = ~self.terminal
        chain = np.einsum("sa,sat->st", policy[live], self.transition[live])[:, live]
        paid = (policy[live] * self.reward[live]).sum(-1)
        values = np.zeros(len(self.start))
        try:
            values[live] = np.linalg.solve(np.eye(len(chain)) - discount * chain, paid)
        except np.linalg.LinAlgError:
            raise ConfigError("some state never ends under this policy; its undiscounted value is infinite.") from None
        return values

    def action_values(
        self, values: Float[np.ndarray, "states"], discount: float = 1.0
    ) -> Float[np.ndarray, "states actions"]:
        """`Q(s, a) = r(s, a) + discount E V(s')`; 0 in terminal states."""
        q = self.reward + discount * self.transition @ np.where(self.terminal, 0.0, values)
        return np.where(self.terminal[:, None], 0.0, q)

    def solve(
        self, discount: float = 1.0, allowed: Bool[np.ndarray, "states actions"] | None = None
    ) -> tuple[Float[np.ndarray, "states actions"], Float[np.ndarray, "states"]]:
        """An optimal policy, as probabilities, and its values; by policy iteration (Howard, 1960).

        Args:
            allowed: the actions to choose from in each state; all of them if None. Every state needs one.

        Raises:
            ConfigError: if a state is left without an action, or, undiscounted, never ends under some policy.
        """
        allowed = np.ones(self.reward.shape, bool) if allowed is None else allowed
        require(bool(allowed[~self.terminal].any(1).all()), "every state that is not terminal needs an allowed action.")
        rows = np.arange(len(self.start))
        policy = allowed / np.maximum(allowed.sum(1, keepdims=True), 1)  # uniform, which ends wherever any does
        choice = np.full(len(rows), -1)
        while True:
            values = self.values(policy, discount)
            q = np.where(allowed, self.action_values(values, discount), -np.inf)
            better = (choice < 0) | (q.max(1) > q[rows, choice] + _TIE)
            if not better.any():
                return policy, values
            choice = np.where(better, q.argmax(1), choice)
            policy = np.eye(self.reward.shape[1])[choice]

    def mean_return(self, policy: Float[np.ndarray, "states actions"], discount: float = 1.0) -> float:
        """Expected return of a policy from the first states."""
        return float(self.start @ self.values(policy, discount))

    def q_within(
        self, horizon: int, policy: Float[np.ndarray, "horizon states actions"] | None = None
    ) -> Float[np.ndarray, "horizon states actions"]:
        """`Q_h = r + P V_{h+1}` of an episode of `horizon` steps, backwards from `V_horizon = 0`.

        Args:
            policy: action probabilities at each step; None for the optimal one.
        """
        values, out = np.zeros(len(self.start)), np.zeros((horizon, *self.reward.shape))
        for h in reversed(range(horizon)):
            out[h] = self.action_values(values)
            values = out[h].max(-1) if policy is None else (policy[h] * out[h]).sum(-1)
        return out

    def best_return_within(self, horizon: int) -> float:
        """Expected return of the best policy for an episode of `horizon` steps."""
        return float(self.start @ self.q_within(horizon)[0].max(-1))
