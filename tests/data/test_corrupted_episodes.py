"""Damaged folders of LeRobot and RLDS: each is refused with the file or record and its defect."""

import json
import shutil
import struct

import numpy as np
import pyarrow.parquet as pq
import pytest

from habitus.core.errors import DataError
from habitus.data.dataset import COLUMNS
from habitus.data.formats import tfrecord
from habitus.data.io import convert, load, save

from .logs import log
from .test_corrupted import refused

SEEDS = 14


def edit(path, name, change):
    """Changes a JSON file of a folder."""
    file = path / name
    described = json.loads(file.read_text())
    change(described)
    file.write_text(json.dumps(described))


def rewrite(path, name, **columns):
    """Replaces columns of a Parquet table; None removes one."""
    table = pq.read_table(path / name)
    for column, values in columns.items():
        at = table.column_names.index(column)
        table = table.remove_column(at) if values is None else table.set_column(at, column, [values])
    pq.write_table(table, path / name)


DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
INDEX = np.concatenate([np.arange(n) for n in (5, 3, 7)])


@pytest.mark.parametrize(
    ("spoil", "pattern"),
    [
        (lambda p: edit(p, "meta/info.json", lambda d: d.update(total_frames=14)), "hold 15 frames .* says 14 of 3"),
        (lambda p: edit(p, "meta/info.json", lambda d: d.update(total_episodes=2**60)), "15 frames of 3 episodes"),
        (lambda p: edit(p, "meta/info.json", lambda d: d.pop("features")), "meta/info.json is damaged"),
        (lambda p: edit(p, "meta/info.json", lambda d: d.update(features=[])), "meta/info.json is damaged"),
        (lambda p: edit(p, "meta/info.json", lambda d: d.update(codebase_version="v1.6")), "version is v1.6, expected"),
        (lambda p: edit(p, "meta/info.json", lambda d: d["features"].pop("action")), "needs action and an observation"),
        (
            lambda p: edit(p, "meta/info.json", lambda d: d["features"]["action"].update(shape=[2**40])),
            "file-000.parquet: action holds 30 numbers, expected 15 frames of .1099511627776",
        ),
        (
            lambda p: edit(p, "meta/info.json", lambda d: d["features"]["observation.state"].update(dtype="video")),
            "needs action and an observation that is no video",
        ),
        (lambda p: rewrite(p, DATA, action=None), "file-000.parquet"),
        (lambda p: rewrite(p, DATA, action=[["a", "b"]] * 15), "file-000.parquet"),
        (lambda p: rewrite(p, DATA, **{"next.reward": [None] + [1.0] * 14}), "next.reward is missing in 1 frames"),
        (lambda p: rewrite(p, DATA, **{"next.reward": [np.nan] * 15}), "reward holds NaN or Inf"),
        (lambda p: rewrite(p, DATA, frame_index=np.roll(INDEX, 1)), "row 0: frame_index 6 .* does not follow"),
        (lambda p: rewrite(p, DATA, episode_index=[0] * 15), "row 5: frame_index 0 of episode_index 0 does not follow"),
        (lambda p: rewrite(p, EPISODES, **{"final/observation.state": None}), "chunk-000/file-000.parquet"),
        (lambda p: pq.write_table(pq.read_table(p / EPISODES)[:2], p / EPISODES), "2 final observations, expected"),
        (lambda p: shutil.rmtree(p / "data"), "data holds no tables such as"),
        (lambda p: (p / "meta/habitus.json").write_text("{}"), "its header is damaged"),
        (lambda p: (p / "meta/info.json").write_text("nothing"), "damaged|cannot be read"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_spoilt_lerobot_folders(spoil, pattern, tmp_path):
    path = save(log(), tmp_path / "robot", format="lerobot")
    spoil(path)
    refused(path, pattern)


@pytest.mark.parametrize(
    ("spoil", "pattern"),
    [
        (
            lambda p: edit(p, "dataset_info.json", lambda d: d["splits"][0].update(shardLengths=["4"])),
            "3 episodes, .* 4",
        ),
        (
            lambda p: edit(p, "dataset_info.json", lambda d: d["splits"][0].update(shardLengths=["1", "2"])),
            "has 1 files",
        ),
        (lambda p: edit(p, "dataset_info.json", lambda d: d.update(fileFormat="riegeli")), "format is riegeli"),
        (lambda p: edit(p, "dataset_info.json", lambda d: d.update(splits=3)), "dataset_info.json is damaged"),
        (lambda p: edit(p, "features.json", lambda d: d.clear()), "describes no steps"),
        (lambda p: edit(p, "features.json", lambda d: features(d).pop("reward")), "the steps lack reward"),
        (lambda p: edit(p, "features.json", lambda d: dims(d, "action", ["3"])), "record 0: steps/action holds 12 num"),
        (lambda p: edit(p, "features.json", lambda d: dims(d, "action", [str(2**62)])), "record 0: steps/action holds"),
        (lambda p: edit(p, "features.json", lambda d: dims(d, "action", ["x"])), "features.json .*is damaged"),
        (
            lambda p: edit(p, "features.json", lambda d: features(d)["action"]["tensor"].update(encoding="zlib")),
            "record 0: steps/action holds 12 numbers, expected .* encoding zlib",
        ),
        (lambda p: (p / "habitus.json").write_text("[]"), "its header is damaged"),
    ],
)
def test_spoilt_rlds_folders(spoil, pattern, tmp_path):
    path = save(log(), tmp_path / "1.0.0")
    spoil(path)
    refused(path, pattern)


def features(described):
    steps = described["featuresDict"]["features"]["steps"]
    return steps["sequence"]["feature"]["featuresDict"]["features"]


def dims(described, name, dimensions):
    features(described)[name]["tensor"]["shape"]["dimensions"] = dimensions


def shard_of(path):
    return next(path.glob("*.tfrecord-*"))


def rewrite_records(path, change):
    """Replaces the features of each record, with sound checksums."""
    found = [tfrecord.read_example(data) for _, data in tfrecord.records(shard_of(path))]
    with shard_of(path).open("wb") as file:
        for number, features in enumerate(found):
            change(number, features)
            tfrecord.write_record(file, tfrecord.write_example(features))


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda n, f: n != 1 or f.pop("steps/reward"), "record 1: steps/reward is missing"),
        (lambda n, f: n != 1 or f.pop("steps/is_terminal"), "record 1: steps/is_terminal is missing"),
        (lambda n, f: n != 2 or f.update({"steps/action": f["steps/action"][:-1]}), "record 2: steps/action holds 15"),
        (lambda n, f: n != 1 or f.update({"steps/action": [b"text"]}), "record 1: steps/action holds 1 strings"),
        (lambda n, f: f.update({"steps/is_terminal": f["steps/is_terminal"] | 1}), "record 0: step 0 of 6 is terminal"),
        (lambda n, f: f.update({"steps/reward": f["steps/reward"] * np.nan}), "reward holds NaN or Inf"),
    ],
)
def test_spoilt_records(change, pattern, tmp_path):
    path = save(log(), tmp_path / "1.0.0")
    rewrite_records(path, change)
    refused(path, pattern)


