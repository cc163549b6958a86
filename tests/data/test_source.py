"""Minibatches and windows of a log, compiled or from disk."""

import jax
import numpy as np
import pytest
import scipy.stats

from habitus.core.errors import ConfigError
from habitus.core.experience import Trajectory, Transition
from habitus.data.dataset import Dataset
from habitus.data.sample import distinct_rows
from habitus.data.source import DatasetSource


@pytest.fixture(scope="module")
def data():
    rows = np.arange(60)
    obs = rows[:, None].astype(np.float32)
    return Dataset.from_arrays(
        obs,
        np.cos(rows)[:, None] * 3,
        rows.astype(np.float32),
        rows % 7 == 6,
        rows == 59,
        np.where((rows % 7 == 6)[:, None], obs, obs + 1),
    )


def one(source, seed):
    return source.draw(source.init(None, jax.random.key(0)), None, jax.random.key(seed))[1]


@pytest.mark.parametrize("resident", [0, 2**30])
def test_rows_are_whole_and_canonical(data, resident):
    source = DatasetSource(data, 32, resident=resident)
    assert source.pure == (resident > 0)
    batch = one(source, 1)
    assert isinstance(batch, Transition) and batch.size == 32
    rows = np.asarray(batch.obs[:, 0]).astype(int)
    log = data.canonical()
    for name in ("obs", "action", "reward", "next_obs", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(log, name)[rows])
    assert source.spec.dataset is log


@pytest.mark.parametrize("resident", [0, 2**30])
def test_same_key_same_batch(data, resident):
    source = DatasetSource(data, 32, resident=resident)
    assert np.array_equal(one(source, 1).obs, one(source, 1).obs)
    assert not np.array_equal(one(source, 1).obs, one(source, 2).obs)


@pytest.mark.parametrize("resident", [0, 2**30])
def test_windows(data, resident):
    batch = one(DatasetSource(data, 16, window=4, resident=resident), 3)
    assert isinstance(batch, Trajectory)
    row = np.asarray(batch.steps.reward[:, 0]).astype(int)
    expected = data.canonical().windows(4, row)
    assert jax.tree.all(jax.tree.map(np.array_equal, batch, expected))
    assert not batch.valid.all() and batch.valid[:, 0].all()
    np.testing.assert_array_equal(batch.left, np.minimum(6 - batch.steps.reward % 7, 59 - batch.steps.reward))


@pytest.mark.parametrize("resident", [0, 2**30])
def test_windows_from_the_start_are_of_every_episode_alike(data, resident):
    source = DatasetSource(data, 20, window=3, resident=resident, from_start=True)
    drawn = [one(source, seed) for seed in range(150)]
    assert all((batch.time[:, 0] == 0).all() for batch in drawn)
    episodes = data.episode_of(np.concatenate([batch.steps.reward[:, 0] for batch in drawn]).astype(int))
    counts = np.bincount(episodes, minlength=len(data.starts))
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    every = len(data.starts)
    once = one(DatasetSource(data, every, window=3, resident=resident, from_start=True, replace=False), 0)
    assert sorted(once.steps.reward[:, 0].tolist()) == data.starts.tolist()


@pytest.mark.parametrize("resident", [0, 2**30])
@pytest.mark.parametrize("replace", [True, False])
def test_every_row_is_as_likely(data, resident, replace):
    source = DatasetSource(data, 20, replace=replace, resident=resident)
    drawn = np.stack([np.asarray(one(source, seed).reward) for seed in range(300)]).astype(int)
    if not replace:
        assert all(len(set(rows)) == 20 for rows in drawn)
    counts = np.bincount(drawn.ravel(), minlength=60)
    # 6,000 draws over 60 rows: 100 each, standard deviation below 10
    assert counts.min() > 55 and counts.max() < 145


def test_draws_compile_and_vmap(data):
    source = DatasetSource(data, 8, window=3)

    @jax.jit
    def many(source, keys):
        return jax.vmap(lambda key: source.draw((), None, key)[1].steps.reward)(keys)

    keys = jax.random.split(jax.random.key(0), 5)
    expected = np.stack([source.draw((), None, key)[1].steps.reward for key in keys])
    np.testing.assert_array_equal(many(source, keys), expected)


@pytest.mark.parametrize("rows", [1, 2, 5, 60, 61])
def test_distinct_rows_are_equally_likely_in_pairs(rows):
    size = min(rows, 4)
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: distinct_rows(key, rows, size)))(keys))
    assert drawn.min() >= 0 and drawn.max() < rows
    assert all(len(set(row)) == size for row in drawn)
    if rows > 1:
        counts = np.bincount(drawn[:, 0] * rows + drawn[:, -1], minlength=rows**2).reshape(rows, rows)
        pairs = counts[~np.eye(rows, dtype=bool)]
        assert scipy.stats.chisquare(pairs).pvalue > 1e-3


def test_sizes_are_checked(data):
    with pytest.raises(ConfigError, match="at least 1"):
        DatasetSource(data, 0)
    with pytest.raises(ConfigError, match="use replace=True"):
        DatasetSource(data, 61, replace=False)
    with pytest.raises(ConfigError, match="use replace=True"):
        DatasetSource(data, len(data.starts) + 1, window=2, from_start=True, replace=False)
    with pytest.raises(ConfigError, match="window="):
        DatasetSource(data, from_start=True)
