"""The standard data sets: what they hold, that they are the same every time, and how they are cached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError, DataError, UnknownName
from habitus.data import maker
from habitus.data.behaviours import FollowWay, Spoilt, SwingUp
from habitus.data.dataset import COLUMNS, Dataset
from habitus.data.io import load
from habitus.data.maker import make_offline
from habitus.data.scores import normalised_score, reference_returns
from habitus.data.validate import check
from habitus.envs.registry import make

from .logs import log


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """One cache for the tests of this file, not the user's."""
    folder = tmp_path_factory.getbasetemp() / "standard"
    monkeypatch.setenv("HABITUS_CACHE", str(folder))
    return folder / "datasets"


def columns_of(data):
    return [np.asarray(getattr(data, name)) for name in (*COLUMNS, "starts")]


def test_pendulum_returns_are_those_of_the_recipes():
    """Against what independent roll-outs of the same controllers gave; tolerances are 4 standard errors."""
    expected = {"random": (-1249, 170), "medium": (-494, 110), "expert": (-158.5, 60), "replay": (-863, 150)}
    for split, (mean, tolerance) in expected.items():
        data = make_offline("pendulum", split)
        assert len(data) == 10_000 and (data.lengths == 200).all() and data.complete.all()
        assert data.returns.mean() == pytest.approx(mean, abs=tolerance)
        assert data.truncated.sum() == 50 and not data.terminated.any()
        assert check(data) == []


def test_pointmaze_splits_are_ordered():
    means = [make_offline("pointmaze", s, size=10_000).returns.mean() for s in ("random", "replay", "medium", "expert")]
    assert means == sorted(means) and means[0] < 5 and means[-1] > 130


def test_replay_improves_over_the_log():
    returns = make_offline("pendulum", "replay").returns.reshape(5, 10).mean(1)
    assert returns[-1] - returns[0] > 400


def test_medium_expert_is_half_and_half():
    data, expert = (make_offline("pointmaze", split, size=10_000) for split in ("medium-expert", "expert"))
    assert len(data) == 10_000
    assert data.returns[25:].mean() == pytest.approx(expert.returns.mean(), abs=3)
    assert data.returns[:25].mean() < expert.returns.mean() - 20


def test_narrow_is_few_good_and_few_random_episodes():
    data = make_offline("pendulum", "narrow")
    assert len(data.starts) == 20
    assert (data.returns[:10] > -450).all() and (data.returns[10:] < -450).all()


def test_the_same_again_and_from_the_cache(cache):
    first = make_offline("pendulum", "medium", seed=3, size=600)
    files = list(cache.glob("pendulum-medium-*"))
    again = make_offline("pendulum", "medium", seed=3, size=600)
    anew = maker._make("pendulum", "medium", 3, 600)
    for other in (again, anew):
        assert all(map(np.array_equal, columns_of(first), columns_of(other))) and first.meta == other.meta
    assert list(cache.glob("pendulum-medium-*")) == files
    other_seed = make_offline("pendulum", "medium", seed=4, size=600)
    assert not np.array_equal(first.obs, other_seed.obs)


def test_every_part_of_the_key_counts():
    keys = [
        maker._digest("pendulum", s, seed, size) for s in ("medium", "replay") for seed in (0, 1) for size in (5, 6)
    ]
    assert len(set(keys)) == len(keys)


def test_a_damaged_cache_is_made_again(cache):
    data = make_offline("pendulum", "random", seed=9, size=400)
    (path,) = cache.glob(f"pendulum-random-{maker._digest('pendulum', 'random', 9, 400)}.npz")
    path.write_bytes(path.read_bytes()[:1000])
    again = make_offline("pendulum", "random", seed=9, size=400)
    assert all(map(np.array_equal, columns_of(data), columns_of(again)))
    assert len(load(path)) == 400


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HABITUS_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be written"):
        assert len(make_offline("pendulum", "random", size=200)) == 200


def test_another_process_may_make_the_same_set_meanwhile(cache, monkeypatch):
    making = maker._make

    def overtaken(*key):
        monkeypatch.setattr(maker, "_make", making)
        other = make_offline("pendulum", "random", seed=11, size=400)
        mapped = load(next(cache.glob(f"*{maker._digest('pendulum', 'random', 11, 400)}*")), mmap=True)
        readers.append((other, mapped))
        return making(*key)

    readers = []
    monkeypatch.setattr(maker, "_make", overtaken)
    data = make_offline("pendulum", "random", seed=11, size=400)
    ((other, mapped),) = readers  # what the other has open stays whole when its file is replaced
    for found in (other, mapped):
        assert all(map(np.array_equal, columns_of(data), columns_of(found)))
    assert all(path.suffix == ".npz" for path in cache.iterdir())


