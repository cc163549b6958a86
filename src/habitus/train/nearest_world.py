"""A world made of a log's own rows: what followed the nearest logged pair follows."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.experience import Step, Transition
from habitus.core.protocols import Env, require
from habitus.core.spec import Spec
from habitus.core.trees import select, take
from habitus.data.dataset import Dataset
from habitus.data.density import DensityGuard, PairScale, pairs_of
from habitus.data.pairs import NearestPairs

OUT = "out of support"  # name of the cost that a guard adds


class Place(eqx.Module):
    """Where an episode stands.

    Attributes:
        obs: the last observation shown, in the user's space.
        time: steps taken.
        out: whether the support was left, after which nothing moves.
    """

    obs: Any
    time: Int[Array, ""]
    out: Bool[Array, ""]


class NearestWorld(Env):
    """Answers with the successor, reward, costs and end of one of the `neighbours` nearest logged pairs.

    With a guard, a pair out of the log's support, or whose neighbour is, pays `-penalty`, costs 1 in one
    more cost, and freezes the episode: so does every step after it. Acts in the spaces of the log;
    episodes begin in its first states.
    """

    index: NearestPairs
    scale: PairScale
    rows: Transition
    odd: Bool[Array, "rows"]
    starts: Any
    guard: DensityGuard | None
    penalty: Float[Array, ""]
    neighbours: int = eqx.field(static=True)
    length: int = eqx.field(static=True)
    contract: Spec = eqx.field(static=True)

    @property
    def observation_space(self) -> gymnasium.Space:
        return self.contract.observation_space

    @property
    def action_space(self) -> gymnasium.Space:
        return self.contract.action_space

    @property
    def horizon(self) -> int:
        return self.length

    @property
    def costs(self) -> tuple[str, ...]:
        return self.contract.costs + ((OUT,) if self.guard is not None else ())

    @property
    def spec(self) -> Spec:
        """As that of any world; the log takes part, so that learners can take their scales from it."""
        spaces = self.observation_space, self.action_space
        log, switches = self.contract.dataset, self.contract.switches
        return Spec(*spaces, self.length, dataset=log, costs=self.costs, switches=switches)

    def reset(self, key: PRNGKeyArray) -> tuple[Place, Any]:
        count = jax.tree.leaves(self.starts)[0].shape[0]
        obs = take(self.starts, jax.random.randint(key, (), 0, count))
        return Place(obs, jnp.zeros((), jnp.int32), jnp.array(False)), obs

    def step(self, state: Place, action: Array, key: PRNGKeyArray) -> tuple[Place, Step]:
        obs, act = self.contract.encode_obs(state.obs), self.contract.encode_action(action)
        pair = self.scale(jnp.concatenate([obs, act]))
        near = self.index.nearest(pair[None, : obs.shape[0]], pair[None, obs.shape[0] :], self.neighbours)[0]
        row = near[jax.random.randint(key, (), 0, self.neighbours)]
        found = take(self.rows, row)
        out = state.out
        if self.guard is not None:
            out = out | self.guard(obs, act) | self.odd[row]
        after = select(out, state.obs, found.next_obs)
        place = Place(after, state.time + 1, out)
        cost = jnp.zeros(0) if found.cost is None else jnp.where(out, 0.0, found.cost)
        if self.guard is not None:
            cost = jnp.append(cost, out.astype(jnp.float32))
        terminated = found.terminated & ~out
        truncated = (place.time >= self.length) & ~terminated
        info = {"cost": cost} if self.costs else {}
        return place, Step(after, jnp.where(out, -self.penalty, found.reward), terminated, truncated, info)


def nearest_world(
    log: Dataset,
    guard: DensityGuard | None = None,
    *,
    penalty: float = 25.0,
    neighbours: int = 1,
    max_rows: int = 5_000,
    horizon: int | None = None,
    seed: int = 0,
) -> NearestWorld:
    """The world of a log of real observations and actions.

    Args:
        guard: what flags pairs out of support; see `DensityGuard`.
        penalty: paid then, in units of 2/15 of the median size of the log's rewards.
        neighbours: from how many nearest pairs a successor is drawn.
        max_rows: rows that are looked at, a random choice of a longer log.
        horizon: steps of an episode; by default that of the log's world, or its longest episode.

    Raises:
        ConfigError: if a number is out of its domain.
        SpaceMismatch: if observations or actions are not real vectors.
    """
    require(penalty >= 0, f"penalty must be 0 or more, but is {penalty}.")
    require(neighbours >= 1, f"neighbours must be 1 or more, but is {neighbours}.")
    pairs, chosen = pairs_of(log), sample_rows(log, max_rows, seed)
    size, scale = log.spec.obs_size, PairScale.of(pairs)
    pairs = pairs[chosen]
    scaled = np.asarray(jax.vmap(scale)(jnp.asarray(pairs)))
    odd = jnp.zeros(len(chosen), bool)
    if guard is not None:
        odd = jax.lax.map(lambda p: guard(p[:size], p[size:]), jnp.asarray(pairs), batch_size=256)
    unit = float(np.median(np.abs(log.reward))) * 2 / 15
    return NearestWorld(
        index=NearestPairs(scaled[:, :size], scaled[:, size:], 1.0, "brute"),
        scale=scale,
        rows=log.transitions(chosen),
        odd=odd,
        starts=jax.tree.map(lambda leaf: jnp.asarray(leaf[log.starts]), log.obs),
        guard=guard,
        penalty=jnp.asarray(penalty * (unit or 1.0), jnp.float32),
        neighbours=min(neighbours, len(chosen)),
        length=int(horizon or log.meta.get("horizon") or log.lengths.max()),
        contract=log.spec,
    )


def sample_rows(log: Dataset, count: int, seed: int = 0) -> Int[np.ndarray, "rows"]:
    """At most `count` rows of a log, in order."""
    if len(log) <= count:
        return np.arange(len(log))
    return np.sort(np.random.default_rng(seed).choice(len(log), count, replace=False))
