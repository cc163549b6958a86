"""Episodes watched to their end, and the buffer that keeps the best of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from habitus.core.experience import Transition
from habitus.core.spec import Spec
from habitus.train.ranking import Ranking, Rows, Watch

SPEC = Spec(spaces.Box(-np.inf, np.inf, (1,)), spaces.Discrete(3))
WEIGHTS = (1.0, 0.1, 0.001)
insert = jax.jit(Ranking.insert)


def rows(*episodes, first=0):
    """Rows of episodes, each (observations, return); the return is paid at the end."""
    obs = np.concatenate([seen for seen, _ in episodes]).astype(np.float32)[:, None]
    reward = np.concatenate([[0.0] * (len(seen) - 1) + [ret] for seen, ret in episodes]).astype(np.float32)
    number = np.repeat(np.arange(first, first + len(episodes)), [len(seen) for seen, _ in episodes]).astype(np.int32)
    return Rows.of(jnp.asarray(obs), jnp.zeros(len(obs), jnp.int32), jnp.asarray(reward), jnp.asarray(number))


def known(given):
    return jnp.ones(len(given.ret), bool)


def test_every_row_that_is_kept_ranks_as_high_as_every_row_that_is_dropped_and_an_episode_may_be_cut():
    rng = np.random.default_rng(0)
    ranking, every = Ranking.empty(SPEC, 10), {}
    for turn in range(6):
        given = rows(*((rng.integers(0, 4, 3), rng.random()) for _ in range(4)), first=4 * turn)
        ranking = insert(ranking, given, known(given), (1.0, 0.1, 0.0))
        every |= dict(zip(given.episode.tolist(), (given.ret + 0.1 * given.local).tolist(), strict=True))
    kept = ranking.rows.episode.tolist()
    assert int(ranking.size) == 10 and len(kept) == 10
    assert min(ranking.score.tolist()) >= max(s for e, s in every.items() if e not in kept) - 1e-6
    assert [kept.count(e) for e in sorted(set(kept), key=every.get)] == [1, 3, 3, 3]  # pairs count, not episodes
    np.testing.assert_allclose(ranking.score, [every[e] for e in kept], rtol=1e-6)


def test_rows_that_are_not_known_never_enter():
    given = rows(([1, 2], 1.0), ([3, 4], 5.0))
    ranking = insert(Ranking.empty(SPEC, 8), given, given.episode == 0, WEIGHTS)
    assert int(ranking.size) == 2 and set(ranking.rows.episode[:2].tolist()) == {0} and int(ranking.counts.sum()) == 2


def test_the_local_score_is_one_without_repetition_and_counts_each_observation_once():
    given = rows(([1, 2, 3, 4], 0.0), ([1, 1, 2, 1], 0.0))
    np.testing.assert_allclose(given.local, [1.0] * 4 + [0.5] * 4)


def test_the_global_score_falls_as_observations_are_seen_again():
    weights, scores, ranking = (0.0, 0.0, 1.0), [], Ranking.empty(SPEC, 4)
    for turn in range(3):
        given = rows(([7, 8], 0.0), first=turn)
        ranking = insert(ranking, given, known(given), weights)
        scores.append(float(ranking.score[0]))
    np.testing.assert_allclose(scores, [1.0, 2**-0.5, 3**-0.5], rtol=1e-6)
    assert float(ranking.score[-1]) == scores[-1]  # and that of older episodes with it


def test_of_each_level_the_best_episode_is_kept_and_of_equal_ones_the_shortest():
    given = rows(([1, 5], 0.5), ([1, 6, 7], 0.9), ([1, 8], 0.9), ([2, 9], 0.1), ([3, 3], 0.0))
    hidden = given.episode != 4
    ranking = insert(Ranking.empty(SPEC, 16, per_level=True), given, hidden, WEIGHTS)
    assert sorted(ranking.rows.episode[: int(ranking.size)].tolist()) == [2, 2, 3, 3]
    better = rows(([1, 4, 4, 4], 1.0), ([2, 9], 0.0), first=5)
    ranking = insert(ranking, better, known(better), WEIGHTS)
    assert sorted(ranking.rows.episode[: int(ranking.size)].tolist()) == [3, 3, 5, 5, 5, 5]


def test_episodes_are_handed_over_whole_however_roll_outs_cut_them():
    lengths, envs, block = (3, 1, 7, 2, 5), 2, 4
    done = np.concatenate([[False] * (n - 1) + [True] for n in lengths] * 2)[: 8 * block // envs * envs]
    time = len(done) // envs // block * block
    ends = np.stack([done[:time], np.roll(done, 2)[:time]], 1)
    obs = np.arange(time * envs, dtype=np.float32).reshape(time, envs, 1)
    reward = np.random.default_rng(0).random((time, envs)).astype(np.float32)
    watch, found = Watch.start(Ranking.empty(SPEC, 8), envs, 7), []
    for start in range(0, time, block):
        part = slice(start, start + block)
        rollout = Transition(*(jnp.asarray(x[part]) for x in (
            obs, np.zeros((time, envs), np.int32), reward, ends, np.zeros_like(ends), obs)))  # fmt: skip
        watch, given, over = watch.add(rollout)
        for number in np.unique(given.episode[over]):
            mine = np.asarray(over & (given.episode == number))
            found.append((np.asarray(given.obs)[mine, 0].tolist(), float(given.ret[mine][0])))
    expected = []
    for env in range(envs):
        at = 0
        for end in np.flatnonzero(ends[:, env]):
            expected.append((obs[at : end + 1, env, 0].tolist(), reward[at : end + 1, env].sum()))
            at = end + 1
    assert [seen for seen, _ in sorted(found)] == [seen for seen, _ in sorted(expected)]
    np.testing.assert_allclose([r for _, r in sorted(found)], [r for _, r in sorted(expected)], rtol=1e-5)


def test_codes_are_kept_as_bytes():
    coded = Spec(spaces.MultiDiscrete([3, 2]), spaces.Discrete(2))
    assert Ranking.empty(coded, 4).rows.obs.dtype == bool and Ranking.empty(SPEC, 4).rows.obs.dtype == np.float32
