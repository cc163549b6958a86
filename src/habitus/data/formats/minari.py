"""Minari's folders: `data/main_data.hdf5` with one group an episode, and `data/metadata.json`.

Read and written without the `minari` package, which can open what is written here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gymnasium import spaces

from habitus.core.errors import DataError, SpaceMismatch
from habitus.data import infer
from habitus.data.dataset import Dataset
from habitus.data.defects import column_leaves
from habitus.data.formats import guard, hdf5
from habitus.data.stream import Chain, Piece, Stream, step_of

VERSION = "0.5.4"  # of the layout that is written
_COLUMNS = {"action": "actions", "reward": "rewards", "terminated": "terminations", "truncated": "truncations"}


def is_minari(path: Path) -> bool:
    """Whether a folder is a Minari data set."""
    return (path / "data" / "metadata.json").is_file()


def stream(path: Path) -> Stream:
    """The log in a folder, piece by piece."""
    with guard.reading(path):
        metadata = json.loads((path / "data" / "metadata.json").read_text(encoding="utf-8"))
        if not isinstance(metadata, dict):
            raise DataError("metadata.json holds no names and values.")
        if metadata.get("data_format", "hdf5") != "hdf5":
            raise DataError(f"it is stored as {metadata['data_format']}; convert it to hdf5 with Minari.")
        known = {name: _read_space(name, metadata[name]) for name in _SPACES if name in metadata}
        meta, rows = _meta(metadata), metadata.get("total_steps")
    file = path / "data" / "main_data.hdf5"

    def pieces() -> Iterator[Piece]:
        with hdf5.opened(file) as opened:
            names = sorted((n for n in opened if n.startswith("episode_")), key=_number)
            if len(names) != metadata.get("total_episodes", len(names)) or not names:
                raise DataError(f"it holds {len(names)} episodes, metadata.json says {metadata.get('total_episodes')}.")
            for name in names:
                yield from _read_episode(hdf5.child(opened, name), known)

    return Stream(pieces(), path, **known, meta=meta, rows=rows if isinstance(rows, int) else None)


def read(path: Path, *, limit: int | None = None, validate: bool = True) -> Dataset:
    """The data set in a folder, in memory."""
    return stream(path).gather(limit, validate)


_SPACES = ("observation_space", "action_space")


def _number(name: str) -> int:
    return int(name.removeprefix("episode_"))


def _read_episode(group: Any, known: dict[str, spaces.Space]) -> Iterator[Piece]:
    """The rows of one episode."""
    observed = _column(hdf5.child(group, "observations"), known.get("observation_space"))
    columns = {name: hdf5.child(group, field) for name, field in _COLUMNS.items()}
    leaves = [leaf for _, leaf in column_leaves("observations", observed)]
    for leaf in (*columns.values(), *leaves):
        hdf5.require_array(leaf)
    steps = guard.require_rows(columns, None)
    for name, leaf in column_leaves("observations", observed):
        if len(leaf) != steps + 1:
            raise DataError(f"{group.name}: {name} has {len(leaf)} rows, expected one more than the {steps} rewards.")
    costs = _costs(group, steps)
    step = step_of([*columns.values(), *leaves])
    for first in range(0, steps, step):
        stop = min(first + step, steps)
        rows = {name: np.asarray(column[first:stop]) for name, column in columns.items()}
        rows["obs"] = jax.tree.map(lambda leaf, a=first, b=stop: np.asarray(leaf[a:b]), observed)
        rows["next_obs"] = jax.tree.map(lambda leaf, a=first, b=stop: np.asarray(leaf[a + 1 : b + 1]), observed)
        for name in ("terminated", "truncated"):
            rows[name] = infer.flags(rows[name])
        if rows["reward"].dtype.kind in "iuf":
            rows["reward"] = rows["reward"].astype(np.float32, copy=False)
        if costs is not None:  # resetting may have added a row in front
            rows["cost"] = infer.costs(costs[first + len(costs) - steps : stop + len(costs) - steps])
        yield Piece(rows, np.zeros(int(first == 0), np.int64))


def _costs(group: Any, steps: int) -> Any:
    """Where an episode keeps `info["cost"]` of its steps, or None."""
    infos = hdf5.child(group, "infos") if "infos" in group else {}
    if "cost" not in infos:
        return None
    costs = hdf5.child(infos, "cost")
    hdf5.require_array(costs)
    if costs.ndim == 0 or len(costs) not in (steps, steps + 1):
        shape = costs.shape
        raise DataError(f"{group.name}: infos/cost has the shape {shape}, expected a row for each of {steps} steps.")
    return costs


def _column(node: Any, space: spaces.Space | None) -> Any:
    """A column of an episode: an array, or its parts as the space has them."""
    if isinstance(space, spaces.Dict):
        return {key: _column(hdf5.child(node, key), part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_column(hdf5.child(node, f"_index_{i}"), part) for i, part in enumerate(space.spaces))
    if getattr(node, "dtype", np.dtype(float)).hasobject and isinstance(space, spaces.Box) and len(space.shape) == 3:
        raise DataError(f"{node.name} holds JPEG images; write the set with jpeg_encoding=False.")
    return node


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


def write(log: Stream, path: Path) -> None:
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
            episodes, steps = _write_episodes(file, log)
        size = (draft / "data" / "main_data.hdf5").stat().st_size / 1e6
        described = _metadata(log, path.name)
        described |= {"total_episodes": episodes, "total_steps": steps, "dataset_size": round(size, 1)}
        (draft / "data" / "metadata.json").write_text(guard.plain_json(described), encoding="utf-8")


def _write_episodes(file: Any, log: Stream) -> tuple[int, int]:
    """Writes every episode; how many, and of how many steps."""
    chain = Chain("Minari stores each observation once; save as npz")
    for begins, rows in (part for piece in log for part in piece.parts()):
        if begins and chain.episode >= 0:
            _append_observations(file[f"episode_{chain.episode}"], chain.final)
        chain.follow(begins, rows)
        if begins:
            group = file.create_group(f"episode_{chain.episode}")
            group.attrs["id"] = chain.episode
        group.attrs["total_steps"] = chain.steps
        for name, field in _COLUMNS.items():
            hdf5.append(group, field, rows[name])
        if "cost" in rows:
            if begins:  # Minari has infos of the reset too, which cost nothing
                hdf5.append(group.require_group("infos"), "cost", np.zeros_like(rows["cost"][:1]))
            hdf5.append(group["infos"], "cost", rows["cost"])
        _append_observations(group, rows["obs"])
    _append_observations(group, chain.final)
    return chain.episode + 1, chain.total


def _append_observations(group: Any, observed: Any) -> None:
    for name, leaf in column_leaves("observations", observed):
        parts = [f"_index_{part}" if part.isdigit() else part for part in name.split(".")]
        hdf5.append(group, "/".join(parts), leaf)


def _metadata(log: Stream, folder: str) -> dict[str, Any]:
    name = folder if re.fullmatch(r"[-\w]+-v\d+", folder) else f"{re.sub(r'[^-A-Za-z0-9_]', '-', folder)}-v0"
    references = {"ref_min_score": "random_return", "ref_max_score": "expert_return"}
    return {
        "dataset_id": name,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "minari_version": VERSION,
        "observation_space": json.dumps(_space_json(log.observation_space)),
        "action_space": json.dumps(_space_json(log.action_space)),
        "habitus": log.meta,
        **{ours: log.meta[theirs] for ours, theirs in references.items() if theirs in log.meta},
    }


def _space_json(space: spaces.Space | None) -> dict[str, Any]:
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
