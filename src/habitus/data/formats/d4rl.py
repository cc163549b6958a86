"""D4RL's HDF5 files: one flat array a column, with `terminals` and `timeouts`; and DSRL's, which add `costs`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from habitus.core.errors import DataError
from habitus.data.dataset import COLUMNS, Dataset
from habitus.data.formats import guard, hdf5

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
        arrays = {name: hdf5.child(file, field) for name, field in guard.FIELDS.items() if field in file}
        guard.require_fields(set(arrays))
        guard.require_size(sum(map(hdf5.size_of, arrays.values())), limit or guard.LIMIT)
        columns: dict[str, Any] = {name: hdf5.read_array(array) for name, array in arrays.items()}
        columns |= {name: columns.get(name) for name in (*COLUMNS, "starts", "cost")}
        header: dict[str, Any] = {"meta": _references(path.stem)}
        if _HEADER in file:
            header = guard.read_header(hdf5.read_array(hdf5.child(file, _HEADER)).tobytes())
        return Dataset.from_arrays(**columns, **header, validate=validate)


def _references(stem: str) -> dict[str, Any]:
    """What the name of a file of the benchmark tells: 'hopper_medium-v2' or 'hopper-medium-v2'."""
    match = re.match(rf"({'|'.join(REFERENCES)})[-_](.+?)(-v\d+)?$", stem)
    if match is None:
        return {}
    low, high = REFERENCES[match[1]]
    return {"task": match[1], "split": match[2], "random_return": low, "expert_return": high}


def write(dataset: Dataset, path: Path) -> None:
    """Writes the whole file or nothing.

    Raises:
        DataError: for observations of several parts, which the format does not have.
    """
    if isinstance(dataset.obs, (dict, tuple)):
        raise DataError("D4RL files hold one observation array; save Dict observations as npz or Minari.")
    with guard.whole(path) as draft, hdf5.created(draft) as file:
        hdf5.write_array(file, _HEADER, np.frombuffer(guard.header_of(dataset).encode(), np.uint8))
        for name in (*dataset.columns, "starts"):
            hdf5.write_array(file, guard.FIELDS[name], getattr(dataset, name))
