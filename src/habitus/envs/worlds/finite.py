"""Worlds given by their tables, and two that are drawn at random: a combination lock and a linear one."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.experience import Action, Step
from habitus.core.protocols import Env, require
from habitus.envs.actions import fit_action
from habitus.envs.tabular import Tabular


class FiniteMDP(Env):
    """A world from its tables. State and observation: the number of the state; actions: integers.

    Arrays are leaves, so that several worlds of one shape are one program, mapped over.
    """

    transition: Float[Array, "states actions states"]
    reward: Float[Array, "states actions"]
    start: Float[Array, "states"]
    terminal: Bool[Array, "states"]
    limit: int = eqx.field(static=True)
    """steps that `make` gives an episode"""

    def __init__(self, model: Tabular, limit: int):
        """Args:
            model: dynamics and rewards; rewards are the expected ones.
            limit: steps of an episode; put `TimeLimit` around a world that is not made by `make`.

        Raises:
            ConfigError: if `limit` is not positive.
        """
        require(limit > 0, f"limit must be above 0, but is {limit}.")
        self.transition, self.reward = (
            jnp.asarray(model.transition, jnp.float32),
            jnp.asarray(model.reward, jnp.float32),
        )
        self.start, self.terminal = jnp.asarray(model.start, jnp.float32), jnp.asarray(model.terminal)
        self.limit = limit

    @property
    def observation_space(self) -> spaces.Discrete:
        return spaces.Discrete(self.start.shape[0])

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(self.reward.shape[1])

    def reset(self, key: PRNGKeyArray) -> tuple[Int[Array, ""], Int[Array, ""]]:
        state = _draw(self.start, key)
        return state, state

    def step(self, state: Int[Array, ""], action: Action, key: PRNGKeyArray) -> tuple[Int[Array, ""], Step]:
        action = fit_action(self.action_space, action)
        after = _draw(self.transition[state, action], key)
        return after, Step(after, self.reward[state, action], self.terminal[after], jnp.array(False))

    def mean_return(self, policy: Float[Array, "horizon states actions"]) -> Float[Array, ""]:
        """Expected return of a policy with its own probabilities at each step; traced, in float32.

        `habitus.envs.tabular.Tabular.q_within` is the same in NumPy and float64.
        """

        def back(value: Array, probabilities: Array) -> tuple[Array, None]:
            q = self.reward + self.transition @ jnp.where(self.terminal, 0.0, value)
            return (probabilities * q).sum(-1), None

        value, _ = jax.lax.scan(back, jnp.zeros_like(self.start), policy, reverse=True)
        return self.start @ jnp.where(self.terminal, 0.0, value)


class TabularLock(FiniteMDP):
    """A lock that opens to the right action at each of `length` steps, and pays a little for giving up.

    In each step there are three states: two from which the right action, each state's own, leads to
    either of the next step's with equal chance, and one that only leads on to its like. The last
    right action pays 1; a wrong one pays `consolation` once and is never made good. Uniform actions
    open it with probability `actions^-length`. The best return is 1.
    """

    def __init__(self, length: int = 12, actions: int = 4, consolation: float = 0.05, seed: int = 0):
        """Args:
            length: steps until it opens.
            actions: to choose from in each.
            consolation: reward of the first wrong action.
            seed: of the combination.

        Raises:
            ConfigError: if a number is out of its domain.
        """
        super().__init__(lock_model(length, actions, consolation, seed), length)


class LinearMDP(FiniteMDP):
    """A random world that is linear in known features (Jin et al., 2020).

    `P(s' | s, a) = phi(s, a) . mu(s')` and `r(s, a) = phi(s, a) . theta`, with `phi(s, a)` and each of
    the `size` rows of `mu` a distribution, most of them spiky. Episodes start in state 0; rewards are in [0, 1].
    """

    features: Float[Array, "states actions features"]
    """phi"""

    def __init__(self, states: int = 50, actions: int = 5, size: int = 10, limit: int = 6, seed: int = 0):
        """Args:
            states, actions: how many.
            size: dimension of the features.
            limit: steps of an episode.
            seed: of everything that is random.

        Raises:
            ConfigError: if a number is not positive.
        """
        model, features = linear_model(states, actions, size, seed)
        super().__init__(model, limit)
        self.features = jnp.asarray(features, jnp.float32)


def lock_model(length: int, actions: int, consolation: float, seed: int) -> Tabular:
    """The tables of `TabularLock`: states `3 h`, `3 h + 1` lead on, `3 h + 2` does not; the last is the end."""
    require(length > 0 and actions > 1, f"a lock needs length above 0 and actions above 1, not {length}, {actions}.")
    require(0 <= consolation < 1, f"consolation must be in [0, 1), but is {consolation}.")
    right = np.random.default_rng(seed).integers(0, actions, (length, 2))
    end = 3 * length
    transition, reward = np.zeros((end + 1, actions, end + 1)), np.zeros((end + 1, actions))
    transition[end, :, end] = 1.0
    for h in range(length):
        opens = h + 1 == length
        onwards, lost = ([end], end) if opens else ([3 * h + 3, 3 * h + 4], 3 * h + 5)
        transition[3 * h : 3 * h + 3, :, lost] = 1.0
        reward[3 * h : 3 * h + 2] = consolation
        for good, action in zip((3 * h, 3 * h + 1), right[h], strict=True):
            transition[good, action] = 0.0
            transition[good, action, onwards] = 1 / len(onwards)
            reward[good, action] = float(opens)
    start = np.zeros(end + 1)
    start[:2] = 0.5
    return Tabular(transition, reward, start, np.arange(end + 1) == end)


def linear_model(states: int, actions: int, size: int, seed: int) -> tuple[Tabular, Float[np.ndarray, "s a d"]]:
    """The tables of `LinearMDP`, and its features."""
    require(min(states, actions, size) > 0, f"states, actions and size must be above 0: {states}, {actions}, {size}.")
    rng = np.random.default_rng(seed)
    features = rng.dirichlet(np.full(size, 0.2), (states, actions))
    mu, theta = rng.dirichlet(np.full(states, 0.05), size), rng.uniform(size=size) ** 4
    transition = features @ mu
    transition /= transition.sum(-1, keepdims=True)
    start = np.eye(states)[0]
    return Tabular(transition, features @ theta, start, np.zeros(states, bool)), features


def _draw(probabilities: Float[Array, "states"], key: PRNGKeyArray) -> Int[Array, ""]:
    """By the cumulative distribution: one random number a draw. What has probability 0 is never drawn."""
    total = jnp.cumsum(probabilities)
    return (total <= jax.random.uniform(key) * total[-1]).sum().astype(jnp.int32)
