"""What all readers and writers share: the names of columns, one kind of error, limits, and whole files or none."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from habitus.core.errors import DataError, HabitusError, SpaceMismatch
from habitus.core.spec import space_from_json, space_to_json
from habitus.data.defects import column_leaves, raise_errors, starts_column
from habitus.data.summary import pieces

GIBIBYTE = 2**30
LIMIT = 8 * GIBIBYTE  # bytes that a file may ask for in memory, unless the caller allows more

# name in memory -> name in a file, as D4RL has it
FIELDS = {
    "obs": "observations",
    "action": "actions",
    "reward": "rewards",
    "next_obs": "next_observations",
    "terminated": "terminals",
    "truncated": "timeouts",
    "starts": "episode_start",
    "cost": "costs",
}
REQUIRED = ("obs", "action", "reward", "terminated")

# what h5py, NumPy, json and zipfile raise for damaged files
_DAMAGED = (OSError, EOFError, ValueError, KeyError, MemoryError, OverflowError, RuntimeError, SyntaxError)
_MALFORMED = (*_DAMAGED, struct.error, zipfile.BadZipFile, zlib.error, SpaceMismatch)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong in a file into a `DataError` that begins with its path."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {str(error).removeprefix('the data set: ')}") from error
    except _MALFORMED as error:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise DataError(f"{path} cannot be read, it is truncated or not what its name says ({what}).") from error


@contextlib.contextmanager
def describing(name: str) -> Iterator[None]:
    """Turns what goes wrong where a description is not built as it should be into a `DataError`."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, AssertionError, ValueError, OverflowError) as error:
        if isinstance(error, HabitusError):
            raise
        raise DataError(f"{name} is damaged ({type(error).__name__}: {error}).") from error


def require_fields(found: set[str], path_in_file: str = "the file") -> None:
    """Raises `DataError` unless the necessary columns, by their names in memory, are among `found`."""
    missing = [FIELDS[name] for name in REQUIRED if name not in found]
    if missing:
        held = ", ".join(FIELDS.get(name, name) for name in sorted(found)) or "none of the expected columns"
        raise DataError(f"{path_in_file} lacks {', '.join(missing)}; it holds {held}.")


def require_rows(columns: dict[str, Any], starts: Any) -> int:
    """How many rows the columns of a file have. Raises `DataError` unless it is as many in each, and at least one."""
    lengths = {
        field: leaf.shape[0] if leaf.shape else 0
        for name, column in columns.items()
        for field, leaf in column_leaves(name, column)
    }
    rows = lengths.get("reward", 0)
    if rows == 0:
        raise DataError("reward is empty; a log needs at least one row.")
    for field, length in lengths.items():
        if length != rows:
            raise DataError(f"{field} has {length} rows, but reward has {rows}; give every column one row a step.")
    raise_errors([] if starts is None else starts_column(starts, rows), "the data set")
    return rows


def require_size(size: int, limit: int, what: str = "the arrays") -> None:
    """Raises `DataError` if `size` bytes exceed `limit`."""
    if size > limit:
        shown, allowed = (f"{n / GIBIBYTE:.3g} GiB" for n in (size, limit))
        raise DataError(f"{what} would take {shown}, more than the limit of {allowed}; pass limit= if that is meant.")


def require_numbers(name: str, dtype: np.dtype) -> None:
    """Raises `DataError` for anything but plain numbers and booleans: objects would run code when unpacked."""
    if dtype.kind not in "fiub":
        raise DataError(f"{name} holds {dtype}, expected plain numbers; save it without objects or text.")


def chunks(column: Any) -> Iterator[np.ndarray]:
    """A column piece by piece, each contiguous in memory."""
    return map(np.ascontiguousarray, pieces(column))


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place once the block ends well, and goes if it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)


def header_of(log: Any) -> str:
    """The spaces and the origin of a data set or of a stream that was read, as JSON; inverse of `read_header`."""
    spaces = {name: space_to_json(getattr(log, name)) for name in ("observation_space", "action_space")}
    return plain_json(spaces | {"meta": log.meta})


def read_header(text: str | bytes) -> dict[str, Any]:
    """`observation_space`, `action_space` and `meta` of a file. Raises `DataError` if they are not that."""
    try:
        data = json.loads(text)
        spaces = {name: space_from_json(data[name]) for name in ("observation_space", "action_space")}
        return spaces | {"meta": dict(data["meta"])}
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError, OverflowError, HabitusError) as error:
        raise DataError(f"its header is damaged ({type(error).__name__}: {error}).") from error


def plain_json(data: dict[str, Any]) -> str:
    """JSON of plain data; NumPy numbers become Python's."""
    return json.dumps(data, default=lambda x: x.item() if isinstance(x, np.generic) else np.asarray(x).tolist())
