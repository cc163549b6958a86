"""Modules on disk: their structure as JSON, their arrays as safetensors. No code is ever stored.

A module is written as its class name and its fields. Reading imports only classes that live in
habitus, or in packages that the caller names, and only if they are Equinox modules.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from habitus.core.errors import CheckpointError

M = TypeVar("M", bound=eqx.Module)


def to_plain(value: Any, arrays: dict[str, np.ndarray], path: str = "") -> Any:
    """`value` as JSON data; its arrays go to `arrays` under their dotted paths."""
    if isinstance(value, eqx.Module):
        cls = type(value)
        fields = {
            f.name: to_plain(getattr(value, f.name), arrays, f"{path}{f.name}.")
            for f in dataclasses.fields(value)
            if hasattr(value, f.name)
        }
        return {"class": f"{cls.__module__}:{cls.__qualname__}", "fields": fields}
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            raise CheckpointError(f"{path[:-1]} is a random key, which a saved policy must not hold.")
        arrays[path[:-1]] = np.asarray(value, order="C")  # not ascontiguousarray: scalars must stay scalars
        return {"array": path[:-1]}
    if isinstance(value, (tuple, list)):
        items = [to_plain(v, arrays, f"{path}{i}.") for i, v in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        return {"dict": {str(k): to_plain(v, arrays, f"{path}{k}.") for k, v in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(f"{path[:-1] or 'the value'} is a {type(value).__name__}, which cannot be saved.")


def from_plain(data: Any, arrays: dict[str, np.ndarray], allow: tuple[str, ...] = ()) -> Any:
    """Inverse of `to_plain`. `allow` names further packages whose modules may be built."""
    if isinstance(data, list):
        return [from_plain(v, arrays, allow) for v in data]
    if not isinstance(data, dict):
        return data
    if "array" in data:
        return jnp.asarray(arrays[data["array"]])
    if "tuple" in data:
        return tuple(from_plain(v, arrays, allow) for v in data["tuple"])
    if "dict" in data:
        return {k: from_plain(v, arrays, allow) for k, v in data["dict"].items()}
    cls = _resolve(data["class"], allow)
    module = object.__new__(cls)
    for field in dataclasses.fields(cls):
        # a field that the file lacks came later, and has a default, or the file is damaged
        known = field.name in data["fields"] or field.default is dataclasses.MISSING
        value = from_plain(data["fields"][field.name], arrays, allow) if known else field.default
        object.__setattr__(module, field.name, value)
    return module


def _resolve(name: str, allow: tuple[str, ...]) -> type[eqx.Module]:
    module_name, _, qualname = name.partition(":")
    package = module_name.partition(".")[0]
    if package not in ("habitus", "equinox", *allow):
        raise CheckpointError(
            f"the file names {name!r}, which is outside habitus; load it with allow=({package!r},) if you trust it."
        )
    try:
        found = importlib.import_module(module_name)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"the file names {name!r}, which this version of habitus does not have.") from error
    if not (isinstance(found, type) and issubclass(found, eqx.Module)):
        raise CheckpointError(f"the file names {name!r}, which is not a module.")
    return found


def save_module(module: eqx.Module, folder: Path, stem: str) -> Path:
    """Writes `<stem>.json` and `<stem>.safetensors`; each appears whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    plain = to_plain(module, arrays)
    folder.mkdir(parents=True, exist_ok=True)
    weights, structure = folder / f"{stem}.safetensors", folder / f"{stem}.json"
    save_file(arrays, f"{weights}.part")
    structure.with_suffix(".json.part").write_text(json.dumps({"format": 1, "module": plain}, indent=1))
    os.replace(f"{weights}.part", weights)
    os.replace(structure.with_suffix(".json.part"), structure)
    return folder


def load_module(folder: Path, stem: str, kind: type[M], allow: tuple[str, ...] = ()) -> M:
    """Reads what `save_module` wrote.

    Raises:
        CheckpointError: naming the file, if it is missing, damaged, or not a `kind`.
    """
    structure, weights = folder / f"{stem}.json", folder / f"{stem}.safetensors"
    for path in (structure, weights):
        if not path.is_file():
            raise CheckpointError(
                f"{path} does not exist; a saved {stem} is a folder with {stem}.json and {stem}.safetensors."
            )
    try:
        module = from_plain(json.loads(structure.read_text())["module"], load_file(weights), allow)
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is damaged ({type(error).__name__}: {error}); save the {stem} again."
        ) from error
    if not isinstance(module, kind):
        raise CheckpointError(f"{structure} holds a {type(module).__name__}, not a {kind.__name__}.")
    return module
