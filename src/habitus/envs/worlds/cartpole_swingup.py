"""Swing a pole up by moving the cart it hangs from, and balance it."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.experience import Action, Step
from habitus.core.protocols import Env
from habitus.envs.actions import fit_action
from habitus.envs.worlds.cartpole import CartPole


class CartPoleSwingUp(Env):
    """The cart-pole of `CartPole`, started hanging, with a continuous force and stops at the ends of its track.

    Observation: (position, velocity, cos, sin, angular velocity), with the angle measured from
    upright. Action: force as a share of the greatest. Reward: `(1 + cos) / 2` away from the stops,
    0 at them, less .001 action². Episodes never terminate.
    """

    physics: CartPole = CartPole()
    dt: float = 0.02
    """time step of the simulation [s]"""
    substeps: int = eqx.field(default=2, static=True)
    """steps of the simulation for each action"""
    max_position: float = eqx.field(default=3.0, static=True)
    """where the stops are [m]"""

    @property
    def observation_space(self) -> spaces.Box:
        high = np.array([self.max_position, np.inf, 1.0, 1.0, np.inf], np.float32)
        return spaces.Box(-high, high)

    @property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (1,))

    def reset(self, key: PRNGKeyArray) -> tuple[Float[Array, "4"], Float[Array, "5"]]:
        state = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05) + jnp.array([0.0, 0.0, jnp.pi, 0.0])
        return state, _observe(state)

    def step(self, state: Float[Array, "4"], action: Action, key: PRNGKeyArray) -> tuple[Float[Array, "4"], Step]:
        share = jnp.clip(fit_action(self.action_space, action)[0], -1.0, 1.0)
        for _ in range(self.substeps):
            state = state + self.dt * self.physics.rate(state, self.physics.force * share)
        stopped = jnp.abs(state[0]) >= self.max_position
        position = jnp.clip(state[0], -self.max_position, self.max_position)
        state = jnp.where(stopped, jnp.stack([position, 0.0, state[2], state[3]]), state)
        reward = jnp.where(stopped, 0.0, (1 + jnp.cos(state[2])) / 2) - 0.001 * share**2
        return state, Step(_observe(state), reward, jnp.array(False), jnp.array(False))


def _observe(state: Float[Array, "4"]) -> Float[Array, "5"]:
    position, velocity, angle, spin = state
    return jnp.stack([position, velocity, jnp.cos(angle), jnp.sin(angle), spin])
