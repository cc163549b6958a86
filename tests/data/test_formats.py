"""Writing and reading every format, and what other libraries make of it."""

import builtins
import dataclasses
import json
import os
import zipfile

import h5py
import jax
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError, DataError, MissingExtra, UnknownName
from habitus.data.canonical import LazyColumn
from habitus.data.dataset import COLUMNS, Dataset
from habitus.data.formats import npz
from habitus.data.io import load, save
from habitus.data.source import DatasetSource

from .logs import KINDS, log

NAMES = {"npz": "log.npz", "d4rl": "log.hdf5", "minari": "log-v0", "lerobot": "robot", "rlds": "1.0.0"}


def assert_same(found, expected):
    for name in (*COLUMNS, "starts"):
        pairs = zip(jax.tree.leaves(getattr(found, name)), jax.tree.leaves(getattr(expected, name)), strict=True)
        for a, b in pairs:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    assert found.observation_space == expected.observation_space
    assert found.action_space == expected.action_space
    assert found.meta == expected.meta


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", NAMES)
def test_what_is_saved_is_loaded(kind, format, tmp_path):
    if format == "d4rl" and kind in ("dict", "tuple"):
        with pytest.raises(DataError, match="hold one observation array"):
            save(log(kind), tmp_path / NAMES[format], format=format)
        assert not list(tmp_path.iterdir())
        return
    path = save(log(kind), tmp_path / NAMES[format], format=format)
    assert_same(load(path), log(kind))


# --- npz


@pytest.mark.parametrize("kind", KINDS)
def test_mapped_columns_stay_on_disk(kind, tmp_path):
    path = save(log(kind), tmp_path / "log.npz")
    data = load(path, mmap=True)
    assert_same(data, log(kind))
    for name in COLUMNS:
        for leaf in jax.tree.leaves(getattr(data, name)):
            assert isinstance(leaf, np.memmap) and leaf.flags.aligned
    canonical = data.canonical()
    for name in ("obs", "action"):
        column, expected = getattr(canonical, name), getattr(log(kind).canonical(), name)
        assert isinstance(column, (np.memmap, LazyColumn))
        np.testing.assert_array_equal(column[:], expected)
        np.testing.assert_array_equal(column[np.array([[3, 1], [0, 2]])], expected[np.array([[3, 1], [0, 2]])])
    if kind != "discrete":
        np.testing.assert_allclose(data.mean, log(kind).mean, rtol=1e-6)
    for resident in (0, 2**30):
        draws = [
            DatasetSource(d, 8, window=3, resident=resident).draw((), None, jax.random.key(0))[1]
            for d in (data, log(kind))
        ]
        assert jax.tree.all(jax.tree.map(np.array_equal, *draws))
    assert_same(load(save(data, tmp_path / "again.npz")), log(kind))


def test_the_same_data_are_the_same_file(tmp_path):
    first, second = (save(log(), tmp_path / name).read_bytes() for name in ("a.npz", "b.npz"))
    assert first == second


