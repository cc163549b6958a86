"""Exact regret of optimistic actor-critics in finite worlds, another world for each seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from habitus.core.experience import Trajectory
from habitus.core.spec import Spec
from habitus.envs.tabular import Tabular
from habitus.envs.worlds.finite import FiniteMDP
from habitus.envs.wrappers import Canonical, TimeLimit
from habitus.methods.offline.nora import NORA, SoftActor
from habitus.nets.policies import ByStep, Sampling
from habitus.nets.regression import Lookup, Regression, Ridge, Table
from habitus.train.episodes import whole_episodes

GREEDIEST = 1e4  # weight at which a soft policy is the best one


class KnownFeatures(NORA):
    """NORA where the features of each pair are known; where there are none, pairs are counted."""

    features: Float[Array, "states actions features"] | None = None

    def regression(self, spec: Spec) -> Regression:
        if self.features is None:
            return super().regression(spec)
        states, _, size = self.features.shape
        return Ridge(Lookup(self.features), jnp.asarray(self.penalty), size, states)


class Worlds(eqx.Module):
    """Worlds of one shape, one a seed, with a leading axis.

    Attributes:
        mdp: their tables.
        features: known ones, or None.
        q: the optimal values within the horizon.
        best: the optimal return.
    """

    mdp: FiniteMDP
    features: Float[Array, "seeds states actions features"] | None
    q: Float[Array, "seeds horizon states actions"]
    best: Float[Array, "seeds"]
    horizon: int = eqx.field(static=True)

    @classmethod
    def of(cls, models: Sequence[Tabular], features: Array | None, horizon: int) -> Worlds:
        """From the tables of each."""
        mdp = jax.tree.map(lambda *xs: jnp.stack(xs), *(FiniteMDP(model, horizon) for model in models))
        q = jnp.asarray(np.stack([model.q_within(horizon) for model in models]), jnp.float32)
        best = jnp.asarray([model.best_return_within(horizon) for model in models], jnp.float32)
        return cls(mdp, features, q, best, horizon)


@eqx.filter_jit
def play(
    learner: KnownFeatures, worlds: Worlds, keys: Key[Array, "seeds"], episodes: int, logged: int
) -> tuple[Float[Array, "seeds episodes"], Bool[Array, "seeds episodes"]]:
    """Each seed's suboptimality of every episode's policy, and whether it was followed by a switch."""
    arrays, static = eqx.partition(worlds, eqx.is_array)

    def one(inputs: tuple[Any, Array]) -> tuple[Array, Array]:
        world: Worlds = eqx.combine(inputs[0], static)
        own = eqx.tree_at(lambda m: m.features, learner, world.features, is_leaf=lambda x: x is None)
        env, everywhere = Canonical(TimeLimit(world.mdp, world.horizon)), jnp.arange(world.mdp.start.shape[0])
        spec = dataclasses.replace(env.spec, updates=episodes)
        log_key, play_key = jax.random.split(inputs[1])
        state = own.begin(spec, _log(env, world, logged, log_key) if logged else None)
        fixed, rest = eqx.partition(state, eqx.is_array)

        def episode(fixed: Any, key: Array) -> tuple[Any, tuple[Array, Array]]:
            state = eqx.combine(fixed, rest)
            probabilities = jax.vmap(lambda actor: jax.vmap(lambda s: actor(s).probs)(everywhere))(own.actor(state))
            gap = world.best - world.mdp.mean_return(probabilities)
            act_key, update_key = jax.random.split(key)
            batch = whole_episodes(env, own.explorer(state), 1, world.horizon, act_key)
            state, metrics = own.update(state, batch, update_key)
            return eqx.filter(state, eqx.is_array), (gap, metrics["switched"] > 0)

        return jax.lax.scan(episode, fixed, jax.random.split(play_key, episodes))[1]

    return jax.lax.map(one, (arrays, keys))  # not vmap, by which every episode would pay for a fit


def _log(env: Canonical, world: Worlds, episodes: int, key: Array) -> Trajectory:
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
