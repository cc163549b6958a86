"""What a run leaves behind: a folder with its configuration, its figures, and further sinks if asked."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from habitus.core.errors import CheckpointError, ConfigError, DataError, MissingExtra, RunExists

PACKAGES = ("habitus", "jax", "jaxlib", "equinox", "optax", "numpy", "scipy", "gymnasium", "orbax-checkpoint")


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


def write_json(path: Path, data: Any) -> None:
    """Writes JSON that appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=1, default=str))
    os.replace(part, path)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; a last line cut short by a kill is left out.

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


class Sink(Protocol):
    """Somewhere else that figures go."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Figures at an environment step or update."""

    def close(self) -> None:
        """Flushes."""


class RunFolder:
    """The files of one run: `config.json`, `versions.json`, `metrics.jsonl`, `evaluations.jsonl`."""

    def __init__(self, path: Path, config: dict[str, Any], resume: bool, overwrite: bool):
        """Raises:
        RunExists: if the folder holds a run and neither `resume` nor `overwrite` is set.
        CheckpointError: on resuming with another configuration.
        """
        self.path = path
        existing = path / "config.json"
        if existing.exists() and not (resume or overwrite):
            raise RunExists(
                f"{path} already holds a run; pass resume=True (--resume) to go on, or overwrite=True (--overwrite)."
            )
        if overwrite and existing.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        if existing.exists():
            self._check_same(json.loads(existing.read_text()), config)
        config = config | {"started": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}
        write_json(existing, config)
        write_json(path / "versions.json", versions() | {"git": git_state()})

    def _check_same(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        for field in ("method", "hyperparameters", "source", "seeds"):
            was, now = old.get(field), json.loads(json.dumps(new.get(field), default=str))
            if was != now:
                raise CheckpointError(
                    f"cannot resume {self.path}: {field} was {was}, but is now {now}; "
                    "use the settings in its config.json, or another folder."
                )

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


class TensorBoardSink:
    """Event files in the run folder."""

    def __init__(self, folder: Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise MissingExtra("logging to TensorBoard", "tensorboard") from error
        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandbSink:
    """Weights & Biases; set WANDB_MODE=offline to keep it local."""

    def __init__(self, folder: Path, config: dict[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise MissingExtra("logging to W&B", "wandb") from error
        self.run = wandb.init(project="habitus", dir=str(folder), config=config, name=folder.name)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log(metrics, step=step)

    def close(self) -> None:
        self.run.finish()


class MLflowSink:
    """MLflow, at its own default tracking address."""

    def __init__(self, folder: Path, config: dict[str, Any]):
        try:
            import mlflow
        except ImportError as error:
            raise MissingExtra("logging to MLflow", "mlflow") from error
        self.mlflow = mlflow
        mlflow.set_experiment("habitus")
        mlflow.start_run(run_name=folder.name)
        mlflow.log_params(config["hyperparameters"])

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self.mlflow.log_metrics(metrics, step=step)

    def close(self) -> None:
        self.mlflow.end_run()


def make_sinks(names: tuple[str, ...], folder: Path | None, config: dict[str, Any]) -> list[Sink]:
    """The sinks called 'tensorboard', 'wandb' or 'mlflow'.

    Raises:
        ConfigError: for another name, or without a run folder.
        MissingExtra: if its package is not installed.
    """
    if names and folder is None:
        raise ConfigError(f"logging to {', '.join(names)} needs a run folder; pass folder=...")
    sinks: list[Sink] = []
    for name in names:
        if name not in ("tensorboard", "wandb", "mlflow"):
            raise ConfigError(f"unknown log {name!r}; use tensorboard, wandb or mlflow.")
        assert folder is not None
        if name == "tensorboard":
            sinks.append(TensorBoardSink(folder))
        else:
            sinks.append(WandbSink(folder, config) if name == "wandb" else MLflowSink(folder, config))
    return sinks


def default_folder(label: str) -> Path:
    """`runs/<label>-<time>`, below the current folder."""
    return Path("runs") / f"{label}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def command() -> str:
    """How this process was started."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