def test_numpy_reads_what_we_write(tmp_path):
    path = save(log(), tmp_path / "log.npz")
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["observations"], log().obs)
        np.testing.assert_array_equal(file["episode_start"], [0, 5, 8])
        assert json.loads(file["header.json"])["meta"] == log().meta


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_we_read_what_numpy_writes(write, tmp_path):
    data = log()
    columns = {name: np.asarray(getattr(data, name)) for name in COLUMNS}
    columns["obs"] = np.asfortranarray(columns["obs"].astype(">f8"))
    write(tmp_path / "mine.npz", **columns)
    for mmap in (False, True):
        found = load(tmp_path / "mine.npz", mmap=mmap)
        np.testing.assert_array_equal(found.obs, data.obs)
        assert found.obs.dtype == np.float64 and found.canonical().obs.dtype == np.float32
        assert found.starts.tolist() == [0, 5, 8]
        assert found.action_space == spaces.Box(data.action.min(0), data.action.max(0))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save(log(), tmp_path / "log.npz")
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(npz.guard, "chunks", full)
    with pytest.raises(OSError, match="no space"):
        save(log(seed=1), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["log.npz"]


def test_sizes_are_compared_before_unpacking(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("observations", "actions", "rewards", "terminals"):
            archive.writestr(f"{name}.npy", bytes(2**20))
    with pytest.raises(DataError, match="bomb.npz: the arrays would take .* more than the limit"):
        load(tmp_path / "bomb.npz", limit=2**20)
    path = save(log(), tmp_path / "log.npz")
    with pytest.raises(DataError, match="limit"):
        load(path, limit=100, mmap=True)


def test_a_flipped_bit_is_found(tmp_path):
    path = save(log(), tmp_path / "log.npz")
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("rewards.npy")
    raw = bytearray(path.read_bytes())
    raw[npz._data_offset(path, info) + info.file_size - 1] ^= 1
    path.write_bytes(raw)
    for mmap in (False, True):
        with pytest.raises(DataError, match="log.npz cannot be read.*CRC-32"):
            load(path, mmap=mmap)


# --- Minari


@pytest.mark.parametrize("kind", KINDS)
def test_minari_reads_what_we_write(kind, tmp_path):
    import minari

    data = log(kind)
    theirs = minari.MinariDataset(save(data, tmp_path / "log-v0") / "data")
    assert theirs.total_episodes == 3 and theirs.total_steps == len(data)
    assert theirs.observation_space == data.observation_space and theirs.action_space == data.action_space
    for index, episode in enumerate(theirs.iterate_episodes()):
        ours = data.episode(index)
        for a, b in zip(jax.tree.leaves(episode.observations), jax.tree.leaves(ours.obs), strict=True):
            np.testing.assert_array_equal(a[:-1], b)
        for a, b in zip(jax.tree.leaves(episode.observations), jax.tree.leaves(ours.next_obs), strict=True):
            np.testing.assert_array_equal(a[1:], b)
        np.testing.assert_array_equal(episode.actions, ours.action)
        np.testing.assert_array_equal(episode.rewards, ours.reward)
        np.testing.assert_array_equal(episode.terminations, ours.terminated)
        np.testing.assert_array_equal(episode.truncations, ours.truncated)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_we_read_what_minari_writes(kind, tmp_path, monkeypatch):
    import minari
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data, buffers = log(kind), []
    for index in range(3):
        rows, last = slice(data.starts[index], data.ends[index] + 1), data.ends[index]
        joined = jax.tree.map(lambda a, b, r=rows, e=last: np.concatenate([a[r], b[[e]]]), data.obs, data.next_obs)
        columns = (column[rows] for column in (data.action, data.reward, data.terminated, data.truncated))
        buffers.append(EpisodeBuffer(None, index, None, joined, *columns))
    minari.create_dataset_from_buffers(
        "tests/log-v0",
        buffers,
        observation_space=data.observation_space,
        action_space=data.action_space,
        jpeg_encoding=False,
    )
    found = load(tmp_path / "tests" / "log-v0")
    assert found.meta == {"minari": "tests/log-v0"}
    assert_same(dataclasses.replace(found, meta=data.meta), data)


def test_minari_from_an_environment(tmp_path, monkeypatch):
    import gymnasium
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = minari.DataCollector(gymnasium.make("CartPole-v1"))
    env.action_space.seed(0)
    for seed in range(3):
        env.reset(seed=seed)
        while not any(env.step(env.action_space.sample())[2:4]):
            pass
    with pytest.warns(UserWarning):
        env.create_dataset("cartpole/random-v0", ref_min_score=20.0, ref_max_score=500.0)
    env.close()
    with pytest.warns(UserWarning, match="CartPole-v1: reward never changes"):
        found = load(tmp_path / "cartpole" / "random-v0")
    assert found.meta == {
        "minari": "cartpole/random-v0",
        "task": "CartPole-v1",
        "horizon": 500,
        "random_return": 20.0,
        "expert_return": 500.0,
    }
    assert found.spec.discrete and found.spec.horizon == 500
    assert found.complete.all() and found.returns.tolist() == found.lengths.tolist()


def test_jpeg_images_are_refused(tmp_path):
    path = save(log("image"), tmp_path / "log-v0")
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        del file["episode_0/observations"]
        ragged = file.create_dataset("episode_0/observations", (6,), h5py.vlen_dtype(np.uint8))
        ragged[0] = np.zeros(3, np.uint8)
    with pytest.raises(DataError, match="jpeg_encoding=False"):
        load(path)


def test_minari_needs_successors_that_follow(tmp_path):
    data = log()
    data.next_obs[1] += 1
    with pytest.raises(DataError, match="episode 0, step 1: the successor is not the next observation"):
        save(data, tmp_path / "log-v0")
    assert not list(tmp_path.iterdir())


def test_a_minari_folder_is_not_overwritten(tmp_path):
    path = save(log(), tmp_path / "log-v0")
    with pytest.raises(DataError, match="exists"):
        save(log(), path)


# --- D4RL


def test_d4rl_without_successors(tmp_path):
    data = log(ends="tTT")
    with h5py.File(tmp_path / "hopper_medium-v2.hdf5", "w") as file:
        file["observations"], file["actions"], file["rewards"] = data.obs, data.action, data.reward
        file["terminals"], file["timeouts"] = data.terminated, data.truncated
        file["infos/qpos"] = np.zeros(3)
    found = load(tmp_path / "hopper_medium-v2.hdf5")
    assert found.meta.pop("dropped_rows") == 2
    assert found.meta == {
        "task": "hopper",
        "split": "medium",
        "random_return": -20.272305,
        "expert_return": 3234.3,
    }
    kept = np.setdiff1d(np.arange(15), [7, 14])
    np.testing.assert_array_equal(found.obs, data.obs[kept])
    same = ~found.terminated
    np.testing.assert_array_equal(found.next_obs[same], data.next_obs[kept][same])


def test_arrays_in_other_files_are_refused(tmp_path):
    save(log(), tmp_path / "other.hdf5")
    path = save(log(), tmp_path / "log.hdf5")
    with h5py.File(path, "a") as file:
        del file["rewards"]
        file["rewards"] = h5py.ExternalLink("other.hdf5", "rewards")
    with pytest.raises(DataError, match="rewards is a link"):
        load(path)


# --- names and detection


def test_the_content_decides_not_the_name(tmp_path):
    for format, name in NAMES.items():
        save(log(), tmp_path / name, format=format)
        (tmp_path / name).rename(tmp_path / f"{format}.data")
        assert_same(load(tmp_path / f"{format}.data"), log())


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(UnknownName, match="did you mean pendulum-medium"):
        load("pendulum-mediun")
    with pytest.raises(DataError, match=r"log\.npz does not exist"):
        load(tmp_path / "log.npz")
    with pytest.raises(DataError, match="a folder without data/metadata.json"):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="neither npz nor HDF5, and no folder of"):
        load(tmp_path / "notes.txt")
    path = save(log(), tmp_path / "log.hdf5")
    with pytest.raises(ConfigError, match="only npz can be memory-mapped"):
        load(path, mmap=True)
    with pytest.raises(ConfigError, match="format is 'csv'"):
        save(log(), tmp_path / "log.csv", format="csv")
    with pytest.raises(ConfigError, match="format is 'csv'"):
        load(path, format="csv")


def test_hdf5_is_an_extra(tmp_path, monkeypatch):
    path = save(log(), tmp_path / "log.hdf5")
    importing = builtins.__import__

    def without_h5py(name, *args, **kwargs):
        if name == "h5py":
            raise ImportError
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_h5py)
    with pytest.raises(MissingExtra, match=r'pip install "habitus\[hdf5\]"'):
        load(path)


