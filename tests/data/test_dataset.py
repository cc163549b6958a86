"""The columns of a log, its episodes, and its canonical form."""

import jax
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError, DataError, SpaceMismatch
from habitus.data.dataset import Dataset


def walk(lengths=(3, 2, 4), ends="TtT", seed=0):
    """Episodes of the given lengths; each ends terminated ('t'), truncated ('T') or not at all ('.')."""
    rng, rows = np.random.default_rng(seed), sum(lengths)
    last = np.cumsum(lengths) - 1
    terminated, truncated = np.zeros(rows, bool), np.zeros(rows, bool)
    terminated[last] = [e == "t" for e in ends]
    truncated[last] = [e == "T" for e in ends]
    return {
        "obs": rng.normal(size=(rows, 2)).astype(np.float32),
        "action": rng.uniform(-1, 1, (rows, 1)).astype(np.float32),
        "reward": np.arange(rows, dtype=np.float32),
        "terminated": terminated,
        "truncated": truncated,
        "next_obs": rng.normal(size=(rows, 2)).astype(np.float32),
    }


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is not the observation of the next row"),
    pytest.mark.filterwarnings("ignore:.*reward never changes"),
]


def test_episodes_returns_and_lengths():
    data = Dataset.from_arrays(**walk(ends="Tt."))
    assert len(data) == 9
    assert data.starts.tolist() == [0, 3, 5]
    assert data.lengths.tolist() == [3, 2, 4]
    assert data.returns.tolist() == [0 + 1 + 2, 3 + 4, 5 + 6 + 7 + 8]
    assert data.complete.tolist() == [True, True, False]
    assert data.episode(1).reward.tolist() == [3, 4]
    assert repr(data) == "Dataset(the data set: 9 rows, 3 episodes)"


def test_inferred_spaces():
    arrays = walk()
    assert Dataset.from_arrays(**arrays).action_space == spaces.Box(-1, 1, (1,), np.float32)
    wide = Dataset.from_arrays(**arrays | {"action": np.linspace(0, 4, 9)[:, None]}).action_space
    assert (wide.low, wide.high) == (0, 4)
    whole = Dataset.from_arrays(**arrays | {"action": np.array([0, 1, 2] * 3)})
    assert whole.action_space == spaces.Discrete(3)
    several = Dataset.from_arrays(**arrays | {"action": np.array([[0, 1], [2, 0], [1, 1]] * 3)})
    assert several.action_space == spaces.MultiDiscrete([3, 2])
    tabular = Dataset.from_arrays(**arrays | {"obs": np.arange(9), "next_obs": np.arange(9) * 0})
    assert tabular.observation_space == spaces.Discrete(9)
    images = np.arange(9 * 48).reshape(9, 4, 4, 3).astype(np.uint8)
    assert Dataset.from_arrays(**arrays | {"obs": images, "next_obs": images}).spec.image


def test_successors_come_from_the_next_row_and_unknown_ones_are_dropped():
    arrays = walk(lengths=(3, 2, 4), ends="tT.")
    del arrays["next_obs"]
    data = Dataset.from_arrays(**arrays)
    obs = arrays["obs"]
    assert data.meta["dropped_rows"] == 2
    assert data.lengths.tolist() == [3, 1, 3]
    np.testing.assert_array_equal(data.next_obs[:2], obs[1:3])
    np.testing.assert_array_equal(data.next_obs[2], obs[2])  # terminal: worth nothing
    np.testing.assert_array_equal(data.next_obs[3], obs[4])
    assert data.terminated.tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert data.truncated.tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert data.complete.tolist() == [True, True, False]


def test_dropping_a_whole_episode_keeps_the_others():
    arrays = walk(lengths=(2, 1), ends="tT")
    del arrays["next_obs"]
    data = Dataset.from_arrays(**arrays)
    assert data.lengths.tolist() == [2]
    assert data.terminated.tolist() == [False, True]
    assert not data.truncated.any()
    arrays = walk(lengths=(1, 1), ends="TT")
    del arrays["next_obs"]
    with pytest.raises(DataError, match="no row has a successor"):
        Dataset.from_arrays(**arrays)


def test_episodes_are_found_where_successors_do_not_follow():
    obs = np.arange(6.0)[:, None]
    next_obs = obs + 1
    next_obs[2] = 99.0
    zeros = np.zeros(6)
    data = Dataset.from_arrays(obs, np.tile([[0.1], [0.2]], (3, 1)), zeros, zeros, next_obs=next_obs)
    assert data.starts.tolist() == [0, 3]
    assert data.truncated.tolist() == [0, 0, 1, 0, 0, 0]


def test_starts_alone_mark_truncations():
    arrays = walk(ends="...") | {"truncated": None}
    data = Dataset.from_arrays(**arrays, starts=[0, 3, 5])
    assert np.flatnonzero(data.truncated).tolist() == [2, 4]


