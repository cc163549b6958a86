"""Flip bits, one a step, until they spell a goal: the plainest sparse-reward problem."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from gymnasium import spaces
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.experience import Action, Step
from habitus.core.protocols import Env, require
from habitus.envs.actions import fit_action


class BitFlip(Env):
    """`bits` bits and a goal (Andrychowicz et al. 2017, Hindsight Experience Replay, section 3.1).

    State and observation: the bits, then the goal, each number 0 or 1. Action: which bit to flip.
    Reward: −1 a step, 0 for the step that reaches the goal, which terminates.
    """

    bits: int = eqx.field(default=8, static=True)
    """number of bits; `make` gives as many steps"""

    def __check_init__(self) -> None:
        require(self.bits > 0, f"bits must be above 0, but is {self.bits}.")

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (2 * self.bits,))

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(self.bits)

    def reset(self, key: PRNGKeyArray) -> tuple[Float[Array, "both"], Float[Array, "both"]]:
        state = jax.random.bernoulli(key, shape=(2 * self.bits,)).astype(jnp.float32)
        solved = jnp.array_equal(state[: self.bits], state[self.bits :])
        state = state.at[0].set(jnp.where(solved, 1 - state[0], state[0]))
        return state, state

    def step(self, state: Float[Array, "both"], action: Action, key: PRNGKeyArray) -> tuple[Float[Array, "both"], Step]:
        index = fit_action(self.action_space, action)
        state = state.at[index].set(1 - state[index])
        there = jnp.array_equal(state[: self.bits], state[self.bits :])
        return state, Step(state, there.astype(jnp.float32) - 1, there, jnp.array(False), {"success": there})
