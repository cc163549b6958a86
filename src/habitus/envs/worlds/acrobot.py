"""Swing the tip of a two-link arm above a line by a torque at the elbow."""

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


class Acrobot(Env):
    """Gymnasium's `Acrobot-v1`: state (angle 1, angle 2, their velocities), 0 hanging down.

    Observation: cosine and sine of each angle, then the velocities. Actions: torque −1, 0 or 1 [N m].
    Reward: −1 a step, 0 for the step that gets there. Terminates when the tip is a link above the axle.
    """

    gravity: float = 9.8
    """[m/s²]"""
    length: float = 1.0
    """of the first link [m]"""
    centre_1: float = 0.5
    """from the joint to the centre of mass of the first link [m]"""
    centre_2: float = 0.5
    """the same of the second link [m]"""
    mass_1: float = 1.0
    """of the first link [kg]"""
    mass_2: float = 1.0
    """of the second link [kg]"""
    inertia: float = 1.0
    """moment of each link [kg m²]"""
    torque: float = 1.0
    """size of the torque [N m]"""
    dt: float = 0.2
    """time step [s], one step of Runge-Kutta's fourth-order method"""
    max_speed_1: float = eqx.field(default=4 * np.pi, static=True)
    """bound of the first velocity [rad/s]"""
    max_speed_2: float = eqx.field(default=9 * np.pi, static=True)
    """bound of the second velocity [rad/s]"""

    @property
    def observation_space(self) -> spaces.Box:
        high = np.array([1.0, 1.0, 1.0, 1.0, self.max_speed_1, self.max_speed_2], np.float32)
        return spaces.Box(-high, high)

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(3)

    def reset(self, key: PRNGKeyArray) -> tuple[Float[Array, "4"], Float[Array, "6"]]:
        state = jax.random.uniform(key, (4,), minval=-0.1, maxval=0.1)
        return state, _observe(state)

    def step(self, state: Float[Array, "4"], action: Action, key: PRNGKeyArray) -> tuple[Float[Array, "4"], Step]:
        torque = (fit_action(self.action_space, action) - 1) * self.torque
        k1 = self.rate(state, torque)
        k2 = self.rate(state + self.dt / 2 * k1, torque)
        k3 = self.rate(state + self.dt / 2 * k2, torque)
        k4 = self.rate(state + self.dt * k3, torque)
        state = state + self.dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

        angles = (state[:2] + jnp.pi) % (2 * jnp.pi) - jnp.pi
        limit = jnp.array([self.max_speed_1, self.max_speed_2])
        state = jnp.concatenate([angles, jnp.clip(state[2:], -limit, limit)])
        up = -jnp.cos(angles[0]) - jnp.cos(angles[0] + angles[1]) > 1.0
        return state, Step(_observe(state), up.astype(jnp.float32) - 1, up, jnp.array(False), {"success": up})

    def rate(self, state: Float[Array, "4"], torque: Float[Array, ""]) -> Float[Array, "4"]:
        """Time derivative of the state: the equations of Sutton and Barto's book, section 11.3 of edition 1."""
        angle_1, angle_2, speed_1, speed_2 = state
        m1, m2, l1, c1, c2 = self.mass_1, self.mass_2, self.length, self.centre_1, self.centre_2
        cos, sin = jnp.cos(angle_2), jnp.sin(angle_2)
        d1 = m1 * c1**2 + m2 * (l1**2 + c2**2 + 2 * l1 * c2 * cos) + 2 * self.inertia
        d2 = m2 * (c2**2 + l1 * c2 * cos) + self.inertia
        phi2 = m2 * c2 * self.gravity * jnp.sin(angle_1 + angle_2)
        phi1 = (
            -m2 * l1 * c2 * sin * speed_2 * (speed_2 + 2 * speed_1)
            + (m1 * c1 + m2 * l1) * self.gravity * jnp.sin(angle_1)
            + phi2
        )
        acc_2 = (torque + d2 / d1 * phi1 - m2 * l1 * c2 * speed_1**2 * sin - phi2) / (
            m2 * c2**2 + self.inertia - d2**2 / d1
        )
        acc_1 = -(d2 * acc_2 + phi1) / d1
        return jnp.stack([speed_1, speed_2, acc_1, acc_2])


def _observe(state: Float[Array, "4"]) -> Float[Array, "6"]:
    cos, sin = jnp.cos(state[:2]), jnp.sin(state[:2])
    return jnp.stack([cos[0], sin[0], cos[1], sin[1], state[2], state[3]])
