"""Writing LeRobot's folders, version 3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from habitus.core.errors import DataError
from habitus.data.formats import guard, images, parquet
from habitus.data.stream import Chain, Stream
from habitus.data.summary import Moments

HEADER = "meta/habitus.json"  # what the format itself has no place for
FINAL = "final/"  # before the names of features in the table of episodes: those of the final observation
VERSION = "v3.0"
FILES = 1000  # in a folder, at most
MEGABYTES = 100  # of a file, about
_GROUP = 2**24  # bytes of frames that are written at once, about


def write(log: Stream, path: Path) -> None:
    """Writes the whole folder or nothing; `meta["fps"]` is its rate (or else 1 a second), `meta["task"]` its task.

    Raises:
        DataError: if the folder exists, or if a successor is not the next observation: LeRobot stores
            each observation once.
    """
    if path.exists():
        raise DataError(f"{path} exists; remove it, or choose another name.")
    with guard.whole(path) as draft:
        (draft / "meta").mkdir(parents=True)
        fps = _fps(log)
        writer = _Frames(draft, fps, str(log.meta.get("task", path.name)))
        chain = Chain("LeRobot stores each observation once; save as npz")
        for begins, rows in (part for piece in log for part in piece.parts()):
            if begins and chain.episode >= 0:
                writer.end_episode(chain)
            chain.follow(begins, rows)
            writer.add(rows, chain)
        writer.end_episode(chain)
        writer.close(chain.total)
        info = {
            "codebase_version": VERSION,
            "robot_type": log.meta.get("robot_type"),
            "total_episodes": chain.episode + 1,
            "total_frames": chain.total,
            "total_tasks": 1,
            "chunks_size": FILES,
            "data_files_size_in_mb": MEGABYTES,
            "video_files_size_in_mb": 200,
            "fps": fps,
            "splits": {"train": f"0:{chain.episode + 1}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": None,
            "features": writer.features,
        }
        (draft / "meta" / "info.json").write_text(json.dumps(info, indent=4), encoding="utf-8")
        (draft / HEADER).write_text(guard.header_of(log), encoding="utf-8")


def _fps(log: Stream) -> int:
    fps = log.meta.get("fps", 1)
    if not isinstance(fps, (int, float)) or fps < 1 or fps != int(fps):
        raise DataError(f"meta['fps'] is {fps!r}, expected a whole number of frames a second.")
    return int(fps)


class _Frames:
    """The tables of a folder as they grow.

    Attributes:
        features: as `meta/info.json` describes them.
    """

    def __init__(self, folder: Path, fps: int, task: str):
        self._pq = parquet.import_parquet()
        self._folder, self._fps, self._task = folder, fps, task
        self.features: dict[str, Any] = {}
        self._waiting: list[dict[str, np.ndarray]] = []
        self._size = 0  # bytes that wait
        self._data: Any = None  # writes the open file
        self._file, self._written = 0, 0  # which one, and bytes in it
        self._table: Any = None  # writes the table of episodes
        self._rows: list[dict[str, Any]] = []  # of it, that wait
        self._episode: dict[str, Moments] = {}
        self._all: dict[str, Moments] = {}

    def add(self, rows: dict[str, Any], chain: Chain) -> None:
        """Frames of one episode, which `chain` has followed to their end."""
        frames, count = _frames(rows), len(rows["reward"])
        filled = self._written + self._size
        if chain.steps == count and filled and filled >= MEGABYTES * 2**20:
            self._next_file()
        frame = np.arange(chain.steps - count, chain.steps)
        frames |= {
            "timestamp": (frame / self._fps).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(count, chain.episode),
            "index": np.arange(chain.total - count, chain.total),
            "task_index": np.zeros(count, np.int64),
        }
        self.features = self.features or {name: _described(column) for name, column in frames.items()}
        for name, column in frames.items():
            self._episode.setdefault(name, Moments()).add(_for_statistics(column))
        self._waiting.append(frames)
        self._size += sum(column.nbytes for column in frames.values())
        if self._size >= _GROUP:
            self._flush()

    def end_episode(self, chain: Chain) -> None:
        """Adds the row of the episode, which `chain` has followed to its end, to the table of episodes."""
        row: dict[str, Any] = {
            "episode_index": chain.episode,
            "tasks": [self._task],
            "length": chain.steps,
            "dataset_from_index": chain.total - chain.steps,
            "dataset_to_index": chain.total,
            "data/chunk_index": self._file // FILES,
            "data/file_index": self._file % FILES,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for name, moments in self._episode.items():
            found = _statistics(moments, self.features[name], chain.steps)
            row |= {f"stats/{name}/{statistic}": value for statistic, value in found.items()}
            self._all.setdefault(name, Moments()).merge(moments)
        self._episode = {}
        row |= {f"{FINAL}{name}": column for name, column in _observed(chain.final).items()}
        self._rows.append(row)
        if len(self._rows) == FILES:
            self._flush_episodes()

    def close(self, total: int) -> None:
        """Writes what waits, the statistics of all `total` frames, and the task."""
        self._flush()
        self._data.close()
        self._flush_episodes()
        self._table.close()
        found = {name: _statistics(m, self.features[name], total) for name, m in self._all.items()}
        (self._folder / "meta" / "stats.json").write_text(json.dumps(found, indent=4), encoding="utf-8")
        self._pq.write_table(_task_table(self._task), self._folder / "meta" / "tasks.parquet")

    def _next_file(self) -> None:
        self._flush()
        self._data.close()
        self._data, self._file, self._written = None, self._file + 1, 0

    def _flush(self) -> None:
        """Writes the frames that wait."""
        if not self._waiting:
            return
        frames = {name: np.concatenate([part[name] for part in self._waiting]) for name in self._waiting[0]}
        table = arrow_table(frames)
        if self._data is None:
            place = (
                self._folder / "data" / f"chunk-{self._file // FILES:03d}" / f"file-{self._file % FILES:03d}.parquet"
            )
            place.parent.mkdir(parents=True, exist_ok=True)
            # dictionaries of real numbers, each of which occurs once, would only take memory
            counted = [name for name, column in frames.items() if column.dtype.kind != "f"]
            self._data = self._pq.ParquetWriter(place, table.schema, use_dictionary=counted)
        self._data.write_table(table)
        self._written += self._size
        self._waiting, self._size = [], 0

    def _flush_episodes(self) -> None:
        """Writes the rows of episodes that wait."""
        import pyarrow as pa

        if not self._rows:
            return
        finals = [name for name in self._rows[0] if name.startswith(FINAL)]
        plain = {name: pa.array([row[name] for row in self._rows]) for name in self._rows[0] if name not in finals}
        kept = arrow_table({name: np.concatenate([row[name] for row in self._rows]) for name in finals})
        table = pa.table(plain | {name: kept.column(name) for name in finals})
        if self._table is None:
            place = self._folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
            place.parent.mkdir(parents=True)
            self._table = self._pq.ParquetWriter(place, table.schema)
        self._table.write_table(table)
        self._rows = []


def _frames(rows: dict[str, Any]) -> dict[str, np.ndarray]:
    """The features of some frames by LeRobot's names, images as uint8 [rows, height, width, channels]."""
    named = {
        "reward": "next.reward",
        "cost": "next.cost",
        "terminated": "next.terminated",
        "truncated": "next.truncated",
    }
    out = _observed(rows["obs"]) | {"action": rows["action"]}
    out |= {theirs: rows[ours] for ours, theirs in named.items() if ours in rows}
    return out | {"next.done": rows["terminated"] | rows["truncated"]}


