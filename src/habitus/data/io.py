"""Loading and saving data sets: by path, in any format, or by the name of a standard set."""

from __future__ import annotations

from pathlib import Path

from habitus.core.errors import ConfigError, DataError
from habitus.data.dataset import Dataset
from habitus.data.formats import d4rl, minari, npz
from habitus.data.maker import make_offline, split_name

FORMATS = ("npz", "d4rl", "minari")
_SUFFIXES = {".npz": "npz", ".hdf5": "d4rl", ".h5": "d4rl"}
_MAGIC = {b"PK\x03\x04": "npz", b"\x89HDF": "d4rl"}


def load(
    source: str | Path,
    *,
    format: str | None = None,
    mmap: bool = False,
    limit: int | None = None,
    validate: bool = True,
) -> Dataset:
    """The data set in a file or folder, or the standard one of that name.

    Args:
        source: a path, or a name such as 'pendulum-medium' (see `make_offline`).
        format: 'npz', 'd4rl' or 'minari'; found out where it is None.
        mmap: leave the columns on disk, for a set larger than memory; npz only.
        limit: greatest size in bytes that the file may declare, checked before anything is
            unpacked; by default 8 GiB in memory and 64 GiB mapped.
        validate: whether to look at every value for defects.

    Raises:
        DataError: naming the file, the rows and the remedy.
        UnknownName: if there is neither such a file nor such a standard set.
    """
    path = Path(source)
    if not path.exists():
        if path.suffix in _SUFFIXES or len(path.parts) > 1:
            raise DataError(f"{path} does not exist.")
        return make_offline(*split_name(str(source)))
    format = format or detect(path)
    if format == "npz":
        return npz.read(path, mmap=mmap, limit=limit, validate=validate)
    if mmap:
        raise ConfigError(f"only npz can be memory-mapped, and {path} is {format}; save it as npz first.")
    if format == "minari":
        return minari.read(path, limit=limit, validate=validate)
    if format == "d4rl":
        return d4rl.read(path, limit=limit, validate=validate)
    raise ConfigError(f"format is {format!r}, expected one of {', '.join(FORMATS)}.")


def save(dataset: Dataset, path: str | Path, *, format: str | None = None) -> Path:
    """Writes a data set, whole or not at all; returns the path.

    The format follows from the name: '.npz', '.hdf5' (D4RL's layout), or a folder (Minari's).
    """
    path = Path(path)
    format = format or _SUFFIXES.get(path.suffix.lower(), "minari")
    writers = {"npz": npz.write, "d4rl": d4rl.write, "minari": minari.write}
    if format not in writers:
        raise ConfigError(f"format is {format!r}, expected one of {', '.join(FORMATS)}.")
    writers[format](dataset, path)
    return path


def detect(path: Path) -> str:
    """The format of a file or folder. Raises `DataError` where it is none of them."""
    if minari.is_minari(path):
        return "minari"
    if path.is_dir():
        raise DataError(f"{path} is a folder without data/metadata.json; a Minari set has one.")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    if magic in _MAGIC:
        return _MAGIC[magic]
    if path.suffix.lower() in _SUFFIXES:
        raise DataError(f"{path} is not a {path.suffix} file: it is truncated, or something else by its first bytes.")
    raise DataError(f"{path} is neither npz nor HDF5, and no Minari folder.")
