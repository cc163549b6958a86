"""Trajectory quality, coverage and entropy of visits: the properties that define them."""

import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError, DataError, SpaceMismatch
from habitus.data import measures
from habitus.data.dataset import Dataset
from habitus.data.hyperloglog import HyperLogLog, hash_rows
from habitus.data.measures import (
    Grid,
    entropy_of_visits,
    mean_return,
    state_action_coverage,
    trajectory_quality,
    unique_pairs,
)

from .logs import KINDS, log

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def tabular(states, actions, lengths=None, reward=None, n=20):
    """A log of integers; episodes of the given lengths, truncated."""
    states, actions = np.asarray(states), np.asarray(actions)
    lengths = [len(states)] if lengths is None else lengths
    truncated = np.zeros(len(states), bool)
    truncated[np.cumsum(lengths) - 1] = True
    reward = np.zeros(len(states)) if reward is None else reward
    return Dataset.from_arrays(
        states, actions, reward, np.zeros(len(states)), truncated, states,
        observation_space=spaces.Discrete(n), action_space=spaces.Discrete(4),
    )  # fmt: skip


def uniform(rows, seed=0):
    rng = np.random.default_rng(seed)
    return tabular(rng.integers(0, 20, rows), rng.integers(0, 4, rows), reward=rng.normal(size=rows))


