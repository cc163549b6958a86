"""The best of what was seen: whole episodes, watched as they end, and a buffer that keeps the highest ranked rows.

The ranking is RAPID's: what an episode earned, how little it repeated itself, how rarely its
observations were seen before.

D. Zha, W. Ma, L. Yuan, X. Hu and J. Liu, "Rank the Episodes: A Simple Approach for Exploration in
Procedurally-Generated Environments", ICLR 2021.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from habitus.core.experience import Transition
from habitus.core.spec import Spec
from habitus.core.trees import take
from habitus.data.dataset import Dataset

BUCKETS = 1 << 18  # of the counts; two observations share one by chance once in so many pairs


class Rows(eqx.Module):
    """Pairs to imitate, [rows] of them, and what is known of the episode of each. Episodes lie together."""

    obs: Array
    action: Array
    episode: Int[Array, "rows"]  # its number
    level: UInt32[Array, "rows"]  # where it was played: the fingerprint of its first observation
    ret: Float[Array, "rows"]  # undiscounted return of the episode
    local: Float[Array, "rows"]  # share of its observations that are no repetition
    code: UInt32[Array, "rows"]  # fingerprint of the observation

    @classmethod
    def of(cls, obs: Array, action: Array, reward: Float[Array, "rows"], episode: Int[Array, "rows"]) -> Rows:
        """Rows of one episode after the other."""
        code = fingerprint(obs)
        at, first, length = segments(episode)
        level = jax.ops.segment_sum(jnp.where(first, code, 0), at, len(at))
        ret, local = jax.ops.segment_sum(reward, at, len(at)), distinct(at, code) / jnp.maximum(length, 1)
        return cls(obs, action, episode, level[at], ret[at], local[at], code)

    @classmethod
    def of_log(cls, log: Dataset) -> Rows:
        """All rows of a log."""
        log = log.canonical()
        episode = np.repeat(np.arange(len(log.starts), dtype=np.int32), log.lengths)
        return cls.of(*(jnp.asarray(x[:]) for x in (log.obs, log.action, log.reward, episode)))


class Ranking(eqx.Module):
    """At most `capacity` rows, those of the best episodes; an episode at the end of the list may be cut.

    Attributes:
        rows: the first `size` of them count, in the order of their rank.
        score: of each row, its episode's.
        counts: how often observations were seen in the episodes that were put in, by fingerprint.
        per_level: of each level keep only the best episode, and of equally good ones the shortest.
    """

    rows: Rows
    score: Float[Array, "rows"]
    size: Int[Array, ""]
    counts: Int[Array, "buckets"]
    per_level: bool = eqx.field(static=True, default=False)

    @classmethod
    def empty(cls, spec: Spec, capacity: int, per_level: bool = False) -> Ranking:
        """Room for `capacity` rows. Codes of 0 and 1 are kept as bytes."""
        coded = not (spec.image or spec.tabular) and not any(isinstance(s, spaces.Box) for _, s in spec.leaves)
        zero, none = jnp.zeros(capacity), jnp.zeros(capacity, jnp.uint32)
        rows = Rows(
            obs=jnp.zeros((capacity, *spec.obs_shape), bool if coded else spec.obs_dtype),
            action=jnp.zeros((capacity, *spec.action_shape), spec.action_dtype),
            episode=jnp.full(capacity, -1, jnp.int32),
            level=none, ret=zero, local=zero, code=none,
        )  # fmt: skip
        made = cls(rows, zero, jnp.zeros((), jnp.int32), jnp.zeros(BUCKETS, jnp.int32), per_level)
        return jax.tree.map(lambda x: jnp.array(x, copy=True), made)  # columns of their own, to be given up

    def insert(self, rows: Rows, known: Bool[Array, "n"], weights: tuple[Any, Any, Any]) -> Ranking:
        """The best of what is here and of those of `rows` that are `known`, ranked anew; newer ones first where equal.

        The score is `w0 return + w1 local + w2 global` (Zha et al. 2021, eq. 4), with the mean of
        `1 / sqrt(N)` over the observations of an episode as its global score, and `N` as it is now.

        Args:
            rows: their episodes' numbers must differ from those here.
            weights: of the three scores.
        """
        counts = self.counts.at[rows.code % BUCKETS].add(known)
        rows = dataclasses.replace(rows, obs=rows.obs.astype(self.rows.obs.dtype))
        capacity = len(self.score)
        both = jax.tree.map(lambda new, old: jnp.concatenate([new, old]), rows, self.rows)
        known = jnp.concatenate([known, jnp.arange(capacity) < self.size])
        at, _, length = segments(both.episode)
        rare = jax.lax.rsqrt(jnp.maximum(counts[both.code % BUCKETS], 1).astype(jnp.float32))
        rare = (jax.ops.segment_sum(rare, at, len(at)) / jnp.maximum(length, 1))[at]
        if self.per_level:
            known = known & best_of_level(both, known)
        score = weights[0] * both.ret + weights[1] * both.local + weights[2] * rare
        score = jnp.where(known, score, jnp.finfo(score.dtype).min)  # finite, as all that a run checks and keeps
        best = jnp.argsort(-score, stable=True)[:capacity]
        size = jnp.minimum(known.sum(dtype=jnp.int32), capacity)
        return dataclasses.replace(self, rows=take(both, best), score=score[best], size=size, counts=counts)

    def sample(self, key: PRNGKeyArray, n: int) -> Rows:
        """`n` rows, uniformly and with replacement."""
        return take(self.rows, jax.random.randint(key, (n,), 0, self.size))


class Watch(eqx.Module):
    """The episodes under way in each copy of a world, so that they are handed over whole once they end.

    Of an episode that is longer than there is room for, the rest is left out.
    """

    obs: Array
    action: Array
    reward: Float[Array, "envs time"]
    length: Int[Array, "envs"]
    episodes: Int[Array, ""]  # numbers used so far

    @classmethod
    def start(cls, like: Ranking, num_envs: int, horizon: int, episodes: int = 0) -> Watch:
        """Nothing seen yet, and the numbers below `episodes` used; `horizon` is the longest episode."""
        obs, action = (jnp.zeros((num_envs, horizon, *x.shape[1:]), x.dtype) for x in (like.rows.obs, like.rows.action))
        zero = jnp.zeros((), jnp.int32)
        return cls(obs, action, jnp.zeros((num_envs, horizon)), jnp.zeros(num_envs, jnp.int32), zero + episodes)

    def add(self, rollout: Transition) -> tuple[Watch, Rows, Bool[Array, "rows"]]:
        """Watches transitions [time, env]: itself after it, rows, and which of them are of episodes that have ended."""
        time, envs = rollout.reward.shape
        room = self.reward.shape[1]
        done = jnp.swapaxes(rollout.done, 0, 1)
        over = jnp.where(done.any(1), time - jnp.argmax(done[:, ::-1], 1), 0)  # steps up to the last end
        over = jnp.where(over > 0, self.length + over, 0)

        def joined(kept: Array, new: Array) -> Array:
            new = jnp.swapaxes(jnp.asarray(new), 0, 1).astype(kept.dtype)
            wide = jnp.concatenate([kept, jnp.zeros_like(new)], 1)
            return jax.vmap(lambda w, n, i: jax.lax.dynamic_update_slice_in_dim(w, n, i, 0))(wide, new, self.length)

        columns = [joined(getattr(self, name), getattr(rollout, name)) for name in ("obs", "action", "reward")]
        ends = joined(jnp.zeros((envs, room), bool), rollout.done)
        number = jnp.cumsum(ends, 1, dtype=jnp.int32) - ends
        number = self.episodes + jnp.arange(envs, dtype=jnp.int32)[:, None] * (time + 1) + number
        flat = [x.reshape(-1, *x.shape[2:]) for x in (*columns, number)]
        rest = [jax.vmap(lambda x, i: jnp.roll(x, -i, 0)[:room])(x, over) for x in columns]
        length = jnp.minimum(self.length + time - over, room)
        known = jnp.arange(room + time) < over[:, None]
        return Watch(*rest, length, self.episodes + envs * (time + 1)), Rows.of(*flat), known.ravel()  # type: ignore[call-arg]


def fingerprint(obs: Array) -> UInt32[Array, "rows"]:
    """32 bits of each observation; those of unlike ones are alike by chance once in 4 billion pairs."""
    flat = obs.reshape(len(obs), -1)
    if jnp.issubdtype(flat.dtype, jnp.floating):
        bits = jax.lax.bitcast_convert_type(flat.astype(jnp.float32) + 0.0, jnp.uint32)  # + 0.0: -0.0 is 0.0
    else:
        bits = jax.lax.bitcast_convert_type(flat.astype(jnp.float32), jnp.uint32)
    factors = np.random.default_rng(0).integers(0, 1 << 32, (2, flat.shape[1]), dtype=np.uint32) | 1
    bits = (bits ^ (bits >> 15)) * jnp.asarray(factors[0])
    mixed = ((bits ^ (bits >> 13)) * jnp.asarray(factors[1])).sum(1, dtype=jnp.uint32)
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x7FEB352D)
    return mixed ^ (mixed >> 15)


def segments(episode: Int[Array, "rows"]) -> tuple[Int[Array, "rows"], Bool[Array, "rows"], Int[Array, "rows"]]:
    """For rows of one episode after the other: which in turn each belongs to, which are first, and lengths by turn."""
    first = jnp.concatenate([jnp.ones(1, bool), episode[1:] != episode[:-1]])
    at = jnp.cumsum(first, dtype=jnp.int32) - 1
    return at, first, jax.ops.segment_sum(jnp.ones_like(at), at, len(at))


def distinct(at: Int[Array, "rows"], code: UInt32[Array, "rows"]) -> Int[Array, "rows"]:
    """How many different codes each segment has, by its turn."""
    at, code = jax.lax.sort((at, code), num_keys=2)
    new = jnp.concatenate([jnp.ones(1, bool), (at[1:] != at[:-1]) | (code[1:] != code[:-1])])
    return jax.ops.segment_sum(new.astype(jnp.int32), at, len(at))


def best_of_level(rows: Rows, known: Bool[Array, "rows"]) -> Bool[Array, "rows"]:
    """Which rows are of the episode of their level that earned most, in the fewest steps; the first of equals."""
    at, _, length = segments(rows.episode)
    hidden = (~known).astype(jnp.int32)
    _, level, _, _, best = jax.lax.sort((hidden, rows.level, -rows.ret, length[at], at), num_keys=5)
    first = jnp.concatenate([jnp.ones(1, bool), level[1:] != level[:-1]]) | (jnp.arange(len(at)) == known.sum())
    return jnp.zeros(len(at), bool).at[jnp.where(first, best, len(at))].set(True, mode="drop")[at]
