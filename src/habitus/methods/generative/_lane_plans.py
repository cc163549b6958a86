"""Data sets of plans: what was driven in each scene of a log, and many more ways by trajectory optimisation.

A row is one decision: its observation is a case (scene, manoeuvre, parameters), its action a whole plan, its reward the
robustness of the plan. What breaks its rules has a reward below 0 and stays in the set, as a learner may want to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from habitus.core.errors import DataError, SpaceMismatch
from habitus.core.protocols import require
from habitus.data.dataset import Dataset
from habitus.envs.worlds.lane_scene import LIMITS, SCENE, LaneScene, observe, scene_of
from habitus.methods.generative._lane_rules import (
    MANOEUVRES,
    THETA,
    Case,
    calibrated,
    loosened,
    possible,
    robustness,
)  # fmt: skip

CHUNK = 32  # cases that are optimised at once; so many always, so that every data set has the same program


class Search(eqx.Module):
    """How a plan is optimised to keep its rules: `relu(margin - rho) + 10 mean relu(U^2 - 1)`, by Adam.

    Plans are shares of their limits here as well: in the units of the controls, as in the authors' code, one rate is
    too much for turning and too little for speed.
    """

    learning_rate: float = 0.02  # of Adam
    iterations: int = eqx.field(static=True, default=300)  # authors' code: 2000
    margin: float = 0.01  # robustness beyond which a plan is left as it is; authors' code
    temperature: float = 0.05  # of the smooth robustness, 1 / tau; authors' code: 0.01

    def __check_init__(self) -> None:
        require(self.learning_rate > 0, f"learning_rate must be above 0, but is {self.learning_rate}.")
        require(self.iterations >= 1, f"iterations must be 1 or more, but is {self.iterations}.")
        require(self.temperature > 0, f"temperature must be above 0, but is {self.temperature}.")

    def start(self, key: PRNGKeyArray, horizon: int) -> Float[Array, "time 2"]:
        """Random controls, of little turning."""
        return jnp.array([0.1, 1.0]) * jax.random.uniform(key, (horizon, 2), minval=-1.0)

    def __call__(self, case: Case, plan: Float[Array, "time 2"], world: LaneScene) -> Float[Array, "time 2"]:
        """The plan that this one becomes, within its limits."""
        adam = optax.adam(self.learning_rate)

        def loss(plan: Array) -> Array:
            rho = robustness(case, plan, world, self.temperature)
            return jax.nn.relu(self.margin - rho) + 10 * jax.nn.relu(plan**2 - 1).mean(0).sum()

        def descend(now: tuple[Array, optax.OptState], _: None) -> tuple[tuple[Array, optax.OptState], None]:
            change, opt = adam.update(jax.grad(loss)(now[0]), now[1])
            return (now[0] + change, opt), None

        (found, _), _ = jax.lax.scan(descend, (plan, adam.init(plan)), length=self.iterations)
        return jnp.clip(found, -1.0, 1.0)


def plans_of(
    cases: Float[np.ndarray, "rows case"],
    plans: Float[np.ndarray, "rows columns"],
    rho: Float[np.ndarray, "rows"],
    size: int = 1,
) -> Dataset:
    """A data set of plans, from cases as vectors and from plans as shares of the limits.

    Args:
        size: how many plans a row holds, one after the other.
    """
    obs = {
        "manoeuvre": cases[:, :MANOEUVRES].argmax(1),
        "scene": cases[:, MANOEUVRES : MANOEUVRES + SCENE],
        "theta": cases[:, -len(THETA) :],
    }
    bound = np.tile(np.asarray(LIMITS, np.float32), plans.shape[1] // 2)
    shown = {
        "manoeuvre": spaces.Discrete(MANOEUVRES),
        "scene": spaces.Box(-np.inf, np.inf, (SCENE,)),
        "theta": spaces.Box(-np.inf, np.inf, (len(THETA),)),
    }
    return Dataset.from_arrays(
        obs=obs, next_obs=obs, action=(plans * bound).astype(np.float32), reward=rho.astype(np.float32),
        terminated=np.ones(len(rho), bool), truncated=np.zeros(len(rho), bool),
        observation_space=spaces.Dict(shown), action_space=spaces.Box(-bound, bound),
        meta={"task": "lane-scene", "split": "plans", "horizon": 1, "plans": size}, validate=False,
    )  # fmt: skip


def logged(log: Dataset, world: LaneScene, horizon: int) -> Dataset:
    """The plan that each episode of a log begins with, and the rules that it keeps: one row an episode.

    Raises:
        SpaceMismatch: if the log is not of `LaneScene`.
        DataError: if no episode is as long as the horizon.
    """
    if log.observation_space.shape != (SCENE,) or log.spec.action_shape != (2,):
        raise SpaceMismatch(
            f"the rules are about a scene of lane-scene, which is {SCENE} numbers, driven by 2, but {log.name} has "
            f"observations {log.observation_space} and actions {log.action_space}."
        )
    starts = np.asarray(log.starts)[log.lengths >= horizon]
    if len(starts) == 0:
        raise DataError(f"no episode of {log.name} has {horizon} steps; record longer ones, or shorten the horizon.")
    rows = log.canonical()
    obs = jnp.asarray(np.asarray(rows.obs)[starts])
    plans = jnp.asarray(np.clip(np.asarray(rows.action)[starts[:, None] + np.arange(horizon)], -1, 1))
    cases, rho = _calibrated(obs, plans, world)
    return plans_of(np.asarray(cases), np.asarray(plans).reshape(len(starts), -1), np.asarray(rho))


@eqx.filter_jit
def _calibrated(obs: Array, plans: Array, world: LaneScene) -> tuple[Array, Array]:
    def one(obs: Array, plan: Array) -> tuple[Array, Array]:
        case = calibrated(scene_of(obs), plan, world)
        return case.vector, robustness(case, plan, world)

    return jax.vmap(one)(obs, plans)


def commands(
    plans: Dataset, world: LaneScene, key: PRNGKeyArray
) -> tuple[Float[np.ndarray, "rows 3 case"], Bool[np.ndarray, "rows 3"]]:
    """Of each row of `logged` the cases of all three manoeuvres, and which of them lead to a lane that there is."""
    found = _commands(jnp.asarray(np.asarray(plans.canonical().obs)), world, key)
    return np.asarray(found[0]), np.asarray(found[1])


@eqx.filter_jit
def _commands(obs: Array, world: LaneScene, key: PRNGKeyArray) -> tuple[Array, Array]:
    def one(vector: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        case = Case.of(vector)
        theta = loosened(case, key)
        code, scene = jnp.eye(MANOEUVRES), jnp.broadcast_to(observe(case.scene), (MANOEUVRES, SCENE))
        return jnp.concatenate([code, scene, theta], 1), possible(case.scene, world)

    return jax.vmap(one)(obs, jax.random.split(key, len(obs)))


def augmented(
    plans: Dataset,
    world: LaneScene,
    key: PRNGKeyArray,
    randoms: int = 32,
    search: Search = Search(),
    progress: Callable[[int, float], None] | None = None,
) -> Dataset:
    """Many plans for each row of `logged`: for every manoeuvre that is possible `randoms`, from random controls.

    Args:
        progress: told the cases done and the share of their plans that keep the rules.
    """
    command_key, start_key = jax.random.split(key)
    cases, there = commands(plans, world, command_key)
    horizon = plans.action.shape[1] // 2
    found, rho = optimise(cases[there], world, start_key, horizon, randoms, search, progress)
    repeated = np.repeat(cases[there], randoms, 0)
    return plans_of(repeated, found.reshape(len(repeated), -1), rho.ravel())


def optimise(
    cases: Float[np.ndarray, "rows case"],
    world: LaneScene,
    key: PRNGKeyArray,
    horizon: int,
    randoms: int,
    search: Search,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[Float[np.ndarray, "rows randoms time 2"], Float[np.ndarray, "rows randoms"]]:
    """Plans for cases, as shares of the limits, and their exact robustness."""
    require(randoms >= 1, f"randoms must be 1 or more, but is {randoms}.")
    parts = []
    for first, chunk in chunks(cases, CHUNK):
        part = _optimise(chunk, world, jax.random.fold_in(key, first), horizon, randoms, search)
        parts.append([np.asarray(x)[: len(cases) - first] for x in part])
        if progress is not None:
            progress(min(first + CHUNK, len(cases)), float((parts[-1][1] > 0).mean()))
    found, rho = (np.concatenate(x) for x in zip(*parts, strict=True))
    return found, rho


def chunks(cases: Float[np.ndarray, "rows case"], size: int) -> Iterator[tuple[int, Float[Array, "size case"]]]:
    """The cases `size` at a time, each with the index of its first; the last chunk is filled up with the last case."""
    for first in range(0, len(cases), size):
        yield first, jnp.asarray(cases[np.minimum(np.arange(first, first + size), len(cases) - 1)])


@eqx.filter_jit
def _optimise(
    cases: Array, world: LaneScene, key: PRNGKeyArray, horizon: int, randoms: int, search: Search
) -> tuple[Array, Array]:
    def one(given: tuple[Array, PRNGKeyArray]) -> tuple[Array, Array]:
        case = Case.of(given[0])

        def way(key: PRNGKeyArray) -> tuple[Array, Array]:
            plan = search(case, search.start(key, horizon), world)
            return plan, robustness(case, plan, world)

        return jax.vmap(way)(jax.random.split(given[1], randoms))

    return jax.lax.map(one, (cases, jax.random.split(key, len(cases))))
