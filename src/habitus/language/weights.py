"""Models in folders as Hugging Face lays them out: `config.json` and safetensors, in one file or several."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from habitus.core.errors import CheckpointError
from habitus.core.files import write_json
from habitus.language.config import DecoderConfig
from habitus.language.decoder import Decoder
from habitus.language.tensors import assemble, named

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
GIBIBYTE = 2**30


def read_folder(folder: str | Path, dtype: Any = None) -> Decoder:
    """The decoder in a folder that `transformers` wrote, or `write_folder`.

    Args:
        dtype: of the weights; None for `default_dtype()`.

    Raises:
        CheckpointError: if a file is missing or damaged, or tensors are missing, too many, or of another shape.
        UnknownName: if the family is not supported.
        DataError: if the configuration asks for what is not supported.
    """
    folder = Path(folder)
    config = read_config(folder)
    files = tensor_files(folder)
    handles: dict[Path, Any] = {}

    def read(name: str) -> Any:
        path = files[name]
        try:
            if path not in handles:
                handles[path] = safe_open(path, framework="numpy")
            return handles[path].get_tensor(name)
        except (SafetensorError, OSError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged, or lacks {name} ({error}).") from error

    return assemble(config, files, read, str(folder), dtype)


def read_config(folder: Path) -> DecoderConfig:
    """From `config.json`, and the ends of responses also from `generation_config.json`. See `read_folder`."""
    config = DecoderConfig.from_hf(read_json(folder / "config.json"))
    generation = folder / "generation_config.json"
    if not generation.is_file():
        return config
    eos = read_json(generation).get("eos_token_id")
    more = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return dataclasses.replace(config, eos=tuple(dict.fromkeys([*config.eos, *more])))


def read_json(path: Path) -> dict[str, Any]:
    """Raises `CheckpointError` unless the file holds a JSON object."""
    check_there(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}).") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not an object.")
    return data


def check_there(path: Path) -> None:
    """Raises `CheckpointError` unless the file exists."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; a model is a folder with config.json and {WHOLE}.")


def tensor_files(folder: Path) -> dict[str, Path]:
    """In which file each tensor is. See `read_folder`."""
    if (folder / INDEX).is_file():
        places = read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or any(Path(str(file)).name != file for file in places.values()):
            raise CheckpointError(f"{folder / INDEX} has no weight_map from tensors to files beside it.")
        paths = {name: folder / file for name, file in places.items()}
        for path in paths.values():
            check_there(path)
        return paths
    check_there(folder / WHOLE)
    try:
        with safe_open(folder / WHOLE, framework="numpy") as file:
            return dict.fromkeys(file.keys(), folder / WHOLE)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / WHOLE} is damaged ({error}).") from error


def write_folder(decoder: Decoder, folder: str | Path, most_bytes: int = 5 * GIBIBYTE) -> Path:
    """Writes the decoder so that `transformers` loads it: LoRA merged, its precision kept. Files appear whole.

    Args:
        most_bytes: of tensors in a file; more are spread over several, with an index.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, np.ndarray]] = [{}]
    room, total = most_bytes, 0
    for name, array in named(decoder):
        if array.nbytes > room and shards[-1]:
            shards.append({})
            room = most_bytes
        shards[-1][name] = np.ascontiguousarray(array)
        room, total = room - array.nbytes, total + array.nbytes
    count = len(shards)
    files = [WHOLE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for file, tensors in zip(files, shards, strict=True):
        save_file(tensors, folder / f"{file}.part", metadata={"format": "pt"})
        os.replace(folder / f"{file}.part", folder / file)
    if count > 1:
        places = {name: file for file, tensors in zip(files, shards, strict=True) for name in tensors}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    else:
        (folder / INDEX).unlink(missing_ok=True)  # of what was there before
    config = dataclasses.replace(decoder.config, interleaved=False)
    write_json(folder / "config.json", config.to_hf() | {"dtype": decoder.embedding.dtype.name})
    return folder
