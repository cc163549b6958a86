"""Hundreds of damaged files: each is refused with its name and its defect, none crashes, hangs or loads.

A corruption takes the columns of a sound log (or the bytes of a sound file) and a random generator,
and spoils them in one of the ways in which files go bad.
"""

import json
import re
import struct
import time
import zipfile
import zlib

import h5py
import numpy as np
import pytest

from habitus.core.errors import DataError
from habitus.data.dataset import COLUMNS
from habitus.data.formats.guard import FIELDS, header_of
from habitus.data.formats.npz import _data_offset
from habitus.data.io import load, save

from .logs import log

SEEDS = 14
SECONDS = 5.0  # that one file may take; far above what it does, far below a hang


def sound_columns(seed):
    """The columns of a sound log under their names in files."""
    rng = np.random.default_rng(seed)
    lengths = tuple(int(n) for n in rng.integers(2, 9, 5))
    data = log("box", lengths, "tTTtT", seed)
    return {FIELDS[name]: getattr(data, name) for name in (*COLUMNS, "starts")}, header_of(data)


def write_npz(path, columns, header, compress=False):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        if header is not None:
            archive.writestr("header.json", header)
        for name, column in columns.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(column), allow_pickle=True)


def write_hdf5(path, columns, header):
    with h5py.File(path, "w") as file:
        if header is not None:
            file["habitus"] = np.frombuffer(header.encode(), np.uint8)
        for name, column in columns.items():
            column = np.asarray(column)
            text = column.dtype.kind in "UO"
            file.create_dataset(name, data=column.astype(bytes) if text else column)


WRITERS = {"npz": write_npz, "hdf5": write_hdf5}
REAL = ("observations", "actions", "rewards", "next_observations")


# --- spoilt columns: each returns a pattern that the message must match


def nan_rows(columns, rng):
    name = rng.choice(REAL)
    row = rng.integers(len(columns["rewards"]))
    columns[name] = columns[name].copy()
    columns[name].reshape(len(columns[name]), -1)[row, 0] = rng.choice([np.nan, np.inf, -np.inf])
    return rf"holds NaN or Inf \(row {row}\)"


def wrong_type(columns, rng):
    name = rng.choice([*REAL, "terminals"])
    dtype = rng.choice(["U3", "c8", "S4"])
    columns[name] = columns[name].astype(dtype)
    return rf"{name}.* holds .*(<U3|complex64|S\d|object)"


def objects(columns, rng):
    name = rng.choice(REAL)
    columns[name] = columns[name].astype(object)
    return rf"{name}.* holds .*expected plain numbers"


def negative_lengths(columns, rng):
    starts = columns["episode_start"].copy()
    one = rng.integers(1, len(starts))
    starts[one] = starts[one - 1] - rng.integers(0, starts[one - 1] + 1)
    columns["episode_start"] = starts
    return "starts does not increase: episodes overlap or have no length"


def starts_outside(columns, rng):
    starts = columns["episode_start"].copy()
    starts[rng.integers(len(starts))] = rng.choice([-1, -(2**40), len(columns["rewards"]), 2**40])
    columns["episode_start"] = starts
    return "starts lies outside"


def shuffled_starts(columns, rng):
    starts = columns["episode_start"]
    order = np.roll(np.arange(len(starts)), rng.integers(1, len(starts)))
    columns["episode_start"] = starts[order]
    return "starts (begins at row|does not increase)"


def shuffled_ends(columns, rng):
    shift = rng.integers(1, 2)
    for name in ("terminals", "timeouts"):
        columns[name] = np.roll(columns[name], -shift)
    return "ends an episode that `starts` says goes on.*|neither terminated nor was truncated"


def missing_ends(columns, rng):
    ends = np.append(columns["episode_start"][1:], len(columns["rewards"])) - 1
    end = rng.choice(ends[:-1])
    for name in ("terminals", "timeouts"):
        columns[name] = columns[name].copy()
        columns[name][end] = False
    return rf"neither terminated nor was truncated \(row {end}\)"


def mismatched_lengths(columns, rng):
    name = rng.choice([*REAL, "terminals", "timeouts"])
    columns[name] = columns[name][: -rng.integers(1, 4)]
    return "rows, but reward has"


