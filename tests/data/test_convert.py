"""Logs that go from any format to any other, a piece at a time."""

import dataclasses
import itertools
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from habitus.core.errors import ConfigError, DataError
from habitus.data import stream as streams
from habitus.data.complete import completed
from habitus.data.dataset import COLUMNS, Dataset
from habitus.data.formats import npz
from habitus.data.io import convert, load, save
from habitus.data.stream import Piece, Stream
from habitus.data.summary import Moments, summarise

from .logs import log
from .test_formats import NAMES, assert_same


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Three rows or so make a piece, so that every seam between pieces is met."""
    monkeypatch.setattr(streams, "PIECE_BYTES", 150)


def costly(kind="box"):
    data = log(kind, (5, 1, 7, 2), "tTT.")
    cost = np.random.default_rng(1).uniform(size=(len(data), 2)).astype(np.float32)
    return dataclasses.replace(data, cost=cost)


@pytest.mark.parametrize(("source", "target"), itertools.product(NAMES, NAMES))
def test_any_format_becomes_any_other(source, target, tmp_path):
    data, seen = costly(), []
    first = save(data, tmp_path / "first" / NAMES[source], format=source)
    out = convert(first, tmp_path / "out" / NAMES[target], format=target, report=lambda *of: seen.append(of))
    found = load(out)
    assert_same(found, data)
    np.testing.assert_array_equal(found.cost, data.cost)
    assert sum(rows for rows, _ in seen) == len(data) and os.listdir(tmp_path / "out") == [NAMES[target]]


@pytest.mark.parametrize("kind", ["image", "dict", "tuple"])
def test_parts_and_images_survive_a_walk_through_all_formats(kind, tmp_path):
    path = save(log(kind), tmp_path / "log.npz")
    for step, format in enumerate(("rlds", "lerobot", "minari", "npz")):
        path = convert(path, tmp_path / str(step) / NAMES[format], format=format)
    assert_same(load(path), log(kind))


def raw_columns(data, rng, left_out):
    kept = {name: getattr(data, name) for name in COLUMNS if name not in left_out}
    bounds = np.unique([0, *rng.integers(0, len(data), 4), len(data)])
    spans = [slice(a, b) for a, b in itertools.pairwise(bounds.tolist())]
    return kept, [{name: column[span] for name, column in kept.items()} for span in spans]


@pytest.mark.parametrize("left_out", [(), ("next_obs",), ("truncated",), ("truncated", "next_obs")])
@pytest.mark.parametrize("told", [True, False])
def test_what_is_left_out_is_inferred_alike(told, left_out):
    for seed in range(40):
        rng = np.random.default_rng(seed)
        lengths = tuple(rng.integers(1, 6, 6).tolist())
        data = log("box", lengths, "".join(rng.choice(list("tT"), 5)) + rng.choice(list("tT.")), seed)
        starts = data.starts if told else None
        kept, chunks = raw_columns(data, rng, left_out)
        kept = {"truncated": None, "next_obs": None} | kept
        origin = {"observation_space": data.observation_space, "action_space": data.action_space}
        meta = {}
        log_of_pieces = Stream(completed(iter(chunks), starts, meta, len(data)), Path("pieces"), **origin, meta=meta)
        try:
            expected = Dataset.from_arrays(**kept, starts=starts, **origin, validate=False)
        except DataError:
            with pytest.raises(DataError, match="successor"):
                log_of_pieces.gather(validate=False)
            continue
        assert_same(log_of_pieces.gather(validate=False), expected)


def test_spaces_are_inferred_alike(tmp_path):
    data = log("discrete", (6, 5, 4))
    bare = {name: getattr(data, name) for name in COLUMNS}
    np.savez_compressed(tmp_path / "bare.npz", **bare)
    found = load(convert(tmp_path / "bare.npz", tmp_path / "out.npz"))
    assert_same(found, load(tmp_path / "bare.npz"))


def test_a_bad_value_stops_the_conversion_and_leaves_nothing(tmp_path):
    data = log()
    data.reward[11] = np.nan
    path = save(data, tmp_path / "log.npz")
    for format, name in NAMES.items():
        with pytest.raises(DataError, match=r"log.npz: reward holds NaN or Inf \(row 11\)"):
            convert(path, tmp_path / "out" / name, format=format)
        assert not os.listdir(tmp_path / "out")
    data = dataclasses.replace(log(), truncated=np.arange(15) == 2)
    save(data, path)
    with pytest.raises(DataError, match=r"terminated ends an episode that `starts` says goes on \(row 2\)"):
        convert(path, tmp_path / "out.hdf5")
    np.testing.assert_array_equal(
        load(convert(path, tmp_path / "o.npz", validate=False), validate=False).truncated, data.truncated
    )


@pytest.mark.parametrize("format", ["minari", "lerobot", "rlds"])
def test_folders_are_whole_and_are_not_overwritten(format, tmp_path):
    path = save(log(), tmp_path / "log", format=format)
    with pytest.raises(DataError, match="exists; remove it"):
        save(log(), path, format=format)
    data = log()
    data.next_obs[6] += 1
    with pytest.raises(DataError, match="episode 1, step 1: the successor is not the next observation"):
        save(data, tmp_path / "other", format=format)
    assert os.listdir(tmp_path) == ["log"]


def test_members_that_lie_column_by_column_are_refused_by_name(tmp_path):
    columns = {name: np.asfortranarray(getattr(log(), name)) for name in COLUMNS}
    np.savez(tmp_path / "log.npz", **columns)
    with pytest.raises(DataError, match=r"(obs|actions).*npy is stored column by column"):
        convert(tmp_path / "log.npz", tmp_path / "out.npz")


def test_names_of_formats(tmp_path):
    path = save(log(), tmp_path / "log.npz")
    with pytest.raises(ConfigError, match="format is 'csv'"):
        convert(path, tmp_path / "out", format="csv")
    with pytest.raises(DataError, match="does not exist"):
        convert(tmp_path / "none.npz", tmp_path / "out")
    assert json.loads((convert(path, tmp_path / "a" / "1.0.0") / "dataset_info.json").read_text())["name"] == "a"


def test_a_piece_is_never_larger_than_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(streams, "PIECE_BYTES", 600)
    path = save(log("image", (30, 30), "tT"), tmp_path / "log.npz")
    pieces = list(npz.stream(path))
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(piece.columns)) for piece in pieces]
    assert len(pieces) > 10 and max(sizes) <= 2 * 600


def test_pieces_that_change_their_shape_are_refused():
    data = log()
    parts = list(Stream.of(data))
    parts[1].columns["obs"] = parts[1].columns["obs"][:, :2]
    with pytest.raises(DataError, match="its columns change"):
        Stream(iter(parts), Path("log"), data.observation_space, data.action_space).gather()
    assert isinstance(parts[0], Piece)


def test_moments_are_those_of_the_whole():
    column = np.random.default_rng(0).normal(100, 3, (50, 4)).astype(np.float32)
    moments = Moments()
    for part in np.split(column, [1, 20, 33]):
        moments.add(part)
    whole = summarise(column)
    for name in ("low", "high", "mean", "std"):
        np.testing.assert_allclose(getattr(moments, name), getattr(whole, name), rtol=1e-6)
