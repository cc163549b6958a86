"""Sets that `tensorflow-datasets` and `lerobot` wrote, and the messages and layouts that these could have written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces

from habitus.core.errors import DataError
from habitus.data.formats import tfrecord
from habitus.data.formats.images import pixels, png
from habitus.data.io import convert, load, save

from .logs import log
from .test_formats import assert_same

OTHERS = Path(__file__).parent / "others"


def test_what_tfds_writes():
    with pytest.warns(UserWarning, match="not read, as they are no numbers of one shape: boxed, language_instruction"):
        found = load(OTHERS / "tfds" / "1.0.0")
    by_episode = {int(found.obs["state"][start, 0]) // 100: start for start in found.starts}
    assert sorted(by_episode) == [0, 1] and found.lengths.sum() == 6  # the third has one step: no transition
    assert found.meta == {"dropped_rows": 1}
    for episode, steps in ((0, 4), (1, 2)):
        rows = slice(by_episode[episode], by_episode[episode] + steps)
        at = np.arange(steps)
        np.testing.assert_array_equal(found.obs["state"][rows], np.repeat(100.0 * episode + at, 3).reshape(-1, 3))
        np.testing.assert_array_equal(found.next_obs["state"][rows][:, 0], 100 * episode + at + 1)
        np.testing.assert_array_equal(found.reward[rows], at)
        np.testing.assert_array_equal(found.action[rows], np.stack([at, at], 1))
        for name in ("zl", "by"):  # packed by zlib, and as bytes
            np.testing.assert_array_equal(found.obs[name][rows][:, 0, 0], -at)
        assert (found.obs["bytes"] == 200).all() and found.obs["cls"][rows].tolist() == at.tolist()
        assert found.terminated[rows].tolist() == [False] * (steps - 1) + [episode == 0]
        assert found.truncated[rows].tolist() == [False] * (steps - 1) + [episode == 1]
    assert found.observation_space["image"] == spaces.Box(0, 255, (4, 5, 3), np.uint8)
    assert found.observation_space["cls"] == spaces.Discrete(4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_lerobot_writes():
    found = load(OTHERS / "lerobot")
    assert found.meta == {"fps": 10, "dropped_rows": 2} and found.starts.tolist() == [0, 4, 7]
    states = [0, 1, 2, 3, 10, 11, 12, 20, 21, 22]
    assert found.obs["state"][:, 0].tolist() == states
    assert found.next_obs["state"][:, 2].tolist() == [1, 2, 3, 4, 11, 12, 12, 21, 22, 23]
    assert found.obs["images"]["top"].shape == (10, 4, 5, 3) and found.obs["images"]["top"][3].max() == 3
    np.testing.assert_array_equal(found.obs["mat"][1], [[1, 2], [3, 4]])
    assert np.flatnonzero(found.terminated).tolist() == [6] and np.flatnonzero(found.truncated).tolist() == [3, 9]
    assert found.obs["grip"].shape == (10, 1) and found.reward.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_version_2_is_read(tmp_path):
    """A file for each episode, and JSON lines in place of the tables of meta/."""
    shutil.copytree(OTHERS / "lerobot", tmp_path / "v3")
    frames = pq.read_table(next((tmp_path / "v3" / "data").glob("*/*.parquet")))
    old = tmp_path / "v21"
    (old / "meta").mkdir(parents=True)
    (old / "data" / "chunk-000").mkdir(parents=True)
    for episode, (start, length) in enumerate(((0, 5), (5, 3), (8, 4))):
        pq.write_table(frames.slice(start, length), old / "data" / "chunk-000" / f"episode_{episode:06d}.parquet")
    info = json.loads((tmp_path / "v3" / "meta" / "info.json").read_text())
    info |= {
        "codebase_version": "v2.1",
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    }
    (old / "meta" / "info.json").write_text(json.dumps(info))
    assert_same(load(old), load(tmp_path / "v3"))


@pytest.mark.filterwarnings("ignore:.*next_obs is not")
def test_videos_and_texts_are_named_and_left_out(tmp_path):
    path = save(log("dict"), tmp_path / "robot", format="lerobot")
    info = json.loads((path / "meta" / "info.json").read_text())
    info["features"] |= {
        "observation.images.front": {"dtype": "video", "shape": [3, 8, 8], "names": None},
        "language": {"dtype": "string", "shape": [1], "names": None},
    }
    (path / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.warns(UserWarning, match=r"not read: observation.images.front \(video\), language \(string\); videos"):
        assert_same(load(path), log("dict"))


def test_without_rewards_a_warning_says_so(tmp_path):
    path = save(log(), tmp_path / "robot", format="lerobot")
    info = json.loads((path / "meta" / "info.json").read_text())
    del info["features"]["next.reward"]
    (path / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.warns(UserWarning) as caught:
        assert not load(path).reward.any()
    assert any("no next.reward, so every reward is 0" in str(one.message) for one in caught)


def test_what_we_write_for_lerobot(tmp_path):
    """The tables and descriptions that its documentation and its own sets have."""
    path = save(log("image"), tmp_path / "robot", format="lerobot")
    info, theirs = (json.loads((p / "meta" / "info.json").read_text()) for p in (path, OTHERS / "lerobot"))
    assert set(theirs) <= set(info) and info["codebase_version"] == theirs["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["splits"]) == (3, 15, {"train": "0:3"})
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        assert info["features"][name] | {"fps": 0} == theirs["features"][name] | {"fps": 0}
    assert info["features"]["observation.image"]["dtype"] == "image"
    frames, foreign = (pq.read_table(next((p / "data").glob("*/*.parquet"))) for p in (path, OTHERS / "lerobot"))
    image = foreign.schema.field("observation.images.top").type
    assert frames.schema.field("observation.image").type == image
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index", "next.reward", "next.done"):
        assert frames.schema.field(name).type == foreign.schema.field(name).type, name
    assert frames.column("index").to_pylist() == list(range(15))
    episodes, known = (
        pq.read_table(next((p / "meta/episodes").glob("*/*.parquet"))) for p in (path, OTHERS / "lerobot")
    )
    plain = {name for name in known.column_names if not name.startswith("stats/")}
    assert plain <= set(episodes.column_names)
    assert episodes.column("dataset_from_index").to_pylist() == [0, 5, 8]
    for name in plain - {"tasks"}:
        assert episodes.schema.field(name).type == known.schema.field(name).type, name
    stats = json.loads((path / "meta" / "stats.json").read_text())
    np.testing.assert_allclose(stats["action"]["mean"], log("image").action.mean(0), rtol=1e-5)
    assert np.shape(stats["observation.image"]["mean"]) == (3, 1, 1) and stats["action"]["count"] == [15]
    tasks = pq.read_table(path / "meta" / "tasks.parquet").to_pandas()
    assert tasks.index.tolist() == ["test"] and tasks.task_index.tolist() == [0]


def test_large_files_are_split_at_episodes(tmp_path, monkeypatch):
    from habitus.data.formats import lerobot_writer, rlds_writer

    monkeypatch.setattr(lerobot_writer, "MEGABYTES", 0)
    monkeypatch.setattr(rlds_writer, "SHARD", 1)
    data = log(lengths=(4, 3, 5, 2), ends="tTtT")
    for format in ("lerobot", "rlds"):
        path = save(data, tmp_path / format, format=format)
        files = list(path.glob("data/*/*.parquet")) + list(path.glob("*.tfrecord-*"))
        assert len(files) == 4 and not any(file.name.isdigit() for file in files)
        assert_same(load(path), data)
        assert_same(load(convert(path, tmp_path / f"{format}.npz")), data)


# --- the messages of TFRecord


def test_checksums_and_integers():
    assert tfrecord.crc(b"123456789") == (((0xE3069283 >> 15) | (0xE3069283 << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    rng = np.random.default_rng(0)
    for values in ([0], [1, 0, 1], [-1, 127, 128, 300, 2**63 - 1, -(2**63)], rng.integers(-(2**63), 2**63 - 1, 500)):
        written = tfrecord.write_example({"a": np.array(values, np.int64)})
        np.testing.assert_array_equal(tfrecord.read_example(written)["a"], np.array(values, np.int64))
    assert tfrecord.read_example(tfrecord.write_example({"t": [b"", b"ab"], "f": np.float32([1.5])}))["t"] == [
        b"",
        b"ab",
    ]


def test_sequence_examples_and_unpacked_numbers():
    def field(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    def entry(name, feature):
        return field(1, field(1, name) + field(2, feature))

    unpacked = field(3, bytes([1 << 3, 5, 1 << 3, 7]))  # two integers, each with a key of its own
    context = field(1, entry(b"id", unpacked))
    steps = [field(2, field(1, np.float32([t]).tobytes())) for t in (1, 2)]
    lists = field(2, entry(b"reward", b"".join(field(1, step) for step in steps)))
    found = tfrecord.read_example(context + lists)
    assert found["id"].tolist() == [5, 7] and found["reward"].tolist() == [1, 2]
    with pytest.raises(DataError, match="no tf.train.Example"):
        tfrecord.read_example(context[:-1])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_survive_png(channels):
    image = np.random.default_rng(0).integers(0, 256, (6, 7, channels), dtype=np.uint8)
    np.testing.assert_array_equal(pixels(png(image), image.shape), image)
    with pytest.raises(DataError, match="6 x 7 pixels, expected"):
        pixels(png(image), (7, 6, channels))
