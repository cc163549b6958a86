"""Rock an underpowered car out of a valley."""

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


class MountainCarContinuous(Env):
    """Gymnasium's `MountainCarContinuous-v0`: state and observation (position, velocity).

    Action: throttle in [−1, 1]. Reward: 100 on the hill, less .1 throttle² a step. Terminates there.
    """

    power: float = 0.0015
    """velocity that full throttle adds in a step"""
    gravity: float = 0.0025
    """velocity that the steepest slope adds in a step"""
    goal_position: float = 0.45
    """where the hill is reached"""
    goal_velocity: float = 0.0
    """least velocity there"""
    min_position: float = eqx.field(default=-1.2, static=True)
    """the wall on the left, which stops the car"""
    max_position: float = eqx.field(default=0.6, static=True)
    """the end of the world on the right"""
    max_speed: float = eqx.field(default=0.07, static=True)
    """bound of the velocity"""

    @property
    def observation_space(self) -> spaces.Box:
        low = np.array([self.min_position, -self.max_speed], np.float32)
        return spaces.Box(low, np.array([self.max_position, self.max_speed], np.float32))

    @property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (1,))

    def reset(self, key: PRNGKeyArray) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
        position = jax.random.uniform(key, minval=-0.6, maxval=-0.4)
        state = jnp.stack([position, jnp.zeros(())])
        return state, state

    def step(self, state: Float[Array, "2"], action: Action, key: PRNGKeyArray) -> tuple[Float[Array, "2"], Step]:
        position, velocity = state
        throttle = fit_action(self.action_space, action)[0]
        velocity = velocity + jnp.clip(throttle, -1.0, 1.0) * self.power - self.gravity * jnp.cos(3 * position)
        velocity = jnp.clip(velocity, -self.max_speed, self.max_speed)
        position = jnp.clip(position + velocity, self.min_position, self.max_position)
        velocity = jnp.where((position <= self.min_position) & (velocity < 0), 0.0, velocity)

        state = jnp.stack([position, velocity])
        there = (position >= self.goal_position) & (velocity >= self.goal_velocity)
        # The cost is of the throttle as given, unclipped, as in Gymnasium.
        reward = jnp.where(there, 100.0, 0.0) - 0.1 * throttle**2
        return state, Step(state, reward, there, jnp.array(False), {"success": there})
