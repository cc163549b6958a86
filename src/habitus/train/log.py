"""What a run leaves behind: a folder with its configuration and its figures."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from habitus.core.errors import CheckpointError, DataError, RunExists
from habitus.core.files import write_json

PACKAGES = ("habitus", "jax", "jaxlib", "equinox", "optax", "numpy", "scipy", "gymnasium", "orbax-checkpoint")
REMAINS = ("checkpoints", "policy", "tensorboard", "metrics.jsonl", "evaluations.jsonl")


def versions() -> dict[str, str]:
    """Versions of Python, of the platform, and of what habitus stands on."""
    out = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def git_state(folder: Path | None = None) -> dict[str, Any]:
    """Commit of the working tree around `folder`, and whether it has changes; empty outside git."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {"commit": commit, "changed": bool(git("status", "--porcelain"))} if commit else {}


def read_jsonl(path: Path) -> list[Any]:
    """The rows of a JSONL file, objects unless somebody else wrote it; a last line cut short by a kill is left out.

    Raises:
        DataError: naming the line, if any other line is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    rows = []
    for i, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if i == len(lines) - 1:
                break
            raise DataError(f"{path}, line {i + 1}, is not JSON ({error}); delete that line.") from error
    return rows


def _differences(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Each setting that differs, by its dotted name, with both of its values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            yield from _differences(f"{name}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield name, old, new


def _remove(path: Path) -> None:
    """At once, for whoever looks: a kill must not leave half a checkpoint under its name."""
    if not path.is_dir():
        path.unlink()
        return
    gone = Path(tempfile.mkdtemp(prefix=".overwritten-", dir=path.parent))
    path.rename(gone / path.name)
    shutil.rmtree(gone)


class RunFolder:
    """The files of one run: `config.json`, `versions.json`, `metrics.jsonl`, `evaluations.jsonl`.

    Attributes:
        path: the folder.
        config: what the run is asked to be.
    """

    def __init__(self, path: Path, config: dict[str, Any], resume: bool, overwrite: bool):
        """Looks only: nothing is written, or removed, before `open`.

        Raises:
            RunExists: if the folder holds a run and neither `resume` nor `overwrite` is set.
            CheckpointError: on resuming with another configuration.
        """
        self.path, self.config = path, config
        self._remains = [path / name for name in REMAINS if (path / name).exists()] if overwrite else []
        existing = path / "config.json"
        if overwrite or not any((path / name).exists() for name in ("config.json", *REMAINS)):
            return
        if not resume or not existing.exists():
            raise RunExists(
                f"{path} already holds a run; pass resume=True (--resume) to go on, if it has a config.json, "
                "or overwrite=True (--overwrite)."
            )
        self._check_same(existing)

    def _check_same(self, existing: Path) -> None:
        try:
            old = json.loads(existing.read_text())
        except ValueError as error:
            raise CheckpointError(
                f"cannot resume {self.path}: {existing.name} is damaged ({error}); start anew with overwrite=True."
            ) from error
        new = json.loads(json.dumps(self.config, default=str))
        for part in ("method", "hyperparameters", "source", "seeds"):
            for name, was, now in _differences(part, old.get(part), new.get(part)):
                raise CheckpointError(
                    f"cannot resume {self.path}: {name} was {was!r}, but is now {now!r}; "
                    "use the settings in its config.json, or another folder."
                )

    def open(self) -> None:
        """Writes what the run is, in place of a run to overwrite."""
        for remains in self._remains:
            _remove(remains)
        self._remains = []
        self.path.mkdir(parents=True, exist_ok=True)
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(self.path / "config.json", self.config | {"started": started})
        write_json(self.path / "versions.json", versions() | {"git": git_state()})

    def rewind(self, name: str, update: int, seeds: list[int]) -> list[dict[str, Any]]:
        """Drops the rows of `seeds` after `update` from `<name>.jsonl`; returns those of `seeds` that stay."""
        path = self.path / f"{name}.jsonl"
        kept = [row for row in read_jsonl(path) if row["seeds"] != seeds or row["update"] <= update]
        part = path.with_name(path.name + ".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(part, path)
        return [row for row in kept if row["seeds"] == seeds]

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Adds one line to `<name>.jsonl`."""
        with (self.path / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def default_folder(label: str) -> Path:
    """`runs/<label>-<time>`, below the current folder."""
    return Path("runs") / f"{label}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def command() -> str:
    """How this process was started."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