def test_canonical_scales_actions_and_flattens_observations():
    arrays = walk()
    space = spaces.Dict({"goal": spaces.Discrete(3, start=5), "pos": spaces.Box(-9, 9, (2,))})
    goal = np.array([5, 6, 7] * 3)
    obs = {"goal": goal, "pos": arrays["obs"]}
    arrays |= {"obs": obs, "next_obs": obs, "action": np.linspace(2, 6, 9)[:, None].astype(np.float32)}
    data = Dataset.from_arrays(**arrays, observation_space=space, action_space=spaces.Box(2, 6, (1,)))
    log = data.canonical()
    assert log.obs.shape == (9, 5) and log.obs.dtype == np.float32
    np.testing.assert_array_equal(log.obs[:, :3], np.eye(3)[goal - 5])
    np.testing.assert_allclose(log.action[:, 0], np.linspace(-1, 1, 9), atol=1e-6)
    assert log.canonical() is log and data.spec.dataset is log
    encoded = jax.vmap(data.spec.encode_obs)(obs)
    np.testing.assert_array_equal(log.obs, encoded)


def test_moments():
    arrays = walk() | {"obs": np.random.default_rng(1).normal(1e4, 2.0, (9, 2)).astype(np.float32)}
    data = Dataset.from_arrays(**arrays)
    np.testing.assert_allclose(data.mean, arrays["obs"].astype(float).mean(0), rtol=1e-6)
    np.testing.assert_allclose(data.std, arrays["obs"].astype(float).std(0), rtol=1e-4)
    tabular = Dataset.from_arrays(**walk() | {"obs": np.arange(9), "next_obs": np.arange(9)})
    with pytest.raises(SpaceMismatch, match="integers"):
        _ = tabular.mean


def test_windows_stop_at_the_end_of_the_episode():
    data = Dataset.from_arrays(**walk())
    found = data.windows(3, np.array([1, 5]))
    assert found.valid.tolist() == [[True, True, False], [True, True, True]]
    assert found.steps.reward.tolist() == [[1, 2, 2], [5, 6, 7]]
    assert found.time.tolist() == [[1, 2, 2], [0, 1, 2]]
    assert found.to_go.tolist() == [[3, 2, 2], [26, 21, 15]]
    whole = data.windows(6, data.starts)
    assert whole.valid.sum(1).tolist() == [3, 2, 4] and whole.time[2].tolist() == [0, 1, 2, 3, 3, 3]
    np.testing.assert_array_equal(whole.to_go[:, 0], data.returns)
    with pytest.raises(ConfigError, match="window"):
        data.windows(0, np.array([0]))


def test_subset_and_concat():
    data = Dataset.from_arrays(**walk())
    some = data.subset(episodes=[2, 0])
    assert some.lengths.tolist() == [4, 3]
    assert some.returns.tolist() == [26, 3]
    cut = data.subset(slice(1, 7))
    assert cut.lengths.tolist() == [2, 2, 2]
    assert cut.truncated.tolist() == [0, 1, 0, 0, 0, 1]
    both = Dataset.concat([data, some])
    assert both.lengths.tolist() == [3, 2, 4, 4, 3]
    assert both.returns.sum() == data.returns.sum() + some.returns.sum()
    with pytest.raises(ConfigError, match="exactly one"):
        data.subset([0], episodes=[0])
    other = Dataset.from_arrays(**walk() | {"action": np.array([0, 1, 2] * 3)})
    with pytest.raises(SpaceMismatch, match="action space"):
        Dataset.concat([data, other])


def test_lists_are_arrays():
    given = {name: column.tolist() for name, column in walk().items()}
    data = Dataset.from_arrays(**given)
    np.testing.assert_allclose(data.obs, walk()["obs"])
    assert data.lengths.tolist() == [3, 2, 4]
    parts = {"a": given["obs"], "b": given["reward"]}
    space = spaces.Dict({"a": spaces.Box(-9, 9, (2,)), "b": spaces.Box(-9, 9, ())})
    nested = Dataset.from_arrays(**given | {"obs": parts, "next_obs": parts}, observation_space=space)
    assert nested.canonical().obs.shape == (9, 3)


def test_concat_seals_an_unfinished_episode():
    data = Dataset.from_arrays(**walk(ends="Tt."))
    both = Dataset.concat([data, data])
    assert both.truncated[8] and not both.truncated[17]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": np.zeros((9, 1))}, r"reward has shape \(9, 1\), expected \(9,\); pass reward\[:, 0\]"),
        ({"obs": np.zeros(9)}, r"pass obs\[:, None\]"),
        ({"obs": np.zeros((8, 2))}, "obs has 8 rows, but reward has 9"),
        ({"terminated": np.full(9, 2)}, "terminated holds int64, expected booleans"),
        ({"action": np.array(["a"] * 9)[:, None]}, "action"),
        ({"reward": np.array([None] * 9)}, "reward holds object"),
        ({"reward": np.full(9, np.nan)}, r"reward holds NaN or Inf \(rows 0, 1, 2, 3, 4 and 4 more\)"),
        ({"action_space": spaces.Box(-0.1, 0.1, (1,))}, "action lies outside"),
        ({"starts": np.array([0, 5, 3])}, "starts does not increase"),
        ({"starts": np.array([0, -3])}, "starts lies outside"),
        ({"starts": np.array([0, 3])}, "ends an episode that `starts` says goes on"),
        ({"starts": np.array([0, 3, 5, 7])}, "neither terminated nor was truncated"),
        ({"starts": np.array([1, 3])}, "starts begins at row 1"),
        ({"reward": np.zeros(0)}, "reward is empty"),
        ({"obs": np.zeros((0, 2))}, "obs holds float64\\[0, 2\\], expected at least one row"),
    ],
)
def test_malformed_arrays_are_named(change, message):
    with pytest.raises(DataError, match=message):
        Dataset.from_arrays(**walk() | change)
