"""Loading and saving data sets: by path, in any format, or by the name of a standard set."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from habitus.core.errors import ConfigError, DataError
from habitus.data.dataset import Dataset
from habitus.data.formats import d4rl, lerobot, minari, npz, rlds
from habitus.data.maker import make_offline, split_name
from habitus.data.stream import Stream

MODULES: dict[str, Any] = {"npz": npz, "d4rl": d4rl, "minari": minari, "lerobot": lerobot, "rlds": rlds}
FORMATS = tuple(MODULES)
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
        format: 'npz', 'd4rl', 'minari', 'lerobot' or 'rlds'; found out where it is None.
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
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}, expected one of {', '.join(FORMATS)}.")
    if mmap:
        do = f"convert it first: habitus data convert {path} {path.name}.npz"
        raise ConfigError(f"only npz can be memory-mapped, and {path} is {format}; {do}")
    made: Dataset = MODULES[format].read(path, limit=limit, validate=validate)
    return made


def save(dataset: Dataset, path: str | Path, *, format: str | None = None) -> Path:
    """Writes a data set, whole or not at all; returns the path.

    Without `format` it follows from the name: '.npz', '.hdf5' (D4RL's layout), a folder such as '1.0.0' (RLDS), or any
    other folder (Minari's).
    """
    path = Path(path)
    format = format or format_of(path)
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}, expected one of {', '.join(FORMATS)}.")
    if format == "npz":
        npz.write(dataset, path)
    else:
        MODULES[format].write(Stream.of(dataset), path)
    return path


def convert(
    source: str | Path,
    out: str | Path,
    *,
    format: str | None = None,
    validate: bool = True,
    report: Callable[[int, int | None], None] | None = None,
) -> Path:
    """Writes a data set in another format, whole or not at all, with a bounded number of rows in memory.

    Args:
        source: a file or folder.
        out: a path, from which the format follows as by `save`.
        format: of `out`.
        validate: whether to look at every value for errors; warnings are `load`'s.
        report: called with the rows of each piece once it is written, and how many there are in all if known.

    Raises:
        DataError: naming the file, the rows and the remedy.
    """
    path, out = Path(source), Path(out)
    if not path.exists():
        raise DataError(f"{path} does not exist.")
    format = format or format_of(out)
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}, expected one of {', '.join(FORMATS)}.")
    log = MODULES[detect(path)].stream(path)
    log = log.checked() if validate else log
    if report is not None:
        total = log.rows
        log = log.watched(lambda rows: report(rows, total))
    MODULES[format].write(log, out)
    return out


def format_of(path: Path) -> str:
    """The format that the name of a file or folder to be written asks for."""
    version = re.fullmatch(r"\d+\.\d+\.\d+", path.name)
    return _SUFFIXES.get(path.suffix.lower(), "rlds" if version else "minari")


def detect(path: Path) -> str:
    """The format of a file or folder. Raises `DataError` where it is none of them."""
    folders = {"minari": minari.is_minari, "lerobot": lerobot.is_lerobot, "rlds": rlds.is_rlds}
    for format, belongs in folders.items():
        if belongs(path):
            return format
    if path.is_dir():
        raise DataError(
            f"{path} is a folder without data/metadata.json; a Minari set has one, a LeRobot set meta/info.json, "
            "and the version folder of an RLDS set features.json."
        )
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    if magic in _MAGIC:
        return _MAGIC[magic]
    if path.suffix.lower() in _SUFFIXES:
        raise DataError(f"{path} is not a {path.suffix} file: it is truncated, or something else by its first bytes.")
    raise DataError(f"{path} is neither npz nor HDF5, and no folder of Minari, LeRobot or RLDS.")
