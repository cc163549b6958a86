"""Minari's folders: `data/main_data.hdf5` with one group an episode, and `data/metadata.json`.

Read and written without the `minari` package, which can open what is written here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from habitus.core.errors import DataError, SpaceMismatch
from habitus.data.dataset import Dataset
from habitus.data.defects import column_leaves
from habitus.data.formats import guard, hdf5

VERSION = "0.5.4"  # of the layout that is written
_COLUMNS = {"action": "actions", "reward": "rewards", "terminated": "terminations", "truncated": "truncations"}


def is_minari(path: Path) -> bool:
    """Whether a folder is a Minari data set."""
    return (path / "data" / "metadata.json").is_file()


def read(path: Path, *, limit: int | None = None, validate: bool = True) -> Dataset:
    """The data set in a folder, in memory."""
    with guard.reading(path):
        metadata = json.loads((path / "data" / "metadata.json").read_text(encoding="utf-8"))
        if not isinstance(metadata, dict):
            raise DataError("metadata.json holds no names and values.")
        if metadata.get("data_format", "hdf5") != "hdf5":
            raise DataError(f"it is stored as {metadata['data_format']}; convert it to hdf5 with Minari.")
        known = {name: _read_space(name, metadata[name]) for name in _SPACES if name in metadata}
    with hdf5.opened(path / "data" / "main_data.hdf5") as file:
        groups = [hdf5.child(file, name) for name in sorted((n for n in file if n.startswith("episode_")), key=_number)]
        if len(groups) != metadata.get("total_episodes", len(groups)) or not groups:
            raise DataError(f"it holds {len(groups)} episodes, metadata.json says {metadata.get('total_episodes')}.")
        size = sum(hdf5.size_of(hdf5.child(group, key)) for group in groups for key in group if key != "infos")
        size += sum(hdf5.size_of(costs) for group in groups if (costs := _costs(group)) is not None)
        guard.require_size(size, limit or guard.LIMIT)
        episodes = [_read_episode(group, known) for group in groups]
    lengths = [len(episode["reward"]) for episode in episodes]
    with guard.reading(path):
        joined = {name: _concatenated([episode[name] for episode in episodes]) for name in episodes[0]}
        starts = np.cumsum([0, *lengths[:-1]])
        return Dataset.from_arrays(**joined, starts=starts, **known, meta=_meta(metadata), validate=validate)


_SPACES = ("observation_space", "action_space")


def _number(name: str) -> int:
    return int(name.removeprefix("episode_"))


def _read_episode(group: Any, known: dict[str, spaces.Space]) -> dict[str, Any]:
    observations = _column(hdf5.child(group, "observations"), known.get("observation_space"))
    out = {name: hdf5.read_array(hdf5.child(group, field)) for name, field in _COLUMNS.items()}
    steps = len(out["reward"])
    for name, leaf in column_leaves("observations", observations):
        if len(leaf) != steps + 1:
            raise DataError(f"{group.name}: {name} has {len(leaf)} rows, expected one more than the {steps} rewards.")
    if steps == 0:
        raise DataError(f"{group.name} has no steps; remove it.")
    out["obs"] = _map(lambda leaf: leaf[:-1], observations)
    out["next_obs"] = _map(lambda leaf: leaf[1:], observations)
    if (node := _costs(group)) is not None:
        costs = hdf5.read_array(node)
        if costs.ndim == 0 or len(costs) not in (steps, steps + 1):
            shape = costs.shape
            raise DataError(
                f"{group.name}: infos/cost has the shape {shape}, expected a row for each of {steps} steps."
            )
        out["cost"] = costs[len(costs) - steps :]  # resetting may have added a row in front
    return out


def _costs(group: Any) -> Any:
    """Where an episode keeps `info["cost"]` of its steps, or None."""
    infos = hdf5.child(group, "infos") if "infos" in group else {}
    return hdf5.child(infos, "cost") if "cost" in infos else None


def _column(node: Any, space: spaces.Space | None) -> Any:
    """A column of an episode: an array, or its parts as the space has them."""
    if isinstance(space, spaces.Dict):
        return {key: _column(hdf5.child(node, key), part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_column(hdf5.child(node, f"_index_{i}"), part) for i, part in enumerate(space.spaces))
    if getattr(node, "dtype", np.dtype(float)).hasobject and isinstance(space, spaces.Box) and len(space.shape) == 3:
        raise DataError(f"{node.name} holds JPEG images; write the set with jpeg_encoding=False.")
    return hdf5.read_array(node)


def _map(function: Callable[[Any], Any], column: Any) -> Any:
    if isinstance(column, dict):
        return {key: _map(function, part) for key, part in column.items()}
    return tuple(_map(function, part) for part in column) if isinstance(column, tuple) else function(column)


def _concatenated(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, dict):
        return {key: _concatenated([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple):
        return tuple(_concatenated(list(column)) for column in zip(*parts, strict=True))
    return np.concatenate(parts)


def _meta(metadata: dict[str, Any]) -> dict[str, Any]:
    """What is known of the origin, under the library's names."""
    if isinstance(metadata.get("habitus"), dict):
        return dict(metadata["habitus"])
    environment = json.loads(metadata["env_spec"]) if "env_spec" in metadata else {}
    found = {
        "minari": metadata.get("dataset_id"),
        "task": environment.get("id"),
        "horizon": environment.get("max_episode_steps"),
        "random_return": metadata.get("ref_min_score"),
        "expert_return": metadata.get("ref_max_score"),
    }
    return {name: value for name, value in found.items() if value is not None}


