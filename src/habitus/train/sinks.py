"""Where figures go besides the run folder, if asked: TensorBoard, W&B, MLflow."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Any

from habitus.core.errors import ConfigError, MissingExtra


class Sink(abc.ABC):
    """Somewhere that figures go. To make one is to import its package; nothing is written before `open`."""

    @abc.abstractmethod
    def open(self, folder: Path, config: dict[str, Any]) -> None:
        """Begins a run with this folder and configuration."""

    @abc.abstractmethod
    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Figures at an environment step or update."""

    @abc.abstractmethod
    def close(self) -> None:
        """Flushes."""


class TensorBoardSink(Sink):
    """Event files in the run folder."""

    def __init__(self) -> None:
        try:
            import tensorboardX
        except ImportError as error:
            raise MissingExtra("logging to TensorBoard", "tensorboard") from error
        self.tensorboard = tensorboardX

    def open(self, folder: Path, config: dict[str, Any]) -> None:
        self.writer = self.tensorboard.SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandbSink(Sink):
    """Weights & Biases; set WANDB_MODE=offline to keep it local."""

    def __init__(self) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtra("logging to W&B", "wandb") from error
        self.wandb = wandb

    def open(self, folder: Path, config: dict[str, Any]) -> None:
        self.run = self.wandb.init(project="habitus", dir=str(folder), config=config, name=folder.name)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log(metrics, step=step)

    def close(self) -> None:
        self.run.finish()


class MLflowSink(Sink):
    """MLflow, at its own default tracking address."""

    def __init__(self) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise MissingExtra("logging to MLflow", "mlflow") from error
        self.mlflow = mlflow

    def open(self, folder: Path, config: dict[str, Any]) -> None:
        self.mlflow.set_experiment("habitus")
        self.mlflow.start_run(run_name=folder.name)
        self.mlflow.log_params(config["hyperparameters"])

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self.mlflow.log_metrics(metrics, step=step)

    def close(self) -> None:
        self.mlflow.end_run()


SINKS: dict[str, type[Sink]] = {"tensorboard": TensorBoardSink, "wandb": WandbSink, "mlflow": MLflowSink}


def make_sinks(names: tuple[str, ...], folder: Path | None) -> list[Sink]:
    """The sinks called 'tensorboard', 'wandb' or 'mlflow', for a run in `folder`.

    Raises:
        ConfigError: for another name, or without a run folder.
        MissingExtra: if its package is not installed.
    """
    for name in names:
        if name not in SINKS:
            raise ConfigError(f"unknown log {name!r}; use {', '.join(SINKS)}.")
    if names and folder is None:
        raise ConfigError(f"logging to {', '.join(names)} needs a run folder; pass folder=...")
    return [SINKS[name]() for name in names]