def wrong_shape(columns, rng):
    name = rng.choice(["observations", "actions", "rewards", "terminals", "timeouts"])
    columns[name] = columns[name][..., None]
    return r"has shape .*, expected \("


def flat_observations(columns, rng):
    columns["observations"] = columns["observations"].ravel()
    return r"obs has shape \(\d+,\), expected"


def wrong_flags(columns, rng):
    name = rng.choice(["terminals", "timeouts"])
    columns[name] = columns[name].astype(rng.choice(["i4", "f4"]))
    columns[name][rng.integers(len(columns[name]))] = rng.choice([2, -1, 7])
    return "(terminated|truncated) holds .*, expected booleans"


def wrong_names(columns, rng):
    name = rng.choice(["observations", "actions", "rewards", "terminals"])
    columns[f"my_{name}"] = columns.pop(name)
    return f"lacks {name}; it holds"


def actions_outside(columns, rng):
    row = rng.integers(len(columns["rewards"]))
    columns["actions"] = columns["actions"].copy()
    columns["actions"][row, rng.integers(2)] = rng.choice([-2.5, 3.5, 1e9])
    return rf"action lies outside Box.* \(row {row}\)"


def empty(columns, rng):
    for name in columns:
        columns[name] = columns[name][:0]
    return "empty|at least one row"


def scalars(columns, rng):
    name = rng.choice(["observations", "rewards", "terminals", "episode_start"])
    columns[name] = np.array(1.0)
    return r"has shape \(\)|has 1 rows|expected integers|holds float64|obs"


SPOILT_COLUMNS = [
    nan_rows,
    wrong_type,
    objects,
    negative_lengths,
    starts_outside,
    shuffled_starts,
    shuffled_ends,
    missing_ends,
    mismatched_lengths,
    wrong_shape,
    flat_observations,
    wrong_flags,
    wrong_names,
    actions_outside,
    empty,
    scalars,
]


# --- spoilt files


def truncated(path, rng):
    raw = path.read_bytes()
    path.write_bytes(raw[: rng.integers(0, len(raw))])
    return "truncated"


def other_content(path, rng):
    path.write_bytes(rng.choice([b"", b"hello", b"\x80\x04\x95pickle", rng.bytes(500)]))
    return "truncated, or something else"


def damaged_header(path, rng):
    broken = rng.choice(
        [
            "not json",
            "[]",
            "{}",
            '{"observation_space": 3, "action_space": {}, "meta": {}}',
            json.dumps({k: {"kind": "Box", "low": [0], "high": [1], "shape": [10**9]} for k in SPACES} | {"meta": {}}),
            json.dumps({k: {"kind": "Text"} for k in SPACES} | {"meta": {}}),
        ]
    )
    columns, _ = sound_columns(0)
    WRITERS[path.suffix[1:]](path, columns, str(broken))
    return "its header is damaged"


SPACES = ("observation_space", "action_space")
SPOILT_FILES = [truncated, other_content, damaged_header]


def refused(path, pattern, **options):
    before = time.perf_counter()
    with pytest.raises(DataError) as caught:
        load(path, **options)
    assert time.perf_counter() - before < SECONDS
    message = str(caught.value)
    assert str(path) in message, message
    assert re.search(pattern, message, re.DOTALL), f"{pattern!r} is not in {message!r}"


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("spoil", SPOILT_COLUMNS, ids=lambda f: f.__name__)
def test_spoilt_columns(spoil, format, tmp_path):
    for seed in range(SEEDS):
        columns, header = sound_columns(seed)
        pattern = spoil(columns, np.random.default_rng(seed))
        path = tmp_path / f"{seed}.{format}"
        WRITERS[format](path, columns, header)
        refused(path, pattern)
        if format == "npz":
            refused(path, pattern, mmap=True)


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("spoil", [negative_lengths, starts_outside, shuffled_starts, wrong_flags])
def test_spoilt_columns_without_successors(spoil, format, tmp_path):
    for seed in range(SEEDS):
        columns, header = sound_columns(seed)
        pattern = spoil(columns, np.random.default_rng(seed))
        del columns["next_observations"]
        path = tmp_path / f"{seed}.{format}"
        WRITERS[format](path, columns, header)
        refused(path, pattern)


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("spoil", SPOILT_FILES, ids=lambda f: f.__name__)
def test_spoilt_files(spoil, format, tmp_path):
    for seed in range(SEEDS):
        path = tmp_path / f"{seed}.{format}"
        WRITERS[format](path, *sound_columns(seed))
        refused(path, spoil(path, np.random.default_rng(seed)))