def write(dataset: Dataset, path: Path) -> None:
    """Writes the whole folder or nothing; the last part of `path` is the name of the set.

    Raises:
        DataError: if the folder exists, or if a successor is not the next observation: Minari
            stores each observation once.
    """
    if path.exists():
        raise DataError(f"{path} exists; remove it, or choose another name.")
    with guard.whole(path) as draft:
        (draft / "data").mkdir(parents=True)
        with hdf5.created(draft / "data" / "main_data.hdf5") as file:
            for index in range(len(dataset.starts)):
                _write_episode(file.create_group(f"episode_{index}"), index, dataset)
        size = (draft / "data" / "main_data.hdf5").stat().st_size / 1e6
        described = _metadata(dataset, path.name) | {"dataset_size": round(size, 1)}
        (draft / "data" / "metadata.json").write_text(guard.plain_json(described), encoding="utf-8")


def _write_episode(group: Any, index: int, dataset: Dataset) -> None:
    rows = slice(int(dataset.starts[index]), int(dataset.ends[index]) + 1)
    group.attrs["id"] = index
    group.attrs["total_steps"] = rows.stop - rows.start
    for name, field in _COLUMNS.items():
        hdf5.write_array(group, field, getattr(dataset, name)[rows])
    if dataset.cost is not None:
        costs = np.asarray(dataset.cost[rows])  # Minari has infos of the reset too, which cost nothing
        hdf5.write_array(group.create_group("infos"), "cost", np.concatenate([np.zeros_like(costs[:1]), costs]))
    after = dict(column_leaves("observations", dataset.next_obs))
    for name, leaf in column_leaves("observations", dataset.obs):
        obs, next_obs = np.asarray(leaf[rows]), np.asarray(after[name][rows])
        broken = np.flatnonzero((obs[1:] != next_obs[:-1]).reshape(len(obs) - 1, -1).any(1))
        if len(broken):
            raise DataError(
                f"episode {index}, step {broken[0]}: the successor is not the next observation, and Minari stores "
                "each observation once; save as npz."
            )
        parts = [f"_index_{part}" if part.isdigit() else part for part in name.split(".")]
        hdf5.write_array(group, "/".join(parts), np.concatenate([obs, next_obs[-1:]]))


def _metadata(dataset: Dataset, folder: str) -> dict[str, Any]:
    name = folder if re.fullmatch(r"[-\w]+-v\d+", folder) else f"{re.sub(r'[^-A-Za-z0-9_]', '-', folder)}-v0"
    references = {"ref_min_score": "random_return", "ref_max_score": "expert_return"}
    return {
        "dataset_id": name,
        "total_episodes": len(dataset.starts),
        "total_steps": len(dataset),
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "minari_version": VERSION,
        "observation_space": json.dumps(_space_json(dataset.observation_space)),
        "action_space": json.dumps(_space_json(dataset.action_space)),
        "habitus": dataset.meta,
        **{ours: dataset.meta[theirs] for ours, theirs in references.items() if theirs in dataset.meta},
    }


def _space_json(space: spaces.Space) -> dict[str, Any]:
    """A space as Minari writes it."""
    kind = type(space).__name__
    if isinstance(space, spaces.Box):
        limits = {"low": space.low.tolist(), "high": space.high.tolist()}
        return {"type": kind, "dtype": str(space.dtype), "shape": list(space.shape), **limits}
    if isinstance(space, spaces.Discrete):
        return {"type": kind, "dtype": "int64", "start": int(space.start), "n": int(space.n)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": kind, "dtype": str(space.dtype), "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"type": kind, "n": space.n}
    if isinstance(space, spaces.Dict):
        return {"type": kind, "subspaces": {k: _space_json(v) for k, v in space.spaces.items()}}
    if isinstance(space, spaces.Tuple):
        return {"type": kind, "subspaces": [_space_json(v) for v in space.spaces]}
    raise SpaceMismatch(f"a {kind} space cannot be saved.")


def _read_space(name: str, text: str) -> spaces.Space:
    try:
        return _space(json.loads(text))
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"metadata.json: {name} is damaged ({type(error).__name__}: {error}).") from error


def _space(data: dict[str, Any]) -> spaces.Space:
    """A space from Minari's description of it."""
    kind = data["type"]
    if kind == "Box":
        low, high = (np.array(data[k], data["dtype"]).reshape(data["shape"]) for k in ("low", "high"))
        return spaces.Box(low, high, dtype=np.dtype(data["dtype"]).type)
    if kind == "Discrete":
        return spaces.Discrete(data["n"], start=data.get("start", 0))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(data["nvec"], start=data.get("start"))
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["n"])
    if kind == "Dict":
        return spaces.Dict({k: _space(v) for k, v in data["subspaces"].items()})
    if kind == "Tuple":
        return spaces.Tuple([_space(v) for v in data["subspaces"]])
    raise DataError(f"its {kind} space is not supported.")
