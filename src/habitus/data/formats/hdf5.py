"""Reading HDF5 files safely: for the formats built on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from habitus.core.errors import DataError, MissingExtra
from habitus.data.formats import guard

BLOCK = 2**19  # bytes of a column that are stored together


def import_h5py() -> Any:
    """The `h5py` module. Raises `MissingExtra` where it is not installed."""
    try:
        import h5py
    except ImportError:
        raise MissingExtra("reading and writing HDF5", "hdf5") from None
    return h5py


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An HDF5 file, open for reading; what goes wrong becomes a `DataError` naming it."""
    h5py = import_h5py()
    with guard.reading(path), h5py.File(path, "r") as file:
        yield file


@contextlib.contextmanager
def created(path: Path) -> Iterator[Any]:
    """A new HDF5 file, in the layout of HDF5 1.10, whose structure has checksums."""
    with import_h5py().File(path, "w", libver=("v110", "latest"), track_order=True) as file:
        yield file


def append(group: Any, name: str, rows: np.ndarray) -> None:
    """Adds rows to a column, which the first ones make; with checksums."""
    if name not in group:
        kind = {"dtype": rows.dtype, "maxshape": (None, *rows.shape[1:])}
        row = max(1, int(np.prod(rows.shape[1:])) * rows.dtype.itemsize)
        block = (max(1, min(len(rows), BLOCK // row)), *(max(1, n) for n in rows.shape[1:]))
        group.create_dataset(name, (0, *rows.shape[1:]), chunks=block, fletcher32=True, **kind)
    array = group[name]
    first = len(array)
    array.resize(first + len(rows), axis=0)
    array[first:] = rows


def child(group: Any, name: str) -> Any:
    """`group[name]`, if it lies in the same file. Raises `DataError` if it is missing or a link to another."""
    link = group.get(name, getlink=True)
    if link is None:
        raise DataError(f"{group.name.rstrip('/')}/{name} is missing.")
    if not isinstance(link, import_h5py().HardLink):
        raise DataError(f"{group.name.rstrip('/')}/{name} is a link; copy what it points to into the file.")
    return group[name]


def arrays_in(node: Any) -> Iterator[Any]:
    """The arrays at or below `node`; refuses what lies in other files."""
    h5py = import_h5py()
    if isinstance(node, h5py.Group):
        for key in node:
            yield from arrays_in(child(node, key))
    elif isinstance(node, h5py.Dataset):
        if node.external or node.is_virtual:
            raise DataError(f"{node.name} is kept in other files; copy it into this one.")
        yield node
    else:
        raise DataError(f"{node.name} is neither a group nor an array.")


def size_of(node: Any) -> int:
    """Bytes that the arrays at or below `node` declare, whatever is stored of them."""
    return sum(int(np.prod(array.shape or (0,), dtype=object)) * array.dtype.itemsize for array in arrays_in(node))


def require_array(array: Any) -> None:
    """Raises `DataError` for anything but an array of numbers."""
    if not isinstance(array, import_h5py().Dataset):
        raise DataError(f"{array.name} is a group, expected one array.")
    if array.external or array.is_virtual:
        raise DataError(f"{array.name} is kept in other files; copy it into this one.")
    guard.require_numbers(array.name, array.dtype)
    if array.shape is None:
        raise DataError(f"{array.name} is empty.")


def read_array(array: Any) -> np.ndarray:
    """One array in memory. Raises `DataError` for anything but numbers."""
    require_array(array)
    return np.asarray(array[()])