@pytest.mark.parametrize("format", WRITERS)
def test_sound_files_load(format, tmp_path):
    for seed in range(SEEDS):
        columns, header = sound_columns(seed)
        WRITERS[format](tmp_path / f"{seed}.{format}", columns, header)
        assert len(load(tmp_path / f"{seed}.{format}")) == len(columns["rewards"])


# --- bombs, lies and flipped bits


def test_zip_bombs(tmp_path):
    """Archives that unpack to far more than they are, honestly and not."""
    size = 2**24
    columns, header = sound_columns(0)
    for name in (*REAL, "terminals", "episode_start"):
        path = tmp_path / f"{name}.npz"
        write_npz(path, columns | {name: np.zeros(size, np.uint8)}, header, compress=True)
        assert path.stat().st_size < size / 100
        refused(path, "more than the limit", limit=size)


def test_declared_shapes_are_compared_with_the_bytes(tmp_path):
    for seed in range(SEEDS):
        columns, header = sound_columns(seed)
        rng = np.random.default_rng(seed)
        path = tmp_path / f"{seed}.npz"
        shape = (int(rng.choice([2**40, 2**62, 10**18, len(columns["rewards"]) + 1])), 3)
        with zipfile.ZipFile(path, "w") as archive:
            for name, column in columns.items():
                with archive.open(f"{name}.npy", "w") as member:
                    described = {"descr": "<f4", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(member, described)
                    member.write(column.tobytes())
        for mmap in (False, True):
            refused(path, "observations.npy declares", mmap=mmap)


def test_damaged_array_headers(tmp_path):
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        columns, header = sound_columns(seed)
        path = tmp_path / f"{seed}.npz"
        write_npz(path, columns, header)
        broken = rng.choice(
            [b"", b"\x93NUMPY\x09\x00", b"\x93NUMPY\x01\x00\xff\xff{", b"__import__('os')", rng.bytes(80)]
        )
        with zipfile.ZipFile(tmp_path / "again.npz", "w") as archive, zipfile.ZipFile(path) as old:
            for info in old.infolist():
                archive.writestr(info.filename, broken if info.filename == "actions.npy" else old.read(info))
        (tmp_path / "again.npz").replace(path)
        for mmap in (False, True):
            refused(path, "cannot be read|version|declares", mmap=mmap)


def test_flipped_bits(tmp_path):
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        path = save(log(seed=seed), tmp_path / f"{seed}.npz")
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{rng.choice(REAL)}.npy")
        raw = bytearray(path.read_bytes())
        raw[_data_offset(path, info) + int(rng.integers(128, info.file_size))] ^= 1 << int(rng.integers(8))
        path.write_bytes(raw)
        for mmap in (False, True):
            refused(path, "CRC-32", mmap=mmap)


@pytest.mark.parametrize("name", ["log.npz", "log.hdf5"])
def test_any_changed_byte_is_found_or_harmless(name, tmp_path):
    path, sound = tmp_path / name, log()
    raw = save(sound, path).read_bytes()
    for seed in range(10 * SEEDS):
        rng = np.random.default_rng(seed)
        changed = bytearray(raw)
        changed[rng.integers(len(raw))] = rng.integers(256)
        path.write_bytes(changed)
        try:
            found = load(path)
        except DataError as error:
            assert str(path) in str(error)
        else:
            same = (np.array_equal(getattr(found, column), getattr(sound, column)) for column in (*COLUMNS, "starts"))
            assert all(same) and found.meta == sound.meta, seed


def test_overlapping_members(tmp_path):
    """Many names for the same bytes: a bomb that needs no compression."""
    path = save(log(), tmp_path / "log.npz")
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start, members = archive.start_dir, len(archive.infolist())
        biggest = max(archive.infolist(), key=lambda info: info.file_size)
        reads = {i.filename: archive.read(i) for i in archive.infolist()}
    entry_name = biggest.filename.encode()
    name = b"infos.npy"
    crc = zlib.crc32(reads[biggest.filename])
    entry = struct.pack(
        "<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, crc, biggest.file_size, biggest.file_size,
        len(name), 0, 0, 0, 0, 0, biggest.header_offset,
    )  # fmt: skip
    assert entry_name in raw
    extra = (entry + name) * 100
    directory = raw[start:-22] + extra
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, members + 100, members + 100, len(directory), start, 0)
    path.write_bytes(raw[:start] + directory + tail)
    refused(path, "members overlap")


