"""The messages of the policy server: MessagePack maps over WebSocket, one reply to each request.

==========  =================================================================================================
request     fields
==========  =================================================================================================
`reset`     `seed` (optional), `batch` (None for one observation at a time, else how many), `members` (optional:
            indices of a batch whose episodes begin anew, while the others go on)
`act`       `obs`, `step` (optional: acts since the last whole reset), `reward` (optional: of the last action),
            `chunk` (optional: whether to answer with several actions)
==========  =================================================================================================

Every request has `op` and `id`, an integer above that of the request before it. An array is a map of `dtype`, `shape`
and `data` (bytes in C order, little-endian), or a number, or nested lists of numbers. A request that cannot be
answered is answered with `op` "error", a `code` of `CODES` and a `message`; it leaves the session as it was.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np

from habitus.core.errors import HabitusError, MissingExtra

VERSION = 1
TYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")
CODES = {
    "malformed": "the message is not one of this protocol",
    "too_large": "the message has more bytes than the server takes",
    "wrong_shape": "an observation or reward does not fit the policy",
    "not_finite": "an observation or reward holds NaN or infinity",
    "out_of_order": "an id or a step is not the one that must follow",
    "policy_failed": "the policy gave no finite action",
    "busy": "the server has as many sessions as it takes",
    "unauthorised": "the token is missing or wrong",
    "closed": "the connection ended",
    "internal": "the server failed",
}


class ServeError(HabitusError):
    """A request that a policy server refused.

    Attributes:
        code: one of `CODES`.
    """

    def __init__(self, code: str, message: str):
        self.code = code
        super().__init__(message)


def messages() -> ModuleType:
    """The MessagePack library; raises `MissingExtra` if it is not installed."""
    try:
        import msgpack
    except ImportError:
        raise MissingExtra("the policy server", "serve") from None
    return msgpack


def pack(message: dict[str, Any]) -> bytes:
    """A message as bytes; NumPy arrays inside become maps."""
    return messages().packb(message, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    array = np.asarray(value)
    if array.ndim == 0 and array.dtype.name in TYPES:
        return array.item()
    if array.dtype.name not in TYPES:
        raise ServeError("malformed", f"an array of {array.dtype} cannot be sent; use one of {', '.join(TYPES)}.")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": little.tobytes()}


def unpack(data: bytes | str) -> dict[str, Any]:
    """Inverse of `pack`, but arrays stay maps until `array` reads them.

    Raises:
        ServeError: `malformed`, if the bytes are not a map with text keys.
    """
    if isinstance(data, str):
        raise ServeError("malformed", "the message is text; send one MessagePack map as a binary frame.")
    try:
        message = messages().unpackb(data)
    except (ValueError, TypeError, RecursionError) as error:
        why = type(error).__name__
        raise ServeError("malformed", f"the message is not MessagePack ({why}); send one map.") from None
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise ServeError("malformed", "the message is not a map with text keys; send one map.")
    return message


def array(value: Any) -> np.ndarray:
    """An array of a message.

    Raises:
        ServeError: `malformed`, if it is none.
    """
    if isinstance(value, dict):
        return _from_map(value)
    try:
        found = np.asarray(value)
    except ValueError:
        raise ServeError("malformed", "nested lists of numbers must have one length at each depth.") from None
    if found.dtype.name not in TYPES:
        raise ServeError("malformed", "an array must be numbers, nested lists of numbers, or a map of its bytes.")
    return found


def _from_map(value: dict[str, Any]) -> np.ndarray:
    name, shape, data = (value.get(key) for key in ("dtype", "shape", "data"))
    sizes = isinstance(shape, list) and len(shape) <= 8 and all(type(n) is int and 0 <= n < 2**31 for n in shape)
    if name not in TYPES or not sizes or not isinstance(data, bytes):
        raise ServeError("malformed", f"an array is a map of dtype (one of {', '.join(TYPES)}), shape and data.")
    kind = np.dtype(name).newbyteorder("<")
    if math.prod(shape) * kind.itemsize != len(data):  # type: ignore[arg-type]
        raise ServeError("malformed", f"an array of {name} and shape {shape} cannot have {len(data)} bytes.")
    return np.frombuffer(data, kind).reshape(shape).astype(name, copy=False)  # type: ignore[arg-type]
