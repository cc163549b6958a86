"""RLDS: episodes as records of TFDS, in TFRecord files beside `features.json` and `dataset_info.json`.

Read and written without TensorFlow. A record is an episode: its `steps` hold each feature of all steps one after the
other. The last step of an episode holds the final observation; what else it holds means nothing (Ramos et al. 2021,
'RLDS'), so N + 1 steps are N transitions.
"""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gymnasium import spaces

from habitus.core.errors import DataError
from habitus.data import infer
from habitus.data.dataset import Dataset
from habitus.data.formats import guard, images, tfrecord
from habitus.data.formats.rlds_writer import HEADER, Tensor, write
from habitus.data.stream import Piece, Stream, shaped

__all__ = ["is_rlds", "read", "stream", "write"]


def is_rlds(path: Path) -> bool:
    """Whether a folder is the version folder of a TFDS data set."""
    return (path / "features.json").is_file() and (path / "dataset_info.json").is_file()


def read(path: Path, *, limit: int | None = None, validate: bool = True) -> Dataset:
    """The data set in a folder, in memory."""
    return stream(path).gather(limit, validate)


def stream(path: Path) -> Stream:
    """The log in a folder, one episode at a time; of the split `train`, or else of the first.

    Texts, and sequences within a step, are left out with a warning.
    """
    with guard.reading(path), guard.describing("features.json or dataset_info.json"):
        skipped: list[str] = []
        features = _features(json.loads((path / "features.json").read_text(encoding="utf-8")), skipped)
        steps = _steps_of(features)
        shards, episodes = _shards(path)
        header: dict[str, Any] = {"meta": {}}
        if (path / HEADER).is_file():
            header = guard.read_header((path / HEADER).read_text(encoding="utf-8"))
    ignored = [name.removeprefix("steps/") for name in skipped if name.startswith("steps/")]
    if ignored:
        warnings.warn(f"{path}: not read, as they are no numbers of one shape: {', '.join(ignored)}.", stacklevel=3)
    return Stream(_pieces(shards, episodes, steps, header), path, **header)


def _pieces(shards: list[Path], episodes: int, steps: dict[str, Any], header: dict[str, Any]) -> Iterator[Piece]:
    seen = dropped = 0
    held: Piece | None = None  # of which it is known only with the next one whether it is the last
    for shard in shards:
        with guard.reading(shard):
            for number, data in tfrecord.records(shard):
                seen += 1
                try:
                    piece = _episode(tfrecord.read_example(data), steps, header.get("observation_space"))
                except DataError as error:
                    raise DataError(f"record {number}: {error}") from error
                if piece is None:
                    dropped += 1
                    continue
                if held is not None:
                    yield _sealed(held)
                held = piece
    if seen != episodes:
        raise DataError(f"its files hold {seen} episodes, dataset_info.json says {episodes}.")
    if held is not None:
        yield held
    if dropped:
        header["meta"]["dropped_rows"] = dropped


def _sealed(piece: Piece) -> Piece:
    """The episode, which another follows: it ends truncated if it does not terminate."""
    piece.columns["truncated"][-1] |= not piece.columns["terminated"][-1]
    return piece


def _episode(features: dict[str, tfrecord.Feature], wanted: dict[str, Any], space: spaces.Space | None) -> Piece | None:
    """The transitions of a record, or None if it holds one step only."""
    flag = features.get("steps/is_terminal")
    if not isinstance(flag, np.ndarray):
        raise DataError("steps/is_terminal is missing; an episode of RLDS has it.")
    steps = len(flag)
    found = {name: _decoded(f"steps/{name}", features, part, steps) for name, part in wanted.items()}
    if steps < 2:
        return None
    found["observation"] = shaped(found["observation"], space)
    if space is None:
        found["observation"] = jax.tree.map(_as_vector, found["observation"])
    columns = {
        "obs": jax.tree.map(lambda leaf: leaf[:-1], found["observation"]),
        "next_obs": jax.tree.map(lambda leaf: leaf[1:], found["observation"]),
        "action": found["action"][:-1],
        "reward": found["reward"][:-1].astype(np.float32, copy=False),
        "terminated": np.zeros(steps - 1, bool),
        "truncated": np.zeros(steps - 1, bool),
    }
    if "cost" in found:
        columns["cost"] = infer.costs(found["cost"][:-1])
    terminal = found["is_terminal"].astype(bool)
    if terminal[:-1].any():
        raise DataError(f"step {int(terminal.argmax())} of {steps} is terminal, expected none but the last.")
    ended = found["is_last"].astype(bool)[-1] if "is_last" in found else True
    columns["terminated"][-1] = terminal[-1]
    columns["truncated"][-1] = ended and not terminal[-1]
    return Piece(columns, np.zeros(1, np.int64))