def test_names_load():
    assert load("pendulum-narrow").meta["split"] == "narrow"
    assert "pointmaze-medium-expert" in maker.names()
    with pytest.raises(UnknownName, match="did you mean medium"):
        make_offline("pendulum", "medum")
    with pytest.raises(UnknownName, match="did you mean pendulum"):
        make_offline("pendulumm", "medium")
    with pytest.raises(ConfigError, match="size is -1"):
        make_offline("pendulum", "medium", size=-1)


def test_scores():
    data = make_offline("pendulum", "medium", size=600)
    low, high = reference_returns(data)
    assert (low, high) == reference_returns("pendulum") == (data.meta["random_return"], data.meta["expert_return"])
    np.testing.assert_allclose(normalised_score(data, [low, high, (low + high) / 2]), [0, 100, 50])
    assert 40 < normalised_score(data, data.returns).mean() < 90
    assert normalised_score("hopper", 3234.3) == pytest.approx(100)
    assert normalised_score("walker2d", 1.629008) == pytest.approx(0)
    with pytest.raises(UnknownName, match="halfcheetah"):
        normalised_score("halfcheeta", 1.0)
    nameless, flat = (Dataset(**{**_fields(log()), "meta": meta}) for meta in ({}, FLAT))
    with pytest.raises(DataError, match="add random_return and expert_return"):
        normalised_score(nameless, 1.0)
    with pytest.raises(DataError, match="both 1.0, so nothing lies between"):
        normalised_score(flat, 1.0)


FLAT = {"random_return": 1.0, "expert_return": 1.0}


def _fields(data):
    spaces = {name: getattr(data, name) for name in ("observation_space", "action_space")}
    return {name: getattr(data, name) for name in (*COLUMNS, "starts")} | spaces


# --- behaviours


def test_swing_up_holds_upright_and_pumps_elsewhere():
    act = SwingUp()
    key = jax.random.key(0)
    upright, _ = act(jnp.array([1.0, 0.0, 0.0]), (), key)
    np.testing.assert_allclose(upright, [0.0], atol=1e-6)
    leaning, _ = act(jnp.array([np.cos(0.1), np.sin(0.1), 0.0], jnp.float32), (), key)
    np.testing.assert_allclose(leaning, [-1.5], rtol=1e-5)
    hanging, _ = act(jnp.array([-1.0, 0.0, 0.5]), (), key)
    np.testing.assert_allclose(hanging, [2.0])
    too_fast, _ = act(jnp.array([-1.0, 0.0, 8.0]), (), key)
    np.testing.assert_allclose(too_fast, [-2.0])


def test_follow_way_goes_to_the_next_cell_and_stops_at_the_goal():
    maze = make("pointmaze").env
    act = FollowWay.through(maze)
    start, goal = maze.centre("S"), maze.centre("G")
    at_start = jnp.concatenate([jnp.asarray(start), jnp.zeros(2), jnp.asarray(goal)])
    np.testing.assert_allclose(act(at_start, (), jax.random.key(0))[0], [1.0, 0.0], atol=1e-6)
    at_goal = jnp.concatenate([jnp.asarray(goal) + 0.1, jnp.zeros(2), jnp.asarray(goal) + 0.1])
    np.testing.assert_allclose(act(at_goal, (), jax.random.key(0))[0], 0.0, atol=1e-6)


def test_spoilt_controllers():
    low, high = jnp.array([-2.0]), jnp.array([2.0])
    obs, keys = jnp.array([np.cos(0.1), np.sin(0.1), 0.0], jnp.float32), jax.random.split(jax.random.key(0), 4000)

    def actions(**how):
        return np.asarray(jax.vmap(lambda key: Spoilt(SwingUp(), low, high, **how)(obs, (), key)[0])(keys))

    np.testing.assert_allclose(actions(gain=0.4), -0.6, rtol=1e-5)
    noisy = actions(noise=0.3)
    assert noisy.mean() == pytest.approx(-1.5, abs=0.03) and noisy.std() == pytest.approx(0.28, abs=0.03)
    uniform = actions(random_share=1.0)
    assert uniform.std() == pytest.approx(4 / np.sqrt(12), abs=0.05) and abs(uniform).max() <= 2
    assert (actions(random_share=0.5) == actions()).mean() == pytest.approx(0.5, abs=0.05)
