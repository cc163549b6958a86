"""D4RL's HDF5 files: one flat array a column, with `terminals` and `timeouts`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from habitus.core.errors import DataError
from habitus.core.spec import space_from_json, space_to_json
from habitus.data.dataset import COLUMNS, Dataset
from habitus.data.formats import guard, hdf5

# Fu et al. 2020, 'D4RL', d4rl/infos.py: returns of a random and of an expert policy
REFERENCES = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
}


def read(path: Path, *, limit: int | None = None, validate: bool = True) -> Dataset:
    """The data set in a D4RL file. Without `next_observations` they are taken from the next rows."""
    with hdf5.opened(path) as file:
        arrays = {name: file[field] for name, field in guard.FIELDS.items() if field in file}
        guard.require_fields(set(arrays))
        for name, array in arrays.items():
            if not hasattr(array, "shape"):
                raise DataError(f"{guard.FIELDS[name]} is a group, expected one array.")
        guard.require_size(sum(map(hdf5.size_of, arrays.values())), limit or guard.LIMIT)
        columns: dict[str, Any] = {name: hdf5.read_array(array) for name, array in arrays.items()}
        header = json.loads(file.attrs["habitus"]) if "habitus" in file.attrs else {}
        known: dict[str, Any] = {k: space_from_json(header[k]) for k in header if k.endswith("_space")}
        columns |= {name: columns.get(name) for name in (*COLUMNS, "starts")}
        return Dataset.from_arrays(
            **columns, **known, meta=header.get("meta", _references(path.stem)), validate=validate
        )


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
    h5py = hdf5.import_h5py()
    header = {
        "observation_space": space_to_json(dataset.observation_space),
        "action_space": space_to_json(dataset.action_space),
        "meta": dataset.meta,
    }
    with guard.whole(path) as draft, h5py.File(draft, "w") as file:
        file.attrs["habitus"] = guard.plain_json(header)
        for name in (*COLUMNS, "starts"):
            column = getattr(dataset, name)
            array = file.create_dataset(guard.FIELDS[name], column.shape, np.dtype(column.dtype))
            row = 0
            for chunk in guard.chunks(column):
                array[row : row + len(chunk)] = chunk
                row += len(chunk)