def _observed(obs: Any) -> dict[str, np.ndarray]:
    """The features of observations by LeRobot's names. Raises `DataError` for names with dots or slashes."""
    if not isinstance(obs, (dict, tuple)):
        return {"observation.image" if images.is_image(obs.shape[1:], obs.dtype) else "observation.state": obs}
    paths = jax.tree_util.tree_flatten_with_path(obs)[0]
    keys = {str(getattr(key, "key", "")) for path, _ in paths for key in path}
    if wrong := [key for key in keys if "." in key or "/" in key]:
        raise DataError(f"the observation has parts named {', '.join(wrong)}; LeRobot's names have no dots or slashes.")
    return {f"observation.{jax.tree_util.keystr(p, simple=True, separator='.')}": leaf for p, leaf in paths}


def _is_image(column: np.ndarray) -> bool:
    return images.is_image(column.shape[1:], column.dtype)


def _described(column: np.ndarray) -> dict[str, Any]:
    """A feature as `meta/info.json` describes it."""
    names = ["height", "width", "channels"] if _is_image(column) else None
    return {
        "dtype": "image" if _is_image(column) else str(column.dtype),
        "shape": list(column.shape[1:]) or [1],
        "names": names,
    }


def _for_statistics(column: np.ndarray) -> np.ndarray:
    """Samples of a feature: frames, or for images pixels, scaled to [0, 1]."""
    if _is_image(column):
        return np.asarray(column.reshape(-1, column.shape[-1]) / np.float32(255))
    return column[:, None] if column.ndim == 1 else column


def _statistics(moments: Moments, feature: dict[str, Any], count: int) -> dict[str, Any]:
    shape = (-1, 1, 1) if feature["dtype"] == "image" else feature["shape"]
    found = {"min": moments.low, "max": moments.high, "mean": moments.mean, "std": moments.std}
    return {name: value.reshape(shape).tolist() for name, value in found.items()} | {"count": [count]}


def arrow_table(columns: dict[str, np.ndarray]) -> Any:
    """Columns as an Arrow table: numbers, lists of fixed length, nested lists, and images as PNG."""
    import pyarrow as pa

    return pa.table({name: _arrow(pa, column) for name, column in columns.items()})


def _arrow(pa: Any, column: np.ndarray) -> Any:
    if _is_image(column):
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        return pa.array([{"bytes": images.png(image), "path": None} for image in column], kind)
    shape = column.shape[1:]
    array = pa.array(np.ascontiguousarray(column).reshape(-1))
    if shape in ((), (1,)):
        return array
    if len(shape) == 1:
        return pa.FixedSizeListArray.from_arrays(array, shape[0])
    for size in reversed(shape):
        array = pa.ListArray.from_arrays(np.arange(0, len(array) + 1, size, dtype=np.int32), array)
    return array


def _task_table(task: str) -> Any:
    """The only task, as pandas stores a table whose index is the text."""
    import pyarrow as pa

    columns = [
        {"name": n, "field_name": n, "pandas_type": t, "numpy_type": u, "metadata": None}
        for n, t, u in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    described = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.2.0"}
    table = pa.table({"task_index": pa.array([0], pa.int64()), "task": pa.array([task])})
    return table.replace_schema_metadata({"pandas": json.dumps(described)})
