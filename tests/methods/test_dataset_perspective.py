"""The dataset perspective: what TQ and SACo of a log are, and the logs of the study."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError, DataError, SpaceMismatch
from habitus.data.dataset import Dataset
from habitus.data.hyperloglog import HyperLogLog, hash_rows
from habitus.data.measures import mean_return, unique_pairs
from habitus.methods.offline.dataset_perspective import dataset_perspective, online_runs, study_logs, whole_episodes
from habitus.methods.online._tabular import TabularQ
from habitus.methods.online.dqn import DQN

STEPS = 4_000
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # logs of random rows look shuffled, as they are


def log(obs, action, lengths=None, reward=None, cut=False, **meta):
    """A log of integers, of episodes that are truncated; the last one is not finished if `cut`."""
    rows = len(obs)
    ends = np.cumsum([rows] if lengths is None else lengths) - 1
    truncated = np.zeros(rows, bool)
    truncated[ends[:-1] if cut else ends] = True
    return Dataset.from_arrays(
        obs, action, np.zeros(rows) if reward is None else reward, np.zeros(rows), truncated, obs,
        observation_space=spaces.Discrete(50), action_space=spaces.Discrete(4), meta=meta,
    )  # fmt: skip


def random_log(rows, seed=0, **meta):
    rng = np.random.default_rng(seed)
    lengths = [10] * (rows // 10)
    return log(rng.integers(0, 50, rows), rng.integers(0, 4, rows), lengths, rng.normal(size=rows), **meta)


@cache
def run():
    return online_runs(TabularQ(), "four-rooms", STEPS, [10], evaluations=8, warmup=500)[0]


@cache
def logs():
    return study_logs(run())


def measured(name):
    return dataset_perspective(logs()[name], run().replay)


# --- the measures


def test_a_deterministic_policy_in_a_deterministic_world_visits_the_pairs_of_one_episode():
    single = logs()["single"]
    first = single.episode(0)
    pairs = {(int(s), int(a)) for s, a in zip(first.obs, first.action, strict=True)}
    assert measured("single").unique_pairs == len(pairs)


def test_repetition_leaves_pairs_coverage_and_quality_unchanged():
    once, reference = random_log(200, random_return=-3.0, expert_return=5.0), random_log(200, 1)
    thrice = Dataset.concat([once] * 3, meta=once.meta)
    longer = Dataset.concat([reference] * 3)
    ours, theirs = dataset_perspective(once, reference), dataset_perspective(thrice, longer)
    for name in ("unique_pairs", "coverage", "log_coverage", "trajectory_quality", "visit_entropy"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name)), name


def test_the_quality_of_the_references_is_0_and_1():
    for value, expected in ((2.0, 0.0), (10.0, 1.0), (14.0, 1.5), (-2.0, -0.5)):
        own = log([0, 1], [0, 0], reward=[value, 0.0], random_return=2.0, expert_return=10.0)
        assert dataset_perspective(own).trajectory_quality == expected


def test_quality_ignores_affine_maps_of_rewards():
    def quality(a, b):
        low, own, high = (random_log(200, seed) for seed in range(3))
        mapped = [dataclasses.replace(x, reward=(a * x.reward + b).astype(np.float32)) for x in (low, own, high)]
        meta = {"random_return": mean_return(mapped[0]), "expert_return": mean_return(mapped[2])}
        return dataset_perspective(dataclasses.replace(mapped[1], meta=meta)).trajectory_quality

    assert quality(3.0, -2.0) == pytest.approx(quality(1.0, 0.0), rel=1e-3)


def test_the_coverage_of_the_reference_is_1():
    reference = random_log(300)
    found = dataset_perspective(reference, reference)
    assert found.coverage == found.log_coverage == 1.0


def test_pairs_are_subadditive_and_monotone():
    first, second = random_log(100, 0), random_log(100, 1)
    both = Dataset.concat([first, second])
    u = [dataset_perspective(x).unique_pairs for x in (first, second, both)]
    assert max(u[:2]) <= u[2] <= u[0] + u[1]
    parts = [dataset_perspective(both.subset(slice(0, n))).unique_pairs for n in (50, 100, 150, 200)]
    assert parts == sorted(parts)


def test_hyperloglog_is_within_three_percent_and_merges_to_the_union():
    words = np.random.default_rng(0).integers(0, 2**62, (100_000, 1)).astype(np.uint64)
    hashes = hash_rows(words)
    parts = [HyperLogLog(), HyperLogLog(), HyperLogLog()]
    for counter, rows in zip(parts, (slice(0, 70_000), slice(30_000, None), slice(None)), strict=True):
        counter.add(hashes[rows])
    assert parts[2].count() == pytest.approx(len(np.unique(words)), rel=0.03)
    assert parts[0].merge(parts[1]).count() == parts[2].count()


def test_the_exponential_of_the_entropy_bounds_the_pairs_and_reaches_them_when_visits_are_even():
    for name in logs():
        found = measured(name)
        assert np.exp(found.visit_entropy) <= found.unique_pairs * (1 + 1e-9)
    even = dataset_perspective(log(np.tile(np.arange(50), 4), np.repeat(np.arange(4), 50)))
    assert np.exp(even.visit_entropy) == pytest.approx(even.unique_pairs) == 200


def test_log_coverage_is_1_only_for_as_many_pairs_and_0_for_a_single_one():
    reference = random_log(100)
    single = log(np.zeros(100, int), np.zeros(100, int))
    assert dataset_perspective(single, reference).log_coverage == 0
    for seed in range(1, 6):
        found = dataset_perspective(random_log(100, seed), reference)
        as_many = found.unique_pairs == unique_pairs(reference)
        assert (found.log_coverage == 1) == as_many


def test_an_unfinished_last_episode_counts_for_pairs_but_not_for_the_return():
    own = log([0, 1, 2, 3], [0, 1, 2, 3], [2, 2], [1.0, 2.0, 50.0, 50.0], cut=True)
    found = dataset_perspective(own)
    assert found.mean_return == 3.0 and found.unique_pairs == 4


def test_what_cannot_be_measured_is_said():
    rows = dict(dataset_perspective(random_log(50)).rows())
    assert rows["trajectory quality (TQ)"].startswith("unknown: the log names no random_return")
    assert rows["state-action coverage (SACo)"].startswith("unknown: give the replay")
    with pytest.raises(DataError, match="both 1.0"):
        dataset_perspective(random_log(50, random_return=1.0, expert_return=1.0))
    with pytest.raises(DataError, match="no complete episode"):
        dataset_perspective(log([0, 1], [0, 0], [2], cut=True))
    with pytest.raises(SpaceMismatch):
        other = dataclasses.replace(random_log(50), observation_space=spaces.Discrete(60))
        dataset_perspective(random_log(50), other)


def test_the_longer_log_is_cut():
    own, reference = random_log(100), random_log(300, 1)
    expected = unique_pairs(own) / unique_pairs(reference.subset(slice(0, 100)))
    assert dataset_perspective(own, reference).coverage == pytest.approx(expected)


# --- the study


def test_the_logs_of_the_study_are_as_long_as_the_replay_and_differ_as_they_should():
    assert set(logs()) == {
        "random", "expert", "noisy", "replay", "mixed", "near-expert", "half", "sparse", "single",
    }  # fmt: skip
    assert {len(each) for each in logs().values()} == {STEPS}
    quality = {name: measured(name).trajectory_quality for name in logs()}
    coverage = {name: measured(name).coverage for name in logs()}
    assert quality["random"] == pytest.approx(0) and coverage["replay"] == 1.0
    assert quality["expert"] > 0.9 and quality["noisy"] > 0.7
    assert quality["random"] < quality["mixed"] < quality["half"] < quality["expert"]
    assert coverage["single"] < coverage["expert"] < coverage["near-expert"] < coverage["noisy"]
    assert coverage["sparse"] < coverage["random"] and coverage["single"] < 0.1


def test_the_replay_is_the_whole_run_in_order():
    replay = run().replay
    assert (replay.episode(0).next_obs[:-1] == replay.episode(0).obs[1:]).all()
    follows = np.asarray(replay.next_obs)[:-1] == np.asarray(replay.obs)[1:]
    last = np.asarray(replay.terminated | replay.truncated)[:-1]
    assert (follows | last).all() and replay.complete[:-1].all()
    thirds = np.array_split(replay.returns[replay.complete], 3)
    assert thirds[0].mean() < thirds[1].mean() < thirds[2].mean()  # it learns, and explores less and less


def test_shares_of_the_composed_logs():
    random, mixed, sparse = (logs()[name] for name in ("random", "mixed", "sparse"))
    rows = whole_episodes(random, round(0.8 * STEPS))
    assert 0.8 * STEPS - 40 <= rows <= 0.8 * STEPS
    assert np.array_equal(mixed.obs[:rows], random.obs[:rows])
    assert np.array_equal(mixed.obs[rows:], logs()["expert"].obs[: STEPS - rows])
    part = whole_episodes(random, STEPS // 20)
    assert np.array_equal(sparse.action, np.resize(np.asarray(random.action)[:part], STEPS))
    for each in logs().values():
        assert each.complete[:-1].all()


def test_a_fifth_of_the_noisy_actions_are_uniform():
    expert = {int(s): int(a) for s, a in zip(logs()["expert"].obs, logs()["expert"].action, strict=True)}
    for name, share in (("noisy", 0.2), ("near-expert", 0.05)):
        each = logs()[name]
        agrees = [expert[int(s)] == int(a) for s, a in zip(each.obs, each.action, strict=True) if int(s) in expert]
        assert np.mean(agrees) == pytest.approx(1 - 0.75 * share, abs=0.03)


def test_the_same_seed_gives_the_same_logs_and_another_one_others():
    again = study_logs(online_runs(TabularQ(), "four-rooms", STEPS, [10], evaluations=8, warmup=500)[0])
    for name, each in logs().items():
        assert np.array_equal(each.obs, again[name].obs) and np.array_equal(each.action, again[name].action)
    other = online_runs(TabularQ(), "four-rooms", STEPS, [11], evaluations=8, warmup=500)[0]
    assert not np.array_equal(other.replay.obs, run().replay.obs)


def test_a_network_can_be_the_online_agent_and_several_seeds_run_at_once():
    learner = DQN(hidden=(16,), batch_size=16, epsilon_updates=300)
    runs = online_runs(learner, "cartpole", 800, [0, 1], evaluations=2, episodes=4, warmup=300, updates_per_step=0.5)
    assert [each.seed for each in runs] == [0, 1] and all(len(each.scores) == 2 for each in runs)
    made = study_logs(runs[1])
    assert made["noisy"].meta["expert_return"] == max(runs[1].scores) and made["half"].meta["task"] == "cartpole"
    assert dataset_perspective(made["random"], runs[1].replay).trajectory_quality == 0


def test_what_makes_no_sense_is_refused():
    with pytest.raises(SpaceMismatch, match="counts states"):
        online_runs(TabularQ(), "cartpole", 2_000, [0])
    with pytest.raises(ConfigError, match="amid a draw"):
        online_runs(TabularQ(), "four-rooms", 2_001, [0], updates_per_step=0.5)
    with pytest.raises(ConfigError, match="compiled"):
        online_runs(DQN(), "CartPole-v1", 2_000, [0])
    with pytest.raises(DataError, match="completes no episode within 3 rows"):
        whole_episodes(random_log(50), 3)
