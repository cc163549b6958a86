"""Writing RLDS: records of TFDS without TensorFlow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from habitus.core.errors import DataError
from habitus.data.formats import guard, images, tfrecord
from habitus.data.stream import Chain, Stream, joined

HEADER = "habitus.json"  # what the format itself has no place for
SHARD = 2**28  # bytes of a file, about
_CLASSES = "tensorflow_datasets.core.features."


class Tensor(NamedTuple):
    """A feature of one step.

    Attributes:
        shape: of its value.
        dtype: of its value.
        encoding: 'none' where its numbers are stored as such, 'bytes', 'zlib' or 'image'.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    encoding: str


def write(log: Stream, path: Path) -> None:
    """Writes the whole folder or nothing. An episode at a time is in memory.

    Raises:
        DataError: if the folder exists, if a successor is not the next observation, or an episode ends before its
            last row: RLDS stores each observation once, and the end of an episode at its last step.
    """
    if path.exists():
        raise DataError(f"{path} exists; remove it, or choose another name.")
    named = path.parent.name if re.fullmatch(r"\d+\.\d+\.\d+", path.name) else path.name
    name = re.sub(r"\W+", "_", named).strip("_").lower() or "log"
    with guard.whole(path) as draft:
        draft.mkdir(parents=True)
        tensors, sizes, lengths = _write_shards(log, draft)
        for shard in range(len(sizes)):
            (draft / str(shard)).rename(draft / f"{name}-train.tfrecord-{shard:05d}-of-{len(sizes):05d}")
        split = {
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "name": "train",
            "numBytes": str(sum(sizes)),
            "shardLengths": [str(length) for length in lengths],
        }
        version = path.name if path.name != named else "1.0.0"
        info = {"fileFormat": "tfrecord", "name": name, "splits": [split], "version": version}
        steps = {"sequence": {"feature": _described(tensors), "length": "-1"}}
        steps["pythonClassName"] = f"{_CLASSES}dataset_feature.Dataset"  # type: ignore[assignment]
        described = _dict_of({"steps": steps})
        (draft / "features.json").write_text(json.dumps(described, indent=4), encoding="utf-8")
        (draft / "dataset_info.json").write_text(json.dumps(info, indent=2), encoding="utf-8")
        (draft / HEADER).write_text(guard.header_of(log), encoding="utf-8")


def _write_shards(log: Stream, folder: Path) -> tuple[dict[str, Any], list[int], list[int]]:
    """Writes the records; the features of a step, and the bytes and records of each file."""
    tensors: dict[str, Any] = {}
    sizes, lengths = [0], [0]
    file = (folder / "0").open("wb")
    try:
        for columns in _episodes(log):
            steps = _steps(columns)
            tensors = tensors or _tensors(steps)
            if sizes[-1] >= SHARD:
                file.close()
                file = (folder / str(len(sizes))).open("wb")
                sizes, lengths = [*sizes, 0], [*lengths, 0]
            sizes[-1] += tfrecord.write_record(file, tfrecord.write_example(_encoded(steps, tensors)))
            lengths[-1] += 1
    finally:
        file.close()
    return tensors, sizes, lengths


def _episodes(log: Stream) -> Iterator[dict[str, Any]]:
    """The columns of one whole episode after the other."""
    parts: list[dict[str, Any]] = []
    chain = Chain("RLDS stores each observation once; save as npz")
    for begins, rows in (part for piece in log for part in piece.parts()):
        if begins and parts:
            yield joined(parts)
            parts = []
        chain.follow(begins, rows)
        parts.append(rows)
    yield joined(parts)


def _steps(columns: dict[str, Any]) -> dict[str, Any]:
    """An episode as steps: its rows, and one for the final observation."""
    done = columns["terminated"] | columns["truncated"]
    if done[:-1].any():
        raise DataError(
            f"an episode of {len(done)} rows ends at row {int(done.argmax())}; correct starts or the flags."
        )
    at = np.arange(len(done) + 1)
    terminal = (at == len(done)) & columns["terminated"][-1]
    extended = {
        n: np.concatenate([columns[n], np.zeros_like(columns[n][:1])])
        for n in ("action", "reward", "cost")
        if n in columns
    }
    return extended | {
        "observation": jax.tree.map(lambda a, b: np.concatenate([a, b[-1:]]), columns["obs"], columns["next_obs"]),
        "discount": np.append(~columns["terminated"], ~columns["terminated"][-1]).astype(np.float32),
        "is_first": at == 0,
        "is_last": (at == len(done)) & done[-1],
        "is_terminal": terminal,
    }


def _tensors(steps: Any) -> Any:
    """How each feature is stored: images as PNG, what 'float_list' would round as bytes, the rest as numbers."""
    if isinstance(steps, dict):
        return {key: _tensors(part) for key, part in steps.items()}
    if isinstance(steps, tuple):
        return {str(i): _tensors(part) for i, part in enumerate(steps)}
    shape, dtype = steps.shape[1:], steps.dtype
    exact = dtype.kind != "f" or dtype.itemsize <= 4
    return Tensor(shape, dtype, "image" if images.is_image(shape, dtype) else "none" if exact else "bytes")


def _encoded(steps: dict[str, Any], tensors: dict[str, Any]) -> dict[str, tfrecord.Feature]:
    stored = _flat("steps", tensors)
    out: dict[str, tfrecord.Feature] = {}
    for name, leaf in _flat("steps", steps).items():
        encoding = stored[name].encoding
        if encoding == "none":
            out[name] = leaf.reshape(-1)
        else:
            out[name] = [images.png(one) if encoding == "image" else one.tobytes() for one in leaf]
    return out


def _flat(name: str, node: Any) -> dict[str, Any]:
    """The leaves of nested dicts and tuples by their paths."""
    if isinstance(node, Tensor) or not isinstance(node, (dict, tuple)):
        return {name: node}
    parts = node if isinstance(node, dict) else dict(enumerate(node))
    return {key: leaf for k, part in parts.items() for key, leaf in _flat(f"{name}/{k}", part).items()}


def _described(tensors: Any) -> dict[str, Any]:
    """Features as TFDS describes them."""
    if isinstance(tensors, dict):
        return _dict_of({key: _described(part) for key, part in tensors.items()})
    shape = {"dimensions": [str(n) for n in tensors.shape]} if tensors.shape else {}
    if tensors.encoding == "image":
        image = {"dtype": str(tensors.dtype), "encodingFormat": "png", "shape": shape}
        return {"image": image, "pythonClassName": f"{_CLASSES}image_feature.Image"}
    tensor = {"dtype": str(tensors.dtype), "encoding": tensors.encoding, "shape": shape}
    return {"pythonClassName": f"{_CLASSES}tensor_feature.Tensor", "tensor": tensor}


def _dict_of(features: dict[str, Any]) -> dict[str, Any]:
    return {"featuresDict": {"features": features}, "pythonClassName": f"{_CLASSES}features_dict.FeaturesDict"}
