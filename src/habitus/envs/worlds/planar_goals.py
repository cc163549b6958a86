"""`PlanarPick` with a goal: each object has a target of its own, and somebody has to say which."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from habitus.core.experience import Action, Step
from habitus.core.protocols import Env
from habitus.envs.worlds.planar_pick import HALF, TARGETS, PickState, PlanarPick


class GoalState(eqx.Module):
    """Where everything is, and where the objects are wanted."""

    plane: PickState
    goal: Float[Array, "2 2"]


class PlanarGoals(Env):
    """Carry each of two objects to the target that is asked for: the first to the left one, or the other way round.

    Observation, a Dict with the names of Gymnasium-Robotics: `observation` (17, of `PlanarPick`), `achieved_goal` (4,
    the positions of the objects) and `desired_goal` (4, those wanted: one target each, drawn at the start).
    Actions are those of `PlanarPick`. An episode ends with reward 1, and `info["success"]`, once both objects lie where
    they are wanted and none is held; every other reward is 0.
    """

    speed: float = 0.04
    """greatest move of a step in each coordinate"""
    reach: float = 0.05
    """how near is near enough, to grasp and to have arrived"""
    limit: int = eqx.field(default=120, static=True)
    """steps of an episode in `make`"""
    endless: bool = eqx.field(default=False, static=True)
    """whether it goes on when the goal is reached: for play"""

    def __check_init__(self) -> None:
        PlanarPick(self.speed, self.reach, self.limit)  # which refuses what makes no sense

    @property
    def plane(self) -> PlanarPick:
        """The world without goals."""
        usual = PlanarPick(limit=self.limit)
        return eqx.tree_at(lambda plane: (plane.speed, plane.reach), usual, (self.speed, self.reach))

    @property
    def observation_space(self) -> spaces.Dict:
        place = spaces.Box(-HALF, HALF, (4,), np.float32)
        whole = self.plane.observation_space
        return spaces.Dict({"achieved_goal": place, "desired_goal": place, "observation": whole})

    @property
    def action_space(self) -> spaces.Box:
        return self.plane.action_space

    def reset(self, key: PRNGKeyArray) -> tuple[GoalState, dict[str, Array]]:
        plane_key, goal_key = jax.random.split(key)
        targets = jnp.asarray(TARGETS)
        goal = jnp.where(jax.random.bernoulli(goal_key), targets, targets[::-1])
        state = GoalState(self.plane.reset(plane_key)[0], goal)
        return state, self.observe(state)

    def observe(self, state: GoalState) -> dict[str, Array]:
        """What a state looks like."""
        return {
            "achieved_goal": state.plane.objects.ravel(),
            "desired_goal": state.goal.ravel(),
            "observation": self.plane.observe(state.plane),
        }

    def step(self, state: GoalState, action: Action, key: PRNGKeyArray) -> tuple[GoalState, Step]:
        plane, _ = self.plane.step(state.plane, action, key)
        state = GoalState(plane, state.goal)
        success = self.as_asked(state).all()
        ended = success & (not self.endless)
        info: dict[str, Any] = {"success": success}
        return state, Step(self.observe(state), success.astype(jnp.float32), ended, jnp.array(False), info)

    def as_asked(self, state: GoalState) -> Bool[Array, "2"]:
        """Which objects lie where they are wanted, and are not held."""
        near = jnp.linalg.norm(state.plane.objects - state.goal, axis=1) <= self.reach
        return near & (state.plane.held != jnp.arange(2))

    def on_targets(self, state: GoalState) -> Bool[Array, "2"]:
        """Which objects lie on any target, and are not held."""
        offset = state.plane.objects[:, None] - jnp.asarray(TARGETS)
        return (jnp.linalg.norm(offset, axis=-1) <= self.reach).any(1) & (state.plane.held != jnp.arange(2))
