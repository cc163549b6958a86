"""Stepping through the ends of episodes."""

from __future__ import annotations

import equinox.internal as eqxi
import jax
from jaxtyping import PRNGKeyArray

from habitus.core.experience import Action, Obs, Step
from habitus.core.protocols import Env, EnvState
from habitus.core.trees import select


def step_and_reset(env: Env, state: EnvState, action: Action, key: PRNGKeyArray) -> tuple[EnvState, Step, Obs]:
    """One step, and a fresh start if the episode ends with it.

    Written for one copy. Under `jax.vmap`, first states are drawn only in steps in which some copy
    needs one: drawing them takes several times as long as a step of a small world.

    Returns:
        the state to go on from, the step (whose `obs` is the true successor, also at the end of an
        episode), and the observation to act on next.
    """
    # fold_in and not split: XLA drops the key of a step that draws nothing, where half a split stays.
    state, step = env.step(state, action, jax.random.fold_in(key, 0))
    done = step.terminated | step.truncated

    def restart() -> tuple[EnvState, Obs]:
        first = env.reset(jax.random.fold_in(key, 1))
        return select(done, first, (state, step.obs))

    state, obs = jax.lax.cond(eqxi.unvmap_any(done), restart, lambda: (state, step.obs))
    return state, step, obs
