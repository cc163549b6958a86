"""What the claims in `planar-wipe` share: the log, and worlds that stay as they are or do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.claims.arms import acted
from habitus.core.experience import Action, Step
from habitus.core.policy import Deployed
from habitus.core.protocols import Env, EnvState
from habitus.data.behaviours import Wipe
from habitus.data.dataset import Dataset
from habitus.data.parts import narrowed
from habitus.envs.noise import NoisyActions
from habitus.envs.registry import make
from habitus.envs.worlds.planar_wipe import FORCE, PlanarWipe
from habitus.envs.wrappers import Wrapper
from habitus.train.logs import record_log

NOISE = 0.1  # on what is executed; the log holds what the expert wanted


def world(still: bool = False, told: bool = False) -> Env:
    """`planar-wipe`; one that is still neither jumps nor drifts. Both are one program."""
    moved = (jnp.asarray(0.0 if still else x) for x in (PlanarWipe.jump, PlanarWipe.drift))
    made: Any = make("planar-wipe", told=told)
    return eqx.tree_at(lambda w: (w.env.jump, w.env.drift), made, tuple(moved))


def demonstrations(count: int, seed: int = 0) -> Dataset:
    """Whole episodes of the expert under noise, as learners see them: without the slope."""
    told = record_log(Wipe(), NoisyActions(world(told=True), std=NOISE), count, seed=seed)
    log = narrowed(told, FORCE + 1)
    whole = np.asarray(log.terminated)[log.ends] | (log.lengths == world().horizon)
    return log.subset(episodes=np.flatnonzero(whole)[:count])


class WithoutForce(Wrapper):
    """The world as it looks: observations without the force."""

    @property
    def observation_space(self) -> spaces.Box:
        whole = self.env.observation_space
        assert isinstance(whole, spaces.Box)
        return spaces.Box(whole.low[:FORCE], whole.high[:FORCE])

    def reset(self, key: PRNGKeyArray) -> tuple[EnvState, Array]:
        state, obs = self.env.reset(key)
        return state, obs[:FORCE]

    def step(self, state: EnvState, action: Action, key: PRNGKeyArray) -> tuple[EnvState, Step]:
        state, step = self.env.step(state, action, key)
        return state, eqx.tree_at(lambda s: s.obs, step, step.obs[:FORCE])


def scores(policies: Sequence[Deployed], env: Env, episodes: int, seeds: Sequence[int]) -> Float[np.ndarray, "seeds"]:
    """The share of the board that each policy wipes, each in episodes of its own."""
    return np.array([one.returns.mean() for one in acted(policies, env, episodes, seeds)])
