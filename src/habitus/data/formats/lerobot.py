"""LeRobot's folders, version 3: Parquet tables of frames, described by JSON; version 2 is read as well.

`data/chunk-*/file-*.parquet` hold a row for each frame, `meta/info.json` says which features it has, and
`meta/episodes/chunk-*/file-*.parquet` hold a row for each episode. Read and written without the `lerobot` package.

LeRobot keeps no final observations: without them the last frame of an episode that does not terminate has no successor
and is dropped. What is written here keeps them in the table of episodes, where LeRobot ignores them.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gymnasium import spaces

from habitus.core.errors import DataError
from habitus.data.canonical import CHUNK
from habitus.data.complete import completed
from habitus.data.dataset import Dataset
from habitus.data.formats import guard, images, parquet
from habitus.data.formats.lerobot_writer import FINAL, HEADER, write
from habitus.data.stream import Piece, Stream, joined, shaped

_ROWS = 4096  # frames that are read at once
_NEXT = ("next.cost", "next.reward", "next.done", "next.terminated", "next.truncated")

__all__ = ["is_lerobot", "read", "stream", "write"]


def is_lerobot(path: Path) -> bool:
    """Whether a folder is a data set of LeRobot."""
    return (path / "meta" / "info.json").is_file()


def read(path: Path, *, limit: int | None = None, validate: bool = True) -> Dataset:
    """The data set in a folder, in memory."""
    return stream(path).gather(limit, validate)


def stream(path: Path) -> Stream:
    """The log in a folder, piece by piece. Videos, texts and what is no part of a log are left out with a warning.

    `observation.state` alone is an array, several `observation.*` a dict, dots nest. An episode terminates where
    `next.terminated` says so, or else `next.done`; any other end is a truncation. Without `next.reward` rewards are 0.
    """
    pq = parquet.import_parquet()
    with guard.reading(path), guard.describing("meta/info.json"):
        info = json.loads((path / "meta" / "info.json").read_text(encoding="utf-8"))
        version = str(info["codebase_version"])
        if not re.match(r"v[23]\.\d+", version):
            raise DataError(f"its version is {version}, expected v2.x or v3.x; convert it with LeRobot.")
        features = _features(info["features"], path)
        rows, episodes, fps = int(info["total_frames"]), int(info["total_episodes"]), info.get("fps")
        header: dict[str, Any] = {"meta": {} if fps is None else {"fps": fps}}
        if (path / HEADER).is_file():
            header = guard.read_header((path / HEADER).read_text(encoding="utf-8"))
        files = _files(path, "data", "episode|file")
    space, meta = header.get("observation_space"), header["meta"]

    def frames() -> Iterator[dict[str, Any]]:
        for file in files:
            with guard.reading(file):
                for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=list(features)):
                    yield _chunk(batch, features, space, header.get("action_space"))

    def pieces() -> Iterator[Piece]:
        starts = _starts(pq, files, rows, episodes)
        made = completed(frames(), starts, meta, rows, _finals(pq, path, features, episodes, space))
        yield from made if "next.truncated" in features else _closed(made)

    return Stream(pieces(), path, **header, rows=rows)


def _closed(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The log, whose last episode is whole as well: it ends truncated if it does not terminate."""
    held: Piece | None = None
    for piece in pieces:
        if held is not None:
            yield held
        held = piece
    if held is not None:
        held.columns["truncated"][-1] |= not held.columns["terminated"][-1]
        yield held


def _starts(pq: Any, files: list[Path], rows: int, episodes: int) -> np.ndarray:
    """The first row of each episode, once every index was looked at."""
    starts: list[np.ndarray] = []
    count, last, before = 0, -1, -1
    for file in files:
        with guard.reading(file):
            for batch in pq.ParquetFile(file).iter_batches(CHUNK, columns=list(_INDICES)):
                episode, frame = (np.asarray(batch.column(name).to_numpy(zero_copy_only=False)) for name in _INDICES)
                jumps = np.diff(episode, prepend=last)
                right = np.where(jumps == 0, np.diff(frame, prepend=before) == 1, (jumps == 1) & (frame == 0))
                if not right.all():
                    at = int(np.argmin(right))
                    where = f"row {count + at}: frame_index {frame[at]} of episode_index {episode[at]}"
                    raise DataError(f"{where} does not follow the row before; frames are missing or shuffled.")
                starts.append(np.flatnonzero(jumps == 1) + count)
                count, last, before = count + len(frame), int(episode[-1]), int(frame[-1])
    if count != rows or last + 1 != episodes:
        said = f"meta/info.json says {rows} of {episodes}"
        raise DataError(f"its tables hold {count} frames of {last + 1} episodes, {said}.")
    return np.concatenate(starts)


def _finals(pq: Any, path: Path, features: dict[str, Any], episodes: int, space: spaces.Space | None) -> Any:
    """The final observation of each episode, where the table of episodes keeps them."""
    if not (path / HEADER).is_file():
        return None
    observed = {name: of for name, of in features.items() if name.startswith("observation.")}
    parts: list[Any] = []
    for file in _files(path, "meta/episodes", "file"):
        with guard.reading(file):
            for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=[FINAL + name for name in observed]):
                columns = {n: _column(batch.column(FINAL + n), FINAL + n, *of) for n, of in observed.items()}
                parts.append(_observation(columns, space))
    finals = joined(parts)
    found = len(jax.tree.leaves(finals)[0])
    if found != episodes:
        raise DataError(
            f"meta/episodes holds {found} final observations, expected one for each of {episodes} episodes."
        )
    return finals


