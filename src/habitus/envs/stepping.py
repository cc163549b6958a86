"""Stepping through the ends of episodes."""

from __future__ import annotations

import jax
from jaxtyping import PRNGKeyArray

from habitus.core.experience import Action, Obs, Step
from habitus.core.protocols import Env, EnvState
from habitus.core.trees import select


def step_and_reset(env: Env, state: EnvState, action: Action, key: PRNGKeyArray) -> tuple[EnvState, Step, Obs]:
    """One step, and a fresh start if the episode ends with it.

    Returns:
        the state to go on from, the step (whose `obs` is the true successor, also at the end of an
        episode), and the observation to act on next.
    """
    step_key, reset_key = jax.random.split(key)
    state, step = env.step(state, action, step_key)
    first_state, first_obs = env.reset(reset_key)
    done = step.terminated | step.truncated
    return select(done, first_state, state), step, select(done, first_obs, step.obs)