def test_spoilt_images(tmp_path):
    path = save(log("image"), tmp_path / "1.0.0")

    def change(number, features):
        images = features["steps/observation"]
        features["steps/observation"] = [images[0], images[1][:40], *images[2:]] if number == 1 else images

    rewrite_records(path, change)
    refused(path, "record 1: an image is damaged|truncated")
    rewrite_records(path, lambda n, f: f.update({"steps/observation": [b"GIF89a"] * len(f["steps/observation"])}))
    refused(path, "record 0: an image is damaged")


def test_any_changed_byte_of_a_record_is_found(tmp_path):
    path = save(log(), tmp_path / "1.0.0")
    shard = shard_of(path)
    raw = shard.read_bytes()
    for seed in range(10 * SEEDS):
        rng = np.random.default_rng(seed)
        changed = bytearray(raw)
        changed[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
        shard.write_bytes(changed)
        refused(path, r"tfrecord-00000-of-00001: record \d (is damaged|is truncated)")


def test_truncated_records(tmp_path):
    path = save(log(), tmp_path / "1.0.0")
    shard = shard_of(path)
    raw = shard.read_bytes()
    ends = {0}
    for _, data in tfrecord.records(shard):
        ends.add(max(ends) + len(data) + 16)
    for seed in range(4 * SEEDS):
        size = int(np.random.default_rng(seed).integers(len(raw)))
        shard.write_bytes(raw[:size])
        refused(path, "hold . episodes" if size in ends else r"record \d is truncated")


def test_a_length_is_compared_with_the_file(tmp_path):
    path = save(log(), tmp_path / "1.0.0")
    head = struct.pack("<Q", 2**63 - 1)
    raw = shard_of(path).read_bytes()
    shard_of(path).write_bytes(head + struct.pack("<I", tfrecord.crc(head)) + raw[12:])
    refused(path, "record 0 is truncated: it declares 9223372036854775807 bytes")


def test_bytes_that_are_no_message(tmp_path):
    """Sound records of anything: refused, or read as what they happen to say; nothing else is raised."""
    path = save(log(), tmp_path / "1.0.0")
    sound = [data for _, data in tfrecord.records(shard_of(path))]
    for seed in range(20 * SEEDS):
        rng = np.random.default_rng(seed)
        changed = bytearray(sound[0])
        for _ in range(int(rng.integers(1, 4))):
            changed[rng.integers(len(changed))] = rng.integers(256)
        with shard_of(path).open("wb") as file:
            for data in (changed[: rng.integers(1, len(changed))] if seed % 3 == 0 else changed, *sound[1:]):
                tfrecord.write_record(file, bytes(data))
        try:
            assert len(load(path, validate=False)) > 0
        except DataError as error:
            assert str(path) in str(error)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [DATA, EPISODES])
def test_damaged_tables(name, tmp_path):
    """Parquet has no checksum of its own values: a changed byte is found, or read as another value; nothing else."""
    path, sound = save(log(), tmp_path / "robot", format="lerobot"), log()
    raw = (path / name).read_bytes()
    for seed in range(5 * SEEDS):
        rng = np.random.default_rng(seed)
        changed = bytearray(raw)
        changed[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
        (path / name).write_bytes(raw[: rng.integers(len(raw))] if seed % 3 == 0 else changed)
        try:
            found = load(path, validate=False)
        except DataError as error:
            assert str(path) in str(error)
        else:
            assert seed % 3 and all(len(getattr(found, column)) == len(sound) for column in COLUMNS)


def test_a_spoilt_source_leaves_nothing_of_the_target(tmp_path):
    path = save(log(), tmp_path / "1.0.0")
    raw = shard_of(path).read_bytes()
    shard_of(path).write_bytes(raw[:-5])
    for format in ("npz", "d4rl", "minari", "lerobot", "rlds"):
        with pytest.raises(DataError, match="record 2 is truncated"):
            convert(path, tmp_path / "out" / "log", format=format)
        assert not list((tmp_path / "out").iterdir())
