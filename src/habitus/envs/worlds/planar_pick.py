"""Pick two objects up and put them on two targets, in the plane, past an obstacle: many ways are right."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.experience import Action, Step
from habitus.core.protocols import Env, require
from habitus.envs.actions import fit_action

START = (0.0, -0.4)
OBJECTS = ((-0.2, -0.15), (0.2, -0.15))
TARGETS = ((-0.25, 0.35), (0.25, 0.35))
OBSTACLE, RADIUS = (0.0, 0.1), 0.1
HALF = 0.5  # the plane is [-HALF, HALF]^2
NEAR = 0.08  # scale of the relative positions in an observation


class PickState(eqx.Module):
    """Where everything is.

    Attributes:
        position: of the gripper.
        closed: whether it is closed.
        held: which object it holds, -1 for none.
        objects: their positions.
        targets: where they are to go.
    """

    position: Float[Array, "2"]
    closed: Bool[Array, ""]
    held: Int[Array, ""]
    objects: Float[Array, "2 2"]
    targets: Float[Array, "2 2"]


class PlanarPick(Env):
    """A point gripper carries two objects to two targets, either to either, around a disc in the middle.

    Action `(x, y, grip)` in [-1, 1]^3: the gripper moves by `speed (x, y)`, stays in the square and is put out of the
    disc; it is closed where `grip > 0`. Closing (from open) takes hold of the nearest object within `reach`, opening
    lets go; a held object moves along. The episode ends with reward 1, and `info["success"]`, once both objects lie
    within `reach` of different targets and none is held; every other reward is 0.

    Observation, 17 numbers: position (2), closed, which object is held (2, one-hot), objects (4), and
    `tanh(offset / 0.08)` from the gripper to the objects (4) and to the targets (4). Without the last nine a network
    closes beside the objects, as it must then tell small differences of large numbers.
    """

    speed: float = 0.04
    """greatest move of a step in each coordinate"""
    reach: float = 0.05
    """how near is near enough, to grasp and to have arrived"""
    limit: int = eqx.field(default=120, static=True)
    """steps of an episode in `make`; a slower gripper needs more"""

    def __check_init__(self) -> None:
        require(0 < self.speed <= RADIUS, f"speed must be in (0, {RADIUS}], the disc's radius, but is {self.speed}.")
        require(self.reach > 0, f"reach must be above 0, but is {self.reach}.")
        require(self.limit >= 1, f"limit must be 1 or more, but is {self.limit}.")

    @property
    def observation_space(self) -> spaces.Box:
        bound = np.array([HALF] * 2 + [1.0] * 3 + [1.0] * 12, np.float32)
        return spaces.Box(-bound, bound)

    @property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (3,))

    @property
    def switches(self) -> tuple[int, ...]:
        return (2,)

    def reset(self, key: PRNGKeyArray) -> tuple[PickState, Float[Array, "17"]]:
        state = self.arranged(key)
        return state, self.observe(state)

    def arranged(self, key: PRNGKeyArray) -> PickState:
        """Gripper and objects at random near where they begin."""
        own, theirs = jax.random.split(key)
        position = jnp.asarray(START) + jax.random.uniform(own, (2,), minval=-0.08, maxval=0.08)
        objects = jnp.asarray(OBJECTS) + jax.random.uniform(theirs, (2, 2), minval=-0.12, maxval=0.12)
        return PickState(position, jnp.array(False), jnp.full((), -1, jnp.int32), objects, jnp.asarray(TARGETS))

    def observe(self, state: PickState) -> Float[Array, "17"]:
        """What a state looks like."""
        offsets = [jnp.tanh((places - state.position) / NEAR).ravel() for places in (state.objects, state.targets)]
        held = (state.held == jnp.arange(2)).astype(jnp.float32)
        closed = state.closed[None].astype(jnp.float32)
        return jnp.concatenate([state.position, closed, held, state.objects.ravel(), *offsets])

    def step(self, state: PickState, action: Action, key: PRNGKeyArray) -> tuple[PickState, Step]:
        action = jnp.clip(fit_action(self.action_space, action), -1.0, 1.0)
        position = _outside(jnp.clip(state.position + self.speed * action[:2], -HALF, HALF))
        carried = (state.held == jnp.arange(2))[:, None]
        objects = state.objects + jnp.where(carried, position - state.position, 0.0)

        closed = action[2] > 0
        distance = jnp.linalg.norm(objects - position, axis=1)
        nearest = jnp.argmin(distance).astype(jnp.int32)
        grasped = jnp.where(distance[nearest] <= self.reach, nearest, -1)
        held = jnp.where(closed, jnp.where(state.closed, state.held, grasped), -1)

        state = dataclasses.replace(state, position=position, closed=closed, held=held, objects=objects)
        done = self.solved(state)
        return state, Step(self.observe(state), done.astype(jnp.float32), done, jnp.array(False), {"success": done})

    def solved(self, state: PickState) -> Bool[Array, ""]:
        """Whether the objects lie on different targets, and none is held."""
        there = jnp.linalg.norm(state.objects[:, None] - state.targets, axis=-1) <= self.reach
        return ((there[0, 0] & there[1, 1]) | (there[0, 1] & there[1, 0])) & (state.held < 0)


class InstructedState(PickState):
    """Where everything is, and which object is to go to which target.

    Attributes:
        instruction: index of the object, and of the target.
    """

    instruction: Int[Array, "2"]


class InstructedPick(PlanarPick):
    """`PlanarPick` with one thing to do, which an episode begins with: an object, to be put on a target.

    The episode ends with reward 1, and `info["success"]`, once that object lies within `reach` of that target and is
    not held; what becomes of the other does not matter. The observation has four numbers more: one-hot codes of the
    object (2) and of the target (2).
    """

    limit: int = eqx.field(static=True, default=80)

    @property
    def observation_space(self) -> spaces.Box:
        bound = np.array([HALF] * 2 + [1.0] * 19, np.float32)
        return spaces.Box(-bound, bound)

    def reset(self, key: PRNGKeyArray) -> tuple[InstructedState, Float[Array, "21"]]:
        place_key, own_key = jax.random.split(key)
        state = InstructedState(**vars(self.arranged(place_key)), instruction=jax.random.randint(own_key, (2,), 0, 2))
        return state, self.observe(state)

    def observe(self, state: PickState) -> Float[Array, "21"]:
        assert isinstance(state, InstructedState)
        return jnp.concatenate([super().observe(state), jax.nn.one_hot(state.instruction, 2).ravel()])

    def state_of(self, obs: Float[Array, "21"]) -> InstructedState:
        """The state that looks like this: an observation shows all there is."""
        held = jnp.where(obs[3:5].any(), jnp.argmax(obs[3:5]), -1).astype(jnp.int32)
        instruction = jnp.argmax(obs[17:].reshape(2, 2), 1).astype(jnp.int32)
        return InstructedState(
            obs[:2], obs[2] > 0.5, held, obs[5:9].reshape(2, 2), jnp.asarray(TARGETS), instruction=instruction
        )

    def solved(self, state: PickState) -> Bool[Array, ""]:
        """Whether the object of the instruction lies on its target, and is not held."""
        assert isinstance(state, InstructedState)
        thing, target = state.instruction
        return (jnp.linalg.norm(state.objects[thing] - state.targets[target]) <= self.reach) & (state.held != thing)


def _outside(position: Float[Array, "2"]) -> Float[Array, "2"]:
    """The nearest place that is not in the disc; below its centre for the centre itself."""
    offset = position - jnp.asarray(OBSTACLE)
    distance = jnp.linalg.norm(offset)
    outward = jnp.where(distance > 0, offset / jnp.maximum(distance, 1e-12), jnp.array([0.0, -1.0]))
    return jnp.where(distance < RADIUS, jnp.asarray(OBSTACLE) + RADIUS * outward, position)
