"""What the claims in `planar-pick` share: the log, success, and how many network calls an action takes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from habitus.claims.arms import acted
from habitus.core.policy import Deployed
from habitus.core.protocols import Env
from habitus.data.behaviours import PickAndPlace
from habitus.data.dataset import Dataset
from habitus.envs.noise import NoisyActions
from habitus.envs.registry import make
from habitus.train.logs import record_log

NOISE = (0.2, 0.2, 0.0)  # on what is executed; the log holds what the expert wanted


def world(speed: float = 0.04, limit: int = 120) -> Env:
    """`planar-pick`, with a gripper of that speed."""
    made = make("planar-pick", speed=speed, limit=limit)
    assert isinstance(made, Env)
    return made


def demonstrations(env: Env, count: int, seed: int = 0) -> Dataset:
    """Whole episodes of the expert under noise."""
    expert = PickAndPlace(speed=float(env.env.speed))  # type: ignore[attr-defined]
    log = record_log(expert, NoisyActions(env, std=jnp.asarray(NOISE)), count, seed=seed)
    whole = np.flatnonzero(np.asarray(log.terminated)[log.ends])
    return log.subset(episodes=whole[:count])


def successes(
    policies: Sequence[Deployed], env: Env, episodes: int, seeds: Sequence[int]
) -> Float[np.ndarray, "seeds"]:
    """The success of each policy, each in episodes of its own."""
    found = acted(policies, env, episodes, seeds)
    return np.array([one.success.mean() for one in found])  # type: ignore[union-attr]


def calls_per_action(policy: Deployed, env: Env, steps: int = 48) -> float:
    """Network calls for each executed action once an episode is under way: those of its first plan are not counted."""
    _, obs = env.reset(jax.random.key(0))

    def act(carry: object, key: jax.Array) -> tuple[object, jax.Array]:
        after = policy(obs, carry, key)[1]
        return after, policy.report(after)["calls"]

    calls = np.asarray(
        jax.jit(lambda: jax.lax.scan(act, policy.init(), jax.random.split(jax.random.key(1), 2 * steps)))()[1]
    )
    return float(calls[-1] - calls[steps - 1]) / steps