def test_a_member_twice(tmp_path):
    columns, header = sound_columns(0)
    path = tmp_path / "twice.npz"
    write_npz(path, columns | {"obs": columns["observations"]}, header)
    refused(path, "occurs twice")


def test_hdf5_arrays_that_are_mostly_not_there(tmp_path):
    """HDF5 stores nothing of what was never written, so a small file may declare any size."""
    columns, header = sound_columns(0)
    for name in REAL:
        path = tmp_path / f"{name}.hdf5"
        write_hdf5(path, columns, header)
        with h5py.File(path, "a") as file:
            del file[name]
            file.create_dataset(name, (2**40, 3), np.float32, chunks=(2**10, 3))
        assert path.stat().st_size < 2**20
        refused(path, "more than the limit")


def test_hdf5_groups_in_place_of_arrays(tmp_path):
    columns, header = sound_columns(0)
    for name in REAL:
        path = tmp_path / f"{name}.hdf5"
        write_hdf5(path, columns, header)
        with h5py.File(path, "a") as file:
            del file[name]
            file.create_group(name)
        refused(path, f"{name} is a group")


# --- Minari folders


def edit_metadata(path, **changes):
    file = path / "data" / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("edit", "pattern"),
    [
        (lambda file: file.__delitem__("episode_1"), "holds 2 episodes, metadata.json says 3"),
        (lambda file: file.__delitem__("episode_1/rewards"), "episode_1/rewards is missing"),
        (lambda file: file["episode_1/rewards"].write_direct(np.full(3, np.nan, np.float32)), "reward holds NaN"),
        (lambda file: file["episode_0/terminations"].write_direct(np.ones(5, bool)), "says goes on"),
        (lambda file: file["episode_1/truncations"].write_direct(np.zeros(3, bool)), "neither terminated nor was"),
        (lambda file: file.move("episode_2/actions", "episode_2/action"), "episode_2/actions is missing"),
        (lambda file: file.move("episode_2", "episode_two"), "holds|invalid literal"),
    ],
)
def test_spoilt_minari_episodes(edit, pattern, tmp_path):
    path = save(log(), tmp_path / "log-v0")
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        edit(file)
    refused(path, pattern)


def test_minari_observations_of_the_wrong_length(tmp_path):
    path = save(log(), tmp_path / "log-v0")
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        shorter = file["episode_1/observations"][:-1]
        del file["episode_1/observations"]
        file["episode_1/observations"] = shorter
    refused(path, "episode_1: observations has 3 rows, expected one more than the 3 rewards")


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"data_format": "arrow"}, "stored as arrow; convert it to hdf5"),
        ({"total_episodes": 7}, "metadata.json says 7"),
        ({"observation_space": "{"}, "observation_space is damaged"),
        ({"observation_space": '{"type": "Text"}'}, "Text space is not supported"),
        ({"action_space": '{"type": "Box"}'}, "action_space is damaged"),
        ({"action_space": '{"type": "Discrete", "n": 3}'}, "action has shape"),
    ],
)
def test_spoilt_minari_metadata(changes, pattern, tmp_path):
    path = save(log(), tmp_path / "log-v0")
    edit_metadata(path, **changes)
    refused(path, pattern)


def test_truncated_minari_files(tmp_path):
    for seed in range(SEEDS):
        path = save(log(seed=seed), tmp_path / f"log-v{seed}")
        file = path / "data" / "main_data.hdf5"
        raw = file.read_bytes()
        file.write_bytes(raw[: np.random.default_rng(seed).integers(0, len(raw))])
        refused(path, "truncated")
