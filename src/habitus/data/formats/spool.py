"""Columns in plain temporary files, for formats that store one column after the other."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from habitus.data.dataset import Dataset
from habitus.data.defects import column_leaves
from habitus.data.stream import Stream


class OnDisk:
    """A column in a file of its own: a slice of it is read, and no page stays mapped.

    Attributes:
        shape: [rows, ...].
        dtype: of the values.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype):
        self._path, self.shape, self.dtype = path, shape, dtype
        self._row = int(np.prod(shape[1:], dtype=object)) * dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the column."""
        return len(self) * self._row

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        count = max(0, stop - start) * int(np.prod(self.shape[1:], dtype=object))
        return np.fromfile(self._path, self.dtype, count, offset=start * self._row).reshape(-1, *self.shape[1:])


@contextlib.contextmanager
def spooled(log: Stream, beside: Path) -> Iterator[Dataset]:
    """A stream as a data set whose columns lie in temporary files next to `beside`, which go afterwards."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    folder = beside.with_name(f".{beside.name}.{os.getpid()}-{os.urandom(4).hex()}.columns")
    folder.mkdir()
    try:
        with contextlib.ExitStack() as closing:
            files: dict[str, Any] = {}
            starts, row, last = [], 0, None
            for piece in log:
                for name, column in piece.columns.items():
                    for field, leaf in column_leaves(name, column):
                        if field not in files:
                            files[field] = closing.enter_context((folder / str(len(files))).open("wb"))
                        files[field].write(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
                starts.append(piece.starts + row)
                row, last = row + len(piece), piece
        assert last is not None and log.observation_space is not None and log.action_space is not None

        def placed(name: str, column: Any) -> Any:
            places = iter([files[field].name for field, _ in column_leaves(name, column)])
            return jax.tree.map(lambda leaf: OnDisk(Path(next(places)), (row, *leaf.shape[1:]), leaf.dtype), column)

        columns = {name: placed(name, column) for name, column in last.columns.items()}
        bounds = np.concatenate(starts)
        yield Dataset(
            **columns,
            starts=bounds,
            observation_space=log.observation_space,
            action_space=log.action_space,
            meta=log.meta,
        )
    finally:
        shutil.rmtree(folder)