@pytest.mark.parametrize("name", ["costs.npz", "costs.hdf5", "costs-v0"])
def test_costs_go_with_a_log(name, tmp_path):
    plain = log()
    cost = np.random.default_rng(0).random((len(plain), 2)).astype(np.float32)
    data = dataclasses.replace(plain, cost=cost, meta=dict(plain.meta) | {"costs": ["heat", "noise"]})
    found = load(save(data, tmp_path / name))
    np.testing.assert_array_equal(found.cost, cost)
    assert found.costs == found.spec.costs == ("heat", "noise")
    np.testing.assert_array_equal(found.transitions(slice(2, 5)).cost, cost[2:5])
    assert plain.transitions(slice(2)).cost is None and plain.costs == ()
    both = Dataset.concat([found, found.subset(episodes=[0])])
    assert len(both.cost) == len(both)
    with pytest.raises(DataError, match="costs"):
        Dataset.concat([found, plain])


def test_costs_that_do_not_fit_are_refused():
    columns = {name: np.asarray(column) for name, column in log().columns.items()}
    single = Dataset.from_arrays(**columns, cost=columns["terminated"])
    assert single.cost.shape == (len(single), 1) and single.costs == ("cost",)
    for cost, said in ((np.zeros((3, 1)), "3 rows"), (np.zeros((15, 1, 1)), "expected real numbers")):
        with pytest.raises(DataError, match=f"cost.*{said}"):
            Dataset.from_arrays(**columns, cost=cost)
    with pytest.raises(DataError, match="cost holds NaN"):
        Dataset.from_arrays(**columns, cost=np.full(15, np.nan))
