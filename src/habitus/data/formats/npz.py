"""NumPy archives: the library's own format, stored so that it can be memory-mapped.

Members `observations`, `actions`, `rewards`, `next_observations`, `terminals`, `timeouts` and, if there
are any, `costs` (one row a step), `episode_start`, and `header.json` with the spaces and what is known
of the origin. The parts of a Dict observation are members of their own: `observations.goal`. Any `.npz` with the
first three and `terminals` can be read; what it lacks is inferred as by `Dataset.from_arrays`.
"""

from __future__ import annotations

import contextlib
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.lib import format as npy

from habitus.core.errors import DataError
from habitus.data.complete import completed
from habitus.data.dataset import COLUMNS, Dataset
from habitus.data.defects import column_leaves
from habitus.data.formats import guard
from habitus.data.formats.spool import spooled
from habitus.data.stream import Stream, step_of

HEADER = "header.json"
HEADER_LIMIT = 2**26
MAPPED_LIMIT = 64 * guard.GIBIBYTE
_ALIGN = 64  # so that mapped arrays are aligned as NumPy's own files are
_PADDING = 0xD935  # zip extra field that other tools use for alignment as well
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed date: the same data set is the same file
_LOCAL_HEADER = struct.Struct("<4s22xHH")


def write(log: Dataset | Stream, path: Path) -> None:
    """Writes the whole file or nothing; columns on disk are copied piece by piece.

    An archive holds one column after the other, a stream all of them at once: until the last piece was read, the
    columns of a stream lie in temporary files beside `path`.
    """
    if isinstance(log, Stream):
        with spooled(log, path) as dataset:
            return write(dataset, path)
    dataset = log
    with guard.whole(path) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(HEADER, _EPOCH), guard.header_of(dataset))
        for name in (*dataset.columns, "starts"):
            for member, column in column_leaves(guard.FIELDS[name], getattr(dataset, name)):
                _write_array(archive, f"{member}.npy", column)


def _write_array(archive: zipfile.ZipFile, member: str, column: Any) -> None:
    info = zipfile.ZipInfo(member, _EPOCH)
    assert archive.fp is not None
    after = archive.fp.tell() + 30 + len(member) + 20 + 4  # local header, zip64 field, padding field
    padding = -after % _ALIGN
    info.extra = struct.pack("<HH", _PADDING, padding) + bytes(padding)
    with archive.open(info, "w", force_zip64=True) as out:
        described = {"descr": npy.dtype_to_descr(column.dtype), "fortran_order": False, "shape": column.shape}
        npy.write_array_header_1_0(out, described)
        for chunk in guard.chunks(column):
            out.write(chunk.reshape(-1).view(np.uint8).data)


def read(path: Path, *, mmap: bool = False, limit: int | None = None, validate: bool = True) -> Dataset:
    """The data set in a file; with `mmap` its columns stay on disk.

    `limit` bounds the bytes that the file may declare: 64 GiB mapped, 8 GiB in memory.
    """
    with guard.reading(path), zipfile.ZipFile(path) as archive:
        members = _members(archive, path)
        limit = limit or (MAPPED_LIMIT if mmap else guard.LIMIT)
        guard.require_size(sum(info.file_size for info in members.values()), limit)
        header = _header(archive)
        columns: dict[str, Any] = {}
        for member, info in members.items():
            columns[member] = _read_array(archive, info, path, mmap)
        found = {name: _assemble(columns, name, header.get(f"{space}_space")) for name, space in _SPACES.items()}
        found = {name: column for name, column in found.items() if column is not None}
        guard.require_fields(set(found))
        named = {name: found.get(name) for name in (*COLUMNS, "starts", "cost")}
        return Dataset.from_arrays(
            **named,
            observation_space=header.get("observation_space"),
            action_space=header.get("action_space"),
            meta=header.get("meta"),
            validate=validate,
        )


def stream(path: Path) -> Stream:
    """The log in a file, piece by piece, whether its members are compressed or not."""
    with guard.reading(path), zipfile.ZipFile(path) as archive:
        members = _members(archive, path)
        header = _header(archive)
        with contextlib.ExitStack() as opened:
            heads = {name: _Member.opened(archive, info, opened) for name, info in members.items()}
        found = {name: _assemble(heads, name, header.get(f"{space}_space")) for name, space in _SPACES.items()}
        columns = {name: column for name, column in found.items() if column is not None}
        guard.require_fields(set(columns))
        starts = columns.pop("starts", None)
        bounds = None if starts is None else _read_array(archive, members["starts"], path, mmap=False)
        rows = guard.require_rows(columns, bounds)
    meta = header.get("meta", {})

    def chunks() -> Iterator[dict[str, Any]]:
        with zipfile.ZipFile(path) as archive, contextlib.ExitStack() as opened:
            heads = {name: _Member.opened(archive, info, opened) for name, info in members.items() if name != "starts"}
            whole = {name: _assemble(heads, name, header.get(f"{_SPACES[name]}_space")) for name in columns}
            step = step_of(heads.values())
            for first in range(0, rows, step):
                yield {n: _taken(column, min(step, rows - first)) for n, column in whole.items()}
            for head in heads.values():
                head.close()

    known = {name: header.get(name) for name in ("observation_space", "action_space")}
    return Stream(completed(chunks(), bounds, meta, rows), path, **known, meta=meta, rows=rows)


def _taken(column: Any, rows: int) -> Any:
    if isinstance(column, dict):
        return {key: _taken(part, rows) for key, part in column.items()}
    return tuple(_taken(part, rows) for part in column) if isinstance(column, tuple) else column.take(rows)