def _decoded(name: str, features: dict[str, tfrecord.Feature], wanted: Any, steps: int) -> Any:
    """A feature of all steps, [steps, ...]; of its parts where it has some."""
    if isinstance(wanted, dict):
        return {key: _decoded(f"{name}/{key}", features, part, steps) for key, part in wanted.items()}
    if name not in features:
        raise DataError(f"{name} is missing.")
    value, (shape, dtype, encoding) = features[name], wanted
    size = int(np.prod((steps, *shape), dtype=object))
    if isinstance(value, list) != (encoding != "none") or len(value) != (size if encoding == "none" else steps):
        what = f"{len(value)} {'strings' if isinstance(value, list) else 'numbers'}"
        raise DataError(f"{name} holds {what}, expected {steps} steps of {dtype}{list(shape)}, encoding {encoding}.")
    if isinstance(value, np.ndarray):
        return value.astype(dtype).reshape(steps, *shape)
    if encoding == "image":
        return np.stack([images.pixels(data, shape) for data in value]).astype(dtype, copy=False)
    return np.stack([_unpacked(name, data, wanted) for data in value])


def _as_vector(column: np.ndarray) -> np.ndarray:
    """One number a step as a vector of one, unless it is an integer."""
    return column if column.ndim > 1 or column.dtype.kind in "iu" else column[:, None]


def _unpacked(name: str, data: bytes, wanted: Tensor) -> np.ndarray:
    size = int(np.prod(wanted.shape, dtype=object)) * wanted.dtype.itemsize
    if wanted.encoding == "zlib":
        data = zlib.decompressobj().decompress(data, size + 1)
    if len(data) != size:
        raise DataError(f"{name} holds {len(data)} bytes, expected {wanted.dtype}{list(wanted.shape)}.")
    return np.frombuffer(data, wanted.dtype).reshape(wanted.shape)


# --- what is described beside the records


def _features(node: dict[str, Any], skipped: list[str], name: str = "") -> Any:
    """The features that `features.json` describes, as Tensors in dicts; what is none goes to `skipped`."""
    if "featuresDict" in node:
        inner = node["featuresDict"].get("features", {})
        found = {k: _features(v, skipped, f"{name}/{k}" if name else k) for k, v in inner.items()}
        return {key: part for key, part in found.items() if part is not None and part != {}}
    if name == "steps" and "sequence" in node:
        return _features(node["sequence"]["feature"], skipped, name)
    if "classLabel" in node:
        return Tensor((), np.dtype(np.int64), "none")
    kind = "tensor" if "tensor" in node else "image"
    described = node.get(kind, {})
    dims = tuple(int(n) for n in described.get("shape", {}).get("dimensions", ()))
    if kind in node and min(dims, default=0) >= 0 and described.get("dtype") not in ("string", "object"):
        encoding = "image" if kind == "image" else described.get("encoding", "none")
        if encoding not in ("none", "bytes", "zlib", "image"):
            raise DataError(f"features.json: {name} has the encoding {encoding}, expected none, bytes or zlib.")
        return Tensor(dims, np.dtype(described["dtype"]), encoding)
    skipped.append(name)
    return None


def _steps_of(features: Any) -> dict[str, Any]:
    """The features of a step that a log is made of."""
    steps = features.get("steps") if isinstance(features, dict) else None
    if not isinstance(steps, dict):
        raise DataError("features.json describes no steps; a data set of RLDS has them.")
    needed = ("observation", "action", "reward", "is_terminal")
    missing = [name for name in needed if name not in steps]
    if missing:
        held = ", ".join(steps) or "nothing"
        raise DataError(f"features.json: the steps lack {', '.join(missing)}, or hold no numbers there; read: {held}.")
    if isinstance(steps["action"], dict):
        raise DataError(
            f"its actions have the parts {', '.join(steps['action'])}, expected one array; join them first."
        )
    return {name: steps[name] for name in (*needed, "is_last", "cost") if name in steps}


def _shards(path: Path) -> tuple[list[Path], int]:
    """The files of a split in order, and how many episodes they should hold."""
    info = json.loads((path / "dataset_info.json").read_text(encoding="utf-8"))
    splits = {split["name"]: split for split in info["splits"]}
    if info.get("fileFormat", "tfrecord") != "tfrecord" or not splits:
        raise DataError(f"its format is {info.get('fileFormat')} with {len(splits)} splits, expected tfrecord and one.")
    name = "train" if "train" in splits else next(iter(splits))
    lengths = [int(n) for n in splits[name]["shardLengths"]]
    found = sorted(path.glob(f"*-{name}.tfrecord-*-of-*"))
    if len(found) != len(lengths):
        raise DataError(f"split {name} has {len(found)} files, dataset_info.json says {len(lengths)}.")
    return found, sum(lengths)
