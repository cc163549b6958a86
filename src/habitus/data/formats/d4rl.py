"""D4RL's HDF5 files: one flat array a column, with `terminals` and `timeouts`; and DSRL's, which add `costs`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from habitus.core.errors import DataError
from habitus.data.complete import completed
from habitus.data.dataset import COLUMNS, Dataset
from habitus.data.formats import guard, hdf5
from habitus.data.stream import Stream, step_of

# Fu et al. 2020, 'D4RL', d4rl/infos.py: returns of a random and of an expert policy
REFERENCES = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
}
_HEADER = "habitus"  # bytes with what the format itself has no place for


def read(path: Path, *, limit: int | None = None, validate: bool = True) -> Dataset:
    """The data set in a D4RL file. Without `next_observations` they are taken from the next rows."""
    with hdf5.opened(path) as file:
        arrays = _arrays(file)
        guard.require_size(sum(map(hdf5.size_of, arrays.values())), limit or guard.LIMIT)
        columns: dict[str, Any] = {name: hdf5.read_array(array) for name, array in arrays.items()}
        columns |= {name: columns.get(name) for name in (*COLUMNS, "starts", "cost")}
        return Dataset.from_arrays(**columns, **_read_header(file, path), validate=validate)


def stream(path: Path) -> Stream:
    """The log in a D4RL file, piece by piece."""
    with hdf5.opened(path) as file:
        arrays = _arrays(file)
        for array in arrays.values():
            hdf5.require_array(array)
        starts = hdf5.read_array(arrays.pop("starts")) if "starts" in arrays else None
        rows = guard.require_rows(arrays, starts)
        header = _read_header(file, path)
    meta = header["meta"]

    def chunks() -> Iterator[dict[str, Any]]:
        with hdf5.opened(path) as file:
            arrays = {name: array for name, array in _arrays(file).items() if name != "starts"}
            step = step_of(arrays.values())
            for first in range(0, rows, step):
                yield {name: array[first : first + step] for name, array in arrays.items()}

    return Stream(completed(chunks(), starts, meta, rows), path, **header, rows=rows)


def _arrays(file: Any) -> dict[str, Any]:
    """The columns by their names in memory, not yet read."""
    arrays = {name: hdf5.child(file, field) for name, field in guard.FIELDS.items() if field in file}
    guard.require_fields(set(arrays))
    return arrays


def _read_header(file: Any, path: Path) -> dict[str, Any]:
    if _HEADER in file:
        return guard.read_header(hdf5.read_array(hdf5.child(file, _HEADER)).tobytes())
    return {"meta": _references(path.stem)}


def _references(stem: str) -> dict[str, Any]:
    """What the name of a file of the benchmark tells: 'hopper_medium-v2' or 'hopper-medium-v2'."""
    match = re.match(rf"({'|'.join(REFERENCES)})[-_](.+?)(-v\d+)?$", stem)
    if match is None:
        return {}
    low, high = REFERENCES[match[1]]
    return {"task": match[1], "split": match[2], "random_return": low, "expert_return": high}


def write(log: Stream, path: Path) -> None:
    """Writes the whole file or nothing.

    Raises:
        DataError: for observations of several parts, which the format does not have.
    """
    with guard.whole(path) as draft, hdf5.created(draft) as file:
        starts, row = [], 0
        for piece in log:
            if isinstance(piece.columns["obs"], (dict, tuple)):
                raise DataError("D4RL files hold one observation array; save Dict observations as npz or Minari.")
            for name, column in piece.columns.items():
                hdf5.append(file, guard.FIELDS[name], column)
            starts.append(piece.starts + row)
            row += len(piece)
        hdf5.append(file, guard.FIELDS["starts"], np.concatenate(starts))
        hdf5.append(file, _HEADER, np.frombuffer(guard.header_of(log).encode(), np.uint8))