def reals(rows, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return Dataset.from_arrays(
        rng.normal(size=(rows, 2)) * scale,
        rng.uniform(-1, 1, (rows, 1)),
        rng.normal(size=rows),
        np.zeros(rows),
        np.arange(rows) % 10 == 9,
        rng.normal(size=(rows, 2)),
    )


def test_a_deterministic_policy_in_a_deterministic_world_visits_the_pairs_of_one_episode():
    path, taken = np.array([0, 3, 4, 3, 5]), np.array([1, 2, 0, 2, 1])
    data = tabular(np.tile(path, 7), np.tile(taken, 7), [5] * 7)
    assert unique_pairs(data) == 4  # state 3 is passed twice, with the same action


def test_repetition_changes_nothing():
    data, reference = uniform(100), uniform(300, seed=1)
    thrice = Dataset.concat([data] * 3)
    assert unique_pairs(thrice) == unique_pairs(data)
    assert trajectory_quality(thrice, -5.0, 30.0) == pytest.approx(trajectory_quality(data, -5.0, 30.0))
    assert state_action_coverage(thrice, reference) == pytest.approx(
        state_action_coverage(data, reference, any_size=True)
    )


def test_trajectory_quality_of_the_references_is_0_and_1():
    random, expert = uniform(100, 0), uniform(100, 1)
    limits = mean_return(random), mean_return(expert)
    assert trajectory_quality(random, *limits) == 0 and trajectory_quality(expert, *limits) == 1
    named = uniform(100, 2)
    named.meta.update(random_return=limits[0], expert_return=limits[1])
    assert trajectory_quality(named) == trajectory_quality(named, *limits)


def test_trajectory_quality_ignores_affine_maps_of_rewards():
    a, b, lengths = 3.0, -2.0, [20] * 5
    rewards = [np.random.default_rng(seed).normal(size=100) for seed in range(3)]

    def quality(mapped):
        data, low, high = (tabular(np.zeros(100, int), np.zeros(100, int), lengths, r) for r in mapped)
        return trajectory_quality(data, mean_return(low), mean_return(high))

    assert quality([a * r + b for r in rewards]) == pytest.approx(quality(rewards), rel=1e-4)


def test_coverage_of_the_reference_is_1():
    for reference in (uniform(500), reals(500)):
        assert state_action_coverage(reference, reference) == 1
        assert state_action_coverage(reference, reference, log=True) == 1


def test_counts_are_subadditive_and_monotone():
    first, second = reals(400, 0), reals(400, 1)
    both = Dataset.concat([first, second])
    counts = [unique_pairs(each, both) for each in (first, second, both)]
    assert max(counts[:2]) <= counts[2] <= counts[0] + counts[1]
    shares = [unique_pairs(first.subset(slice(0, n)), both) for n in (50, 100, 200, 400)]
    assert shares == sorted(shares)


def test_log_coverage():
    reference = uniform(100)
    single = tabular(np.zeros(100, int), np.zeros(100, int))
    assert state_action_coverage(single, reference, log=True) == 0
    half = uniform(100, 5)
    expected = np.log(unique_pairs(half)) / np.log(unique_pairs(reference))
    assert state_action_coverage(half, reference, log=True) == pytest.approx(expected)
    with pytest.raises(DataError, match="single pair"):
        state_action_coverage(reference, single, log=True)


def test_entropy_bounds_the_count():
    assert np.exp(entropy_of_visits(uniform(200))) < unique_pairs(uniform(200))
    pairs = np.arange(80)
    even = tabular(np.tile(pairs // 4, 3), np.tile(pairs % 4, 3))
    assert np.exp(entropy_of_visits(even)) == pytest.approx(unique_pairs(even)) == pytest.approx(80)
    counts = np.array([5, 3, 2])
    known = tabular(np.repeat([1, 2, 3], counts), np.zeros(10, int))
    assert entropy_of_visits(known) == pytest.approx(-(counts / 10 * np.log(counts / 10)).sum())


def test_an_unfinished_episode_counts_for_coverage_but_not_for_the_return():
    data = tabular([0, 1, 2, 3], [0, 1, 2, 3], lengths=[2], reward=[1.0, 2.0, 50.0, 50.0])
    assert data.complete.tolist() == [True, False]
    assert mean_return(data) == 3 and unique_pairs(data) == 4
    with pytest.raises(DataError, match="no complete episode"):
        mean_return(data.subset(slice(2, 4)))


# --- cells


def test_cells_come_from_the_reference():
    """As NumPy's digitize over 100 edges: what lies outside goes to the end bins, the top edge to the last."""
    reference, data = reals(300), reals(300, seed=1, scale=3.0)
    cells = set()
    columns = np.concatenate([data.canonical().obs, data.canonical().action], 1)
    limits = np.concatenate([reference.canonical().obs, reference.canonical().action], 1)
    edges = [np.linspace(limits[:, i].min(), limits[:, i].max(), 100) for i in range(3)]
    for row in columns:
        cells.add(tuple(int(np.digitize(row[i], edges[i])) for i in range(3)))
    assert unique_pairs(data, reference) == len(cells)


def test_a_change_within_a_cell_is_no_new_pair():
    data = reals(50)
    edges = Grid.of(data).edges
    width = (edges[:, 41] - edges[:, 40])[:2]
    middle = (edges[:, 40] + edges[:, 41]) / 2
    obs = np.stack([middle[:2], middle[:2] + width / 4, middle[:2] + width])
    action = np.repeat(middle[2:][None], 3, 0)
    small = Dataset.from_arrays(obs, action, np.arange(3.0), np.zeros(3), [0, 0, 1], obs)
    assert unique_pairs(small, data) == 2


def test_fewer_bins_in_many_dimensions():
    rng = np.random.default_rng(0)
    wide = Dataset.from_arrays(
        rng.normal(size=(30, 7)), rng.uniform(-1, 1, (30, 1)), rng.normal(size=30), np.zeros(30),
        np.arange(30) == 29, rng.normal(size=(30, 7)),
    )  # fmt: skip
    assert Grid.of(wide).edges.shape == (8, 20) and Grid.of(reals(30)).edges.shape == (3, 100)
    assert Grid.of(reals(30), bins=7).edges.shape == (3, 7)
    with pytest.raises(ConfigError, match="1 edges"):
        Grid.of(reals(30), bins=1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_space_is_counted(kind):
    data = log(kind, lengths=(30, 20, 10))
    twice = Dataset.concat([data, data])
    assert unique_pairs(twice, data) == unique_pairs(data) <= 60
    if kind == "image":
        assert unique_pairs(data) == 60
        repeated = data.subset(np.r_[0, 0:60])
        assert unique_pairs(repeated) == 60


def test_chunks_make_no_difference(monkeypatch):
    data = reals(300)
    whole = Grid.of(data).hashes(data)
    monkeypatch.setattr(measures, "CHUNK", 17)
    np.testing.assert_array_equal(Grid.of(data).hashes(data), whole)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match="has 100 rows and the reference 200"):
        state_action_coverage(uniform(100), uniform(200))
    with pytest.raises(SpaceMismatch, match="observation space differs"):
        state_action_coverage(uniform(100), reals(100))
    with pytest.raises(DataError, match=r"both 3.0; nothing lies between"):
        trajectory_quality(uniform(100), 3.0, 3.0)
    with pytest.raises(DataError, match="add random_return and expert_return"):
        trajectory_quality(uniform(100))


# --- HyperLogLog


@pytest.mark.parametrize("distinct", [1, 100, 20_000, 40_000, 60_000, 100_000, 1_000_000])
def test_hyperloglog_is_within_three_percent(distinct):
    rng = np.random.default_rng(distinct)
    words = rng.integers(0, 2**63, (distinct, 1)).astype(np.uint64)
    counter = HyperLogLog()
    for part in np.array_split(np.concatenate([words, words[::2]]), 5):
        counter.add(hash_rows(part))
    assert counter.count() == pytest.approx(len(np.unique(words)), rel=0.03)


def test_hyperloglog_error_is_as_stated():
    ratios = []
    for seed in range(40):
        counter = HyperLogLog()
        counter.add(hash_rows(np.arange(seed * 10**6, seed * 10**6 + 200_000, dtype=np.uint64)[:, None]))
        ratios.append(counter.count() / 200_000)
    assert abs(np.mean(ratios) - 1) < 4 * 0.0081 / np.sqrt(40)
    assert 0.005 < np.std(ratios) < 0.012


def test_merging_counts_the_union():
    hashes = hash_rows(np.arange(50_000, dtype=np.uint64)[:, None])
    parts = [HyperLogLog() for _ in range(3)]
    for counter, chosen in zip(parts, (slice(0, 30_000), slice(20_000, 50_000), slice(None)), strict=True):
        counter.add(hashes[chosen])
    np.testing.assert_array_equal(parts[0].merge(parts[1]).registers, parts[2].registers)
    with pytest.raises(ConfigError, match="cannot be merged"):
        parts[0].merge(HyperLogLog(12))
    with pytest.raises(ConfigError, match="expected 11 to 18"):
        HyperLogLog(4)


def test_both_ways_of_counting_agree():
    data = reals(30_000)
    assert unique_pairs(data, exact=False) == pytest.approx(unique_pairs(data, exact=True), rel=0.03)


def test_hashes_tell_rows_apart():
    words = np.stack(np.meshgrid(*[np.arange(60)] * 3), -1).reshape(-1, 3).astype(np.uint64)
    assert len(np.unique(hash_rows(words))) == 60**3
    assert (hash_rows(words) != hash_rows(words, seed=1)).all()
    bits = np.unpackbits(hash_rows(words).view(np.uint8)).reshape(-1, 64)
    np.testing.assert_allclose(bits.mean(0), 0.5, atol=0.006)
