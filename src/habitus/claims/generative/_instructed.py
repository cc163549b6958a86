"""What Hume's claim needs of `planar-pick-instructed`: a slip, a log of mixed quality, and the true worth of a plan."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.experience import Action, Obs, Step
from habitus.core.protocols import Env
from habitus.core.trees import select
from habitus.data.dataset import Dataset
from habitus.data.errands import FollowInstruction
from habitus.envs.noise import NoisyActions
from habitus.envs.registry import make
from habitus.envs.worlds.planar_pick import HALF, InstructedPick, PickState
from habitus.envs.wrappers import Wrapper, innermost
from habitus.execution.planner import Plan, Planner, Start
from habitus.nets.normalise import Standardiser
from habitus.train.logs import record_log

NOISE = (0.2, 0.2, 0.0)  # on what is executed; the log holds what the behaviour wanted
SLIP = 0.06  # how far a slipping object lies from where it was grasped; the gripper reaches 0.05


class Slippery(eqx.Module):
    """A state of the world inside, and whether a slip is still ahead."""

    inner: PickState
    ahead: Bool[Array, ""]


class Slip(Wrapper):
    """`InstructedPick` in which the first grasp fails in a share of episodes: the object lies beside the gripper."""

    share: float | Float[Array, ""] = 1.0

    def reset(self, key: PRNGKeyArray) -> tuple[Slippery, Array]:
        reset_key, own_key = jax.random.split(key)
        state, obs = self.env.reset(reset_key)
        return Slippery(state, jax.random.bernoulli(own_key, self.share)), obs

    def inner(self, state: Slippery) -> PickState:
        return state.inner

    def step(self, state: Slippery, action: Action, key: PRNGKeyArray) -> tuple[Slippery, Step]:
        step_key, angle_key = jax.random.split(key)
        inner, step = self.env.step(state.inner, action, step_key)
        now = state.ahead & (inner.held >= 0)
        angle = jax.random.uniform(angle_key, maxval=2 * jnp.pi)
        away = SLIP * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        moved = jnp.where((jnp.arange(2) == inner.held)[:, None], inner.objects + away, inner.objects)
        slipped = dataclasses.replace(
            inner, objects=jnp.clip(moved, -HALF, HALF), held=jnp.full((), -1, inner.held.dtype)
        )
        after, world = select(now, slipped, inner), innermost(self.env)
        shown = jnp.where(now, world.observe(after), step.obs)
        return Slippery(after, state.ahead & ~now), dataclasses.replace(step, obs=shown)


def world(limit: int, slips: float = 0.0) -> Env:
    """The world, in which a share of the first grasps fails."""
    made: Any = make("planar-pick-instructed", limit=limit)
    return dataclasses.replace(made, env=Slip(made.env, slips))


def mixed(env: Env, count: int, flawed: float, seed: int = 0) -> Dataset:
    """The first episodes of `count` copies: a behaviour that has a flaw in some of them, under noise."""
    log = record_log(FollowInstruction(flawed), NoisyActions(env, std=jnp.asarray(NOISE)), count, seed=seed)
    return log.subset(episodes=np.flatnonzero(log.starts % (env.horizon or 1) == 0))


def succeeded(log: Dataset) -> Bool[np.ndarray, "episodes"]:
    """Which episodes end with success."""
    return np.asarray(log.terminated)[log.ends]


class AnyPlan(Planner):
    """One of the `n` candidates of a planner, at random: what `BestPlan` would do without a scorer."""

    planner: Planner
    n: int = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, int]:
        return self.planner.shape

    def blank(self) -> Obs:
        return self.planner.blank()

    def __call__(self, window: Obs, key: PRNGKeyArray, start: Start | None = None) -> Plan:
        which_key, draw_key = jax.random.split(key)
        return self.planner.candidate(jax.random.randint(which_key, (), 0, self.n), self.n)(window, draw_key, start)


class Oracle(eqx.Module):
    """How soon an episode ends well in which `rows` of the plan are executed, and then the expert acts.

    Minus the number of steps, `-most` where it does not; in the world itself, without noise and slips.
    """

    world: InstructedPick
    normaliser: Standardiser
    now: int = eqx.field(static=True)
    rows: int = eqx.field(static=True)
    most: int = eqx.field(static=True)

    def __call__(self, window: Float[Array, "observed 21"], chunk: Float[Array, "rows 3"]) -> Float[Array, ""]:
        expert, key = FollowInstruction(), jax.random.key(0)
        first = self.world.state_of(self.normaliser.undo(window[-1]))

        def one(at: tuple[Any, Any, Array], tick: Int[Array, ""]) -> tuple[tuple[Any, Any, Array], Array]:
            state, carry, done = at
            own, carry = expert(self.world.observe(state), carry, key)
            row = chunk[jnp.minimum(self.now + tick, chunk.shape[0] - 1)]
            state, step = self.world.step(state, jnp.where(tick < self.rows, row, own), key)
            done = done | step.terminated
            return (state, carry, done), done

        _, done = jax.lax.scan(one, (first, expert.init(), jnp.zeros((), bool)), jnp.arange(self.most))
        return -(~done).sum().astype(jnp.float32)
