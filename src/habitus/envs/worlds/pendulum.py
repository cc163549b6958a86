"""Swing a pendulum up and hold it there, with a torque too weak to lift it at once."""

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


class Pendulum(Env):
    """Gymnasium's `Pendulum-v1`: state (angle from upright [rad], angular velocity [rad/s]).

    Observation: (cos, sin, velocity). Action: torque [N m]. Reward: −(angle² + .1 velocity² + .001 torque²),
    with the angle in [−π, π). Episodes never terminate.
    """

    gravity: float = 10.0
    """[m/s²]"""
    mass: float = 1.0
    """of the rod [kg]"""
    length: float = 1.0
    """of the rod [m]"""
    dt: float = 0.05
    """time step [s]"""
    max_speed: float = eqx.field(default=8.0, static=True)
    """bound of the angular velocity [rad/s]"""
    max_torque: float = eqx.field(default=2.0, static=True)
    """bound of the torque [N m]"""

    @property
    def observation_space(self) -> spaces.Box:
        high = np.array([1.0, 1.0, self.max_speed], np.float32)
        return spaces.Box(-high, high)

    @property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-self.max_torque, self.max_torque, (1,))

    def reset(self, key: PRNGKeyArray) -> tuple[Float[Array, "2"], Float[Array, "3"]]:
        high = jnp.array([jnp.pi, 1.0])
        state = jax.random.uniform(key, (2,), minval=-high, maxval=high)
        return state, _observe(state)

    def step(self, state: Float[Array, "2"], action: Action, key: PRNGKeyArray) -> tuple[Float[Array, "2"], Step]:
        angle, speed = state
        torque = jnp.clip(fit_action(self.action_space, action)[0], -self.max_torque, self.max_torque)
        off_upright = (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
        cost = off_upright**2 + 0.1 * speed**2 + 0.001 * torque**2

        pull = 3 * self.gravity / (2 * self.length) * jnp.sin(angle)
        speed = speed + (pull + 3 / (self.mass * self.length**2) * torque) * self.dt
        speed = jnp.clip(speed, -self.max_speed, self.max_speed)
        state = jnp.stack([angle + speed * self.dt, speed])
        return state, Step(_observe(state), -cost, jnp.array(False), jnp.array(False))


def _observe(state: Float[Array, "2"]) -> Float[Array, "3"]:
    return jnp.stack([jnp.cos(state[0]), jnp.sin(state[0]), state[1]])
