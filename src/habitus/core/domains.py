"""The values that hyperparameters may have, for the names by which every method means the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from habitus.core.errors import ConfigError

POSITIVE = {"max_grad_norm"}
SHARES = {"discount", "gae_lambda"}
COUNTS = {"batch_size", "minibatch_size", "epochs", "value_batch_size", "value_epochs", "num_envs", "rollout_length"}


def require(condition: Any, message: str) -> None:
    """Raises `ConfigError(message)` unless `condition`; traced values pass, as a sweep maps over them."""
    import jax

    if not isinstance(condition, jax.core.Tracer) and not bool(condition):
        raise ConfigError(message)


def check_domains(values: Mapping[str, Any]) -> None:
    """Checks those of the hyperparameters `values` whose names are known here.

    Raises:
        ConfigError: naming the first that is outside its domain.
    """
    for name, value in values.items():
        if name in POSITIVE or name.endswith("learning_rate"):
            require(value > 0, f"{name} must be above 0, but is {value}.")
        elif name in SHARES:
            require((0 <= value) & (value <= 1), f"{name} must be in [0, 1], but is {value}.")
        elif name in COUNTS:
            require(value >= 1, f"{name} must be 1 or more, but is {value}.")
        elif name.endswith("hidden"):
            require(
                all(width >= 1 for width in value), f"{name} layers must have 1 unit or more each, but are {value}."
            )