class _Member:
    """A column of an archive, read from its first row to its last.

    Attributes:
        shape: [rows, ...], as the member says and its size confirms.
        dtype: of the values on disk.
    """

    def __init__(self, name: str, file: Any, shape: tuple[int, ...], dtype: np.dtype):
        self._name, self._file, self.shape, self.dtype = name, file, shape, dtype

    def __len__(self) -> int:
        return self.shape[0]

    @classmethod
    def opened(cls, archive: zipfile.ZipFile, info: zipfile.ZipInfo, files: contextlib.ExitStack) -> _Member:
        """The column in a member, which is closed with `files`."""
        file = files.enter_context(archive.open(info))
        shape, fortran, dtype = _declared(file, info)
        if fortran and len(shape) > 1:
            raise DataError(f"{info.filename} is stored column by column; save it with np.ascontiguousarray.")
        return cls(info.filename, file, shape, dtype)

    def take(self, rows: int) -> np.ndarray:
        """The next rows."""
        size = int(np.prod((rows, *self.shape[1:]), dtype=object)) * self.dtype.itemsize
        raw = self._file.read(size)
        if len(raw) != size:
            raise DataError(f"{self._name} is truncated.")
        column = np.frombuffer(raw, self.dtype).reshape(rows, *self.shape[1:])
        return column.astype(self.dtype.newbyteorder("="), copy=False)

    def close(self) -> None:
        """Reads on to the end, where the checksum is compared."""
        _check_stored(self._file)


_SPACES = {
    "obs": "observation",
    "next_obs": "observation",
    "action": "action",
    "reward": "",
    "terminated": "",
    "truncated": "",
    "starts": "",
    "cost": "",
}


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The members that hold columns, by their names in memory; refuses archives that contradict themselves."""
    infos = archive.infolist()
    if sum(info.compress_size for info in infos) > path.stat().st_size:
        raise DataError("its members overlap; it is not an archive that NumPy wrote.")
    for info in infos:
        archive.open(info).close()  # compares the name with the one beside the bytes, so that none is lost by damage
    out: dict[str, zipfile.ZipInfo] = {}
    in_memory = {file: name for name, file in guard.FIELDS.items()} | {name: name for name in guard.FIELDS}
    for info in infos:
        stem, _, part = info.filename.removesuffix(".npy").partition(".")
        if not info.filename.endswith(".npy") or stem not in in_memory:
            continue
        name = in_memory[stem] + (f".{part}" if part else "")
        if name in out:
            raise DataError(f"{info.filename} occurs twice.")
        out[name] = info
    return out


def _header(archive: zipfile.ZipFile) -> dict[str, Any]:
    """The spaces and the origin, where the file tells them."""
    if HEADER not in archive.namelist():
        return {}
    guard.require_size(archive.getinfo(HEADER).file_size, HEADER_LIMIT, HEADER)
    return guard.read_header(archive.read(HEADER))


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, mmap: bool) -> np.ndarray:
    with archive.open(info) as member:
        shape, fortran, dtype = _declared(member, info)
        start, size = member.tell(), int(np.prod(shape, dtype=object)) * dtype.itemsize
        order = "F" if fortran else "C"
        if mmap and info.compress_type == zipfile.ZIP_STORED and dtype.isnative and size:
            _check_stored(member)
            offset = _data_offset(path, info) + start
            return np.memmap(path, dtype, "r", offset, shape, order)  # type: ignore[call-overload,no-any-return]
        raw = bytearray(member.read())  # to the end, where the checksum is compared
    column = np.frombuffer(raw, dtype).reshape(shape, order=order)  # type: ignore[call-overload]
    return column.astype(dtype.newbyteorder("="), copy=False)


def _declared(member: Any, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of an array, if its size is that of the member."""
    shape, fortran, dtype = _array_header(member)
    start = member.tell()
    guard.require_numbers(info.filename, dtype)
    if int(np.prod(shape, dtype=object)) * dtype.itemsize != info.file_size - start:
        raise DataError(f"{info.filename} declares {dtype}{list(shape)}, but holds {info.file_size - start} bytes.")
    return shape, fortran, dtype


def _array_header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(member)
    if version not in readers:
        raise DataError(f"it uses version {version} of the NumPy format, expected 1.0 or 2.0.")
    return readers[version](member)


def _check_stored(member: Any) -> None:
    """Reads to the end, where the checksum is compared."""
    while member.read(2**24):
        pass


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored member begin in the file."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise DataError(f"{info.filename} does not begin where the archive says.")
    return info.header_offset + _LOCAL_HEADER.size + name + extra


def _assemble(columns: dict[str, Any], name: str, space: spaces.Space | None) -> Any:
    """One column, from its parts where its space has parts (or, without a space, where the names have)."""
    parts = {key.removeprefix(f"{name}."): value for key, value in columns.items() if key.startswith(f"{name}.")}
    if not parts:
        return columns.get(name)
    return _nest(parts, space)


def _nest(parts: dict[str, Any], space: spaces.Space | None) -> Any:
    """The nested column whose dotted names are the keys of `parts`."""
    grouped: dict[str, dict[str, Any]] = {}
    for key, value in parts.items():
        head, _, rest = key.partition(".")
        grouped.setdefault(head, {})[rest] = value
    inner = {str(k): v for k, v in _inner_spaces(space).items()}
    nested = {k: v[""] if "" in v else _nest(v, inner.get(k)) for k, v in grouped.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(nested[str(i)] for i in range(len(nested)))
    return nested


def _inner_spaces(space: spaces.Space | None) -> dict[Any, spaces.Space]:
    if isinstance(space, spaces.Dict):
        return dict(space.spaces)
    return dict(enumerate(space.spaces)) if isinstance(space, spaces.Tuple) else {}
