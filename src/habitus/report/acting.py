"""How a saved policy acts: how long an action takes, how old its plans are, and how a plan comes out of noise."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PRNGKeyArray

from habitus.core.errors import HabitusError
from habitus.core.experience import Obs
from habitus.core.policy import Deployed
from habitus.core.protocols import Env
from habitus.envs.adapters.gymnasium import GymnasiumEnv
from habitus.envs.registry import make
from habitus.execution.denoising import Denoising
from habitus.execution.horizon import Executor, Underway
from habitus.report.film import native

STEPS = 200  # of an episode, at most
DRAWS = 16  # plans that are denoised side by side
MOMENTS = 6  # at which they are shown

World = Callable[[np.ndarray], tuple[Obs, float, bool]]


@dataclasses.dataclass(frozen=True)
class Acting:
    """What was seen of a policy in the first steps of an episode.

    Attributes:
        first: the observation that it began with.
        seconds: that each action took, from NumPy to NumPy; without the first two, which may have been compiled.
        staleness: of the plan behind each action, in steps; None for a policy that does not say.
    """

    first: Obs
    seconds: Float[np.ndarray, " actions"]
    staleness: Float[np.ndarray, " steps"] | None

    @property
    def planned(self) -> bool:
        """Whether plans grew old before they were replaced."""
        return self.staleness is not None and bool(self.staleness.max() > 0)


def acting(policy: Deployed, world: str, seed: int) -> Acting:
    """Acts for up to `STEPS` steps, as a user would: one observation at a time.

    Args:
        world: a built-in name, or a Gymnasium id.
        seed: of the episode.

    Raises:
        HabitusError: if the world cannot be made, or fails.
        SpaceMismatch: if the policy is for another world.
    """
    env = make(world)
    policy.spec.check_same(env.spec, world)
    try:
        return _watched(policy, env, seed)
    except HabitusError:
        raise
    except Exception as error:  # worlds of others fail in their own ways
        raise HabitusError(f"{world} could not be acted in ({type(error).__name__}: {error})") from error
    finally:
        if isinstance(env, GymnasiumEnv):
            env.close()


def _watched(policy: Deployed, env: Any, seed: int) -> Acting:
    obs, step = _built_in(env, seed) if isinstance(env, Env) else _in_gymnasium(env, seed)
    session, first, seconds, ages = policy.session(seed), obs, [], []
    for _ in range(STEPS):
        begun = time.perf_counter()
        action = session.act(obs)
        seconds.append(time.perf_counter() - begun)
        ages.append(session.report().get("staleness"))
        obs, reward, ended = step(action)
        session.reward(reward)
        if ended:
            break
    known = np.array([age for age in ages if age is not None], float)
    return Acting(first, np.array(seconds[2:] or seconds), known if known.size else None)


def _built_in(env: Env, seed: int) -> tuple[Obs, World]:
    step, key = eqx.filter_jit(env.step), jax.random.key(seed)
    state, obs = eqx.filter_jit(env.reset)(key)
    at = {"state": state, "time": 0}

    def forward(action: np.ndarray) -> tuple[Obs, float, bool]:
        at["time"] += 1
        at["state"], out = step(at["state"], jnp.asarray(action), jax.random.fold_in(key, at["time"]))
        return out.obs, float(out.reward), bool(out.terminated | out.truncated)

    return obs, forward


def _in_gymnasium(env: Any, seed: int) -> tuple[Obs, World]:
    assert isinstance(env, GymnasiumEnv)
    copy = env.copies[0]
    obs, _ = copy.reset(seed=seed)

    def forward(action: np.ndarray) -> tuple[Obs, float, bool]:
        obs, reward, terminated, truncated, _ = copy.step(native(copy.action_space, action))
        return obs, float(reward), bool(terminated or truncated)

    return obs, forward


@dataclasses.dataclass(frozen=True)
class Denoised:
    """Plans on their way out of noise.

    Attributes:
        calls: network calls so far, at each moment.
        chunks: the plans then, canonical actions.
    """

    calls: tuple[int, ...]
    chunks: Float[np.ndarray, "moments draws rows columns"]


def denoising(policy: Deployed, obs: Obs, seed: int) -> Denoised | None:
    """Several plans for one observation, from noise to what would be executed; None if it does not denoise chunks.

    Each draw has noise of its own and is the same one at every moment.
    """
    _, carry = policy(jax.tree.map(jnp.asarray, obs), policy.init(), jax.random.key(seed))
    executors, memories = _inside(policy, Executor), _inside(carry, Underway)
    if len(executors) != 1 or len(memories) != 1 or not isinstance(executors[0].planner, Denoising):
        return None
    planner, window = executors[0].planner, memories[0].window
    keys = jax.random.split(jax.random.key(seed), DRAWS)
    chunks = np.asarray(_trails(planner, window, keys))  # [draws, moments, rows, columns]
    calls = np.unique(np.linspace(0, chunks.shape[1] - 1, MOMENTS).round().astype(int))
    return Denoised(tuple(calls.tolist()), chunks[:, calls].swapaxes(0, 1))


@eqx.filter_jit
def _trails(planner: Denoising, window: Obs, keys: Key[Array, "draws"]) -> Float[Array, "draws moments rows columns"]:
    def one(key: PRNGKeyArray) -> Array:
        return planner.trail(window, key, planner.whole(jax.random.normal(key, planner.shape)))

    return jax.vmap(one)(keys)


def _inside(tree: Any, kind: type) -> list[Any]:
    """The outermost parts of a kind."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind))
    return [x for x in leaves if isinstance(x, kind)]
