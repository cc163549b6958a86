"""Balance a pole on a cart by pushing the cart left or right."""

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


class CartPole(Env):
    """Gymnasium's `CartPole-v1`: state and observation (position, velocity, angle, angular velocity).

    Actions: 0 pushes left, 1 right. Reward: 1 a step. Terminates when the cart leaves the track or
    the pole falls.
    """

    gravity: float = 9.8
    """[m/s²]"""
    cart_mass: float = 1.0
    """[kg]"""
    pole_mass: float = 0.1
    """[kg]"""
    half_length: float = 0.5
    """half the length of the pole [m]"""
    force: float = 10.0
    """of a push [N]"""
    dt: float = 0.02
    """time step [s]"""
    max_position: float = eqx.field(default=2.4, static=True)
    """end of the track [m]"""
    max_angle: float = eqx.field(default=12 * np.pi / 180, static=True)
    """the pole has fallen beyond this [rad]"""

    @property
    def observation_space(self) -> spaces.Box:
        # Twice the limits, so that the observation after a fall is still inside.
        high = np.array([2 * self.max_position, np.inf, 2 * self.max_angle, np.inf], np.float32)
        return spaces.Box(-high, high)

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(2)

    def reset(self, key: PRNGKeyArray) -> tuple[Float[Array, "4"], Float[Array, "4"]]:
        state = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
        return state, state

    def rate(self, state: Float[Array, "4"], force: Float[Array, ""] | float) -> Float[Array, "4"]:
        """Time derivative of the state under a force on the cart [N].

        Florian (2007), Correct equations for the dynamics of the cart-pole system, (23) and (24), no friction.
        """
        _, x_dot, theta, theta_dot = state
        cos, sin = jnp.cos(theta), jnp.sin(theta)
        mass, moment = self.cart_mass + self.pole_mass, self.pole_mass * self.half_length
        push = (force + moment * theta_dot**2 * sin) / mass
        theta_acc = (self.gravity * sin - cos * push) / (self.half_length * (4 / 3 - self.pole_mass * cos**2 / mass))
        return jnp.stack([x_dot, push - moment * theta_acc * cos / mass, theta_dot, theta_acc])

    def step(self, state: Float[Array, "4"], action: Action, key: PRNGKeyArray) -> tuple[Float[Array, "4"], Step]:
        force = jnp.where(fit_action(self.action_space, action) == 1, self.force, -self.force)
        state = state + self.dt * self.rate(state, force)
        fallen = (jnp.abs(state[0]) > self.max_position) | (jnp.abs(state[2]) > self.max_angle)
        return state, Step(state, jnp.ones(()), fallen, jnp.array(False))
