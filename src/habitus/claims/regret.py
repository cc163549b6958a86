"""Exact regret of optimistic actor-critics in finite worlds, another world for each seed."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from habitus.core.experience import Trajectory
from habitus.core.spec import Spec
from habitus.envs.tabular import Tabular
from habitus.envs.worlds.finite import FiniteMDP
from habitus.envs.wrappers import Canonical, TimeLimit
from habitus.methods.offline.nora import NORA, SoftActor
from habitus.nets.policies import ByStep, Sampling
from habitus.nets.regression import Lookup, Regression, Ridge, Table
from habitus.train.collect import whole_episodes

GREEDIEST = 1e4  # weight at which a soft policy is the best one


class KnownFeatures(NORA):
    """NORA where the features of each pair are known; where there are none, pairs are counted."""

    features: Float[Array, "states actions features"] | None = None

    def regression(self, spec: Spec) -> Regression:
        if self.features is None:
            return super().regression(spec)
        states, _, size = self.features.shape
        return Ridge(Lookup(self.features), jnp.asarray(self.penalty), size, states)


class World(eqx.Module):
    """A finite world and what is known of it.

    Attributes:
        mdp: its tables.
        features: known ones, or None.
        q: the optimal values within the horizon.
        best: the optimal return.
    """

    mdp: FiniteMDP
    features: Float[Array, "states actions features"] | None
    q: Float[Array, "horizon states actions"]
    best: Float[Array, ""]
    horizon: int = eqx.field(static=True)

    @classmethod
    def of(cls, model: Tabular, features: np.ndarray | None, horizon: int) -> World:
        """From its tables."""
        known = None if features is None else jnp.asarray(features, jnp.float32)
        q = jnp.asarray(model.q_within(horizon), jnp.float32)
        best = jnp.asarray(model.best_return_within(horizon), jnp.float32)
        return cls(FiniteMDP(model, horizon), known, q, best, horizon)


@eqx.filter_jit
def play(
    learner: KnownFeatures, world: World, key: PRNGKeyArray, episodes: int, logged: int, given: Bool[Array, ""]
) -> tuple[Float[Array, "episodes"], Bool[Array, "episodes"]]:
    """The suboptimality of every episode's policy, and whether a switch followed.

    Args:
        logged: episodes of a log, of which the learner has none unless it is `given`.
    """
    learner = eqx.tree_at(lambda m: m.features, learner, world.features, is_leaf=lambda x: x is None)
    env, everywhere = Canonical(TimeLimit(world.mdp, world.horizon)), jnp.arange(world.mdp.start.shape[0])
    spec = dataclasses.replace(env.spec, updates=episodes)
    log_key, play_key = jax.random.split(key)
    log = _log(env, world, logged, log_key) if logged else None
    log = None if log is None else dataclasses.replace(log, valid=log.valid & given)
    arrays, rest = eqx.partition(learner.begin(spec, log), eqx.is_array)

    def episode(arrays: Any, key: PRNGKeyArray) -> tuple[Any, tuple[Array, Array]]:
        state = eqx.combine(arrays, rest)
        probabilities = jax.vmap(lambda actor: jax.vmap(lambda s: actor(s).probs)(everywhere))(learner.actor(state))
        gap = world.best - world.mdp.mean_return(probabilities)
        batch = whole_episodes(env, learner.explorer(state), 1, world.horizon, key)
        state, metrics = learner.improved(state, batch)
        return eqx.filter(state, eqx.is_array), (gap, metrics["switched"] > 0)

    return jax.lax.scan(episode, arrays, jax.random.split(play_key, episodes))[1]


def _log(env: Canonical, world: World, episodes: int, key: Array) -> Trajectory:
    """Four episodes of the best policy to one of uniform actions."""
    good_key, random_key = jax.random.split(key)
    parts = []
    for weight, count, own in (
        (GREEDIEST, episodes * 4 // 5, good_key),
        (0.0, episodes - episodes * 4 // 5, random_key),
    ):
        policy = ByStep(Sampling(SoftActor(Table(world.q), jnp.full(world.horizon, weight))), world.horizon)
        parts.append(whole_episodes(env, policy, count, world.horizon, own))
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)


@dataclasses.dataclass(frozen=True)
class Found:
    """Of one arm: suboptimality and switches [seeds, episodes], and the bonus it was given."""

    gap: np.ndarray
    switched: np.ndarray
    bonus: float

    @property
    def regret(self) -> np.ndarray:
        """In all, a seed."""
        return self.gap.sum(1)

    def late(self, best: np.ndarray) -> np.ndarray:
        """Median return over the last tenth, as a share of the best, a seed."""
        return 1 - np.median(self.gap[:, -(self.gap.shape[1] // 10) :], 1) / best

    @property
    def slopes(self) -> np.ndarray:
        """Of log regret against log episodes over the last two thirds, a seed."""
        n = self.gap.shape[1]
        at = np.arange(n // 3, n)
        return np.array([np.polyfit(np.log(at + 1), np.log(row[at]), 1)[0] for row in self.gap.cumsum(1)])