_INDICES = ("episode_index", "frame_index")


def _files(path: Path, folder: str, stem: str) -> list[Path]:
    """The tables of a folder, in order."""
    named = re.compile(rf"chunk-(\d+)/(?:{stem})[-_](\d+)\.parquet")
    root = path / folder
    matches = [(m, f) for f in root.glob("chunk-*/*.parquet") if (m := named.fullmatch(f.relative_to(root).as_posix()))]
    if not matches:
        raise DataError(f"{folder} holds no tables such as chunk-000/file-000.parquet.")
    return [file for match, file in sorted(matches, key=lambda pair: (int(pair[0][1]), int(pair[0][2])))]


def _features(declared: dict[str, Any], path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype | None]]:
    """Shape and type of the features that a log is made of; None is the type of images."""
    found: dict[str, tuple[tuple[int, ...], np.dtype | None]] = {}
    left: list[str] = []
    for name, feature in declared.items():
        wanted = name.startswith("observation.") or name in ("action", *_NEXT)
        kind = feature["dtype"]
        if wanted and kind not in ("video", "string"):
            found[name] = (tuple(int(n) for n in feature["shape"]), None if kind == "image" else np.dtype(kind))
        elif name not in (*_INDICES, "index", "task_index", "timestamp"):
            left.append(f"{name} ({kind})")
    if left:
        warnings.warn(
            f"{path}: not read: {', '.join(left)}; videos and texts are none of a log's columns.", stacklevel=4
        )
    if "action" not in found or not any(name.startswith("observation.") for name in found):
        held = ", ".join(found) or "none"
        raise DataError(f"it needs action and an observation that is no video; of its features can be read: {held}.")
    if "next.reward" not in found:
        warnings.warn(f"{path}: it has no next.reward, so every reward is 0: fit for imitation only.", stacklevel=4)
    return found


def _chunk(
    batch: Any, features: dict[str, Any], space: spaces.Space | None, acted: spaces.Space | None
) -> dict[str, Any]:
    """Some frames as columns, without their successors."""
    found = {name: _column(batch.column(name), name, *of) for name, of in features.items()}
    columns = {"obs": _observation(found, space), "action": _fitted(found["action"], acted)}
    rows = len(found["action"])
    columns["reward"] = found.get("next.reward", np.zeros(rows, np.float32))
    none = np.zeros(rows, bool)
    if "next.cost" in found:
        columns["cost"] = found["next.cost"]
    if "next.truncated" in found:
        columns["truncated"] = found["next.truncated"].astype(bool)
    done = found.get("next.done", none).astype(bool)
    columns["terminated"] = found.get("next.terminated", done & ~columns.get("truncated", none)).astype(bool)
    return columns


def _observation(columns: dict[str, np.ndarray], space: spaces.Space | None) -> Any:
    parts = {n.removeprefix("observation."): c for n, c in columns.items() if n.startswith("observation.")}
    if len(parts) == 1 and not isinstance(space, (spaces.Dict, spaces.Tuple)):
        return _fitted(next(iter(parts.values())), space)
    return _fitted(shaped(_nested(parts), space), space)


def _fitted(column: Any, space: spaces.Space | None) -> Any:
    """A column in the shape of its space, where that is known: LeRobot does not tell a number from a list of one."""
    if isinstance(column, tuple):
        return tuple(_fitted(part, space[i]) for i, part in enumerate(column))  # type: ignore[index]
    if isinstance(column, dict):
        inner = space.spaces if isinstance(space, spaces.Dict) else {}
        return {key: _fitted(part, inner.get(key)) for key, part in column.items()}
    fits = space is not None and space.shape is not None and np.prod(space.shape) == np.prod(column.shape[1:])
    return column.reshape(len(column), *space.shape) if fits else column  # type: ignore[union-attr, misc]


def _nested(parts: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, column in parts.items():
        *path, key = name.split(".")
        inner = out
        for step in path:
            inner = inner.setdefault(step, {})
            if not isinstance(inner, dict):
                raise DataError(f"observation.{name} lies within another feature; rename one of them.")
        inner[key] = column
    return out


def _column(array: Any, name: str, shape: tuple[int, ...], dtype: np.dtype | None) -> np.ndarray:
    """A feature of some frames, [rows, *shape]; [rows] for whole numbers of shape [1] and for flags and rewards."""
    count = len(array)
    if array.null_count:
        raise DataError(f"{name} is missing in {array.null_count} frames; remove their episodes.")
    if dtype is None:
        found = [images.pixels(entry["bytes"] or b"", shape) for entry in array.to_pylist()]
        return np.stack(found)
    while hasattr(array, "flatten") and hasattr(array.type, "value_type"):
        array = array.flatten()
    size = int(np.prod((count, *shape), dtype=object))
    if len(array) != size or array.null_count:
        raise DataError(f"{name} holds {len(array)} numbers, expected {count} frames of {list(shape)}.")
    column = array.to_numpy(zero_copy_only=False)
    guard.require_numbers(name, column.dtype)
    flat = shape == (1,) and (name in _NEXT or dtype.kind in "iu")
    return column.astype(dtype, copy=False).reshape((count,) if flat else (count, *shape))
