"""TFRecord files and the messages `tf.train.Example` and `SequenceExample` in them, without TensorFlow.

A record is its length (uint64), a masked CRC-32C of the length, the bytes, and a masked CRC-32C of the bytes, all
little-endian. The messages use four forms of protocol buffers' wire format: nested messages, strings, packed floats,
packed varints.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from habitus.core.errors import DataError, MissingExtra

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_MASK = 0xA282EAD8
_BYTES, _FLOATS, _INTEGERS = 1, 2, 3  # fields of tf.train.Feature
Feature = np.ndarray | list[bytes]


def crc(data: bytes) -> int:
    """The masked CRC-32C of TFRecord. Raises `MissingExtra` where `google-crc32c` is not installed."""
    try:
        import google_crc32c
    except ImportError:
        raise MissingExtra("reading and writing TFRecord files", "rlds") from None
    plain = google_crc32c.value(data)
    return (((plain >> 15) | (plain << 17)) + _MASK) & 0xFFFFFFFF


def records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each record of a file.

    Raises:
        DataError: naming the record, where one is truncated, longer than the file, or does not match its checksum.
    """
    with path.open("rb") as file:
        left, number = path.stat().st_size, 0
        while left:
            if left < 16:
                raise DataError(f"record {number} is truncated: {left} bytes are left, expected at least 16.")
            head, check = file.read(8), _CRC.unpack(file.read(4))[0]
            if crc(head) != check:
                raise DataError(f"record {number} is damaged: its length does not match its checksum.")
            (length,) = _LENGTH.unpack(head)
            if length > left - 16:
                raise DataError(f"record {number} is truncated: it declares {length} bytes, {left - 16} are left.")
            data = file.read(length)
            if crc(data) != _CRC.unpack(file.read(4))[0]:
                raise DataError(f"record {number} is damaged: its bytes do not match their checksum.")
            yield number, data
            left, number = left - 16 - length, number + 1


def write_record(file: BinaryIO, data: bytes) -> int:
    """Appends a record; returns the bytes that it takes."""
    head = _LENGTH.pack(len(data))
    file.write(head + _CRC.pack(crc(head)))
    file.write(data)
    file.write(_CRC.pack(crc(data)))
    return len(data) + 16


# --- reading messages


def read_example(data: bytes) -> dict[str, Feature]:
    """The features of an `Example` by name, those of a `SequenceExample` one step after the other.

    Numbers are arrays, strings a list of bytes.

    Raises:
        DataError: if the bytes are not such a message.
    """
    try:
        found: dict[str, Feature] = {}
        for field, value in _fields(memoryview(data)):
            for inner, entry in _fields(value) if field in (1, 2) else ():
                if inner == 1:  # features and feature lists are maps alike
                    name, content = _entry(entry)
                    found[name] = _feature(content) if field == 1 else _steps(content)
        return found
    except (IndexError, struct.error, UnicodeDecodeError, ValueError, TypeError) as error:
        raise DataError(f"it is no tf.train.Example ({type(error).__name__}: {error}).") from error


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and content of each field of a message; integers as integers, everything else as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field has the wire type {kind}")
        if length > len(data) - at:
            raise ValueError(f"a field of {length} bytes, {len(data) - at} are left")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError("a varint of more than ten bytes")


def _entry(data: Any) -> tuple[str, memoryview]:
    found = dict(_fields(data))
    return bytes(found.get(1, b"")).decode(), found.get(2, memoryview(b""))


def _feature(data: memoryview) -> Feature:
    for field, content in _fields(data):
        if field == _BYTES:
            return [bytes(value) for inner, value in _fields(content) if inner == 1]
        if field in (_FLOATS, _INTEGERS):
            parts = [value for inner, value in _fields(content) if inner == 1]
            read = _floats if field == _FLOATS else _integers
            return np.concatenate([read(part) for part in parts]) if parts else read(memoryview(b""))
    return np.zeros(0, np.float32)


def _steps(data: memoryview) -> Feature:
    parts = [_feature(value) for field, value in _fields(data) if field == 1]
    if parts and isinstance(parts[0], list):
        return [value for part in parts for value in part]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _floats(data: memoryview) -> np.ndarray:
    return np.frombuffer(data, "<f4")


def _integers(data: Any) -> np.ndarray:
    """Packed varints; or one that is not packed."""
    if isinstance(data, int):
        return np.array([data], np.uint64).view(np.int64)
    raw = np.frombuffer(data, np.uint8)
    last = np.flatnonzero(raw < 128)
    if len(raw) and (len(last) == 0 or last[-1] != len(raw) - 1):
        raise ValueError("a truncated varint")
    if len(last) == len(raw):
        return raw.astype(np.int64)
    first = np.concatenate([[0], last[:-1] + 1])
    sizes = last - first + 1
    if sizes.max() > 10:
        raise ValueError("a varint of more than ten bytes")
    out = np.zeros(len(last), np.uint64)
    for byte in range(int(sizes.max())):
        there = sizes > byte
        out[there] |= (raw[first[there] + byte].astype(np.uint64) & np.uint64(127)) << np.uint64(7 * byte)
    return out.view(np.int64)


# --- writing messages


def write_example(features: dict[str, Feature]) -> bytes:
    """An `Example` of these features, in the order of their names; inverse of `read_example`."""
    entries = b"".join(
        _field(1, _field(1, name.encode()) + _field(2, _content(features[name]))) for name in sorted(features)
    )
    return _field(1, entries)


def _content(feature: Feature) -> bytes:
    if isinstance(feature, list):
        return _field(_BYTES, b"".join(_field(1, value) for value in feature))
    if feature.dtype.kind == "f":
        return _field(_FLOATS, _field(1, feature.astype("<f4").tobytes()))
    return _field(_INTEGERS, _field(1, _packed(feature)))


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _small(len(content)) + content


def _small(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _packed(values: np.ndarray) -> bytes:
    """Integers as varints, one after the other."""
    left = values.astype(np.int64).view(np.uint64)
    groups = [left.astype(np.uint8) & 127]
    while (left := left >> np.uint64(7)).any():
        groups.append(left.astype(np.uint8) & 127)
    table = np.stack(groups, 1)
    place = np.arange(table.shape[1])
    used = np.maximum(1, ((table != 0) * (place + 1)).max(1))
    table[place < used[:, None] - 1] |= 128
    return table[place < used[:, None]].tobytes()
