"""Which states end an episode, for worlds whose dynamics are learned: facts about the task, not about the log."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Termination = Callable[[Array, Array, Array], Bool[Array, ""]]


def never(obs: Float[Array, "obs"], action: Array, after: Float[Array, "obs"]) -> Bool[Array, ""]:
    """No state ends an episode."""
    return jnp.array(False)


def hopper_falls(obs: Float[Array, "obs"], action: Array, after: Float[Array, "obs"]) -> Bool[Array, ""]:
    """Gymnasium's Hopper: too low, tilted, or out of range."""
    return ~((after[0] > 0.7) & (jnp.abs(after[1]) < 0.2) & (jnp.abs(after[1:]) < 100).all())


def walker_falls(obs: Float[Array, "obs"], action: Array, after: Float[Array, "obs"]) -> Bool[Array, ""]:
    """Gymnasium's Walker2d: too low, too high, or tilted."""
    return ~((after[0] > 0.8) & (after[0] < 2.0) & (jnp.abs(after[1]) < 1.0))


def pole_falls(obs: Float[Array, "obs"], action: Array, after: Float[Array, "obs"]) -> Bool[Array, ""]:
    """Gymnasium's InvertedPendulum: tilted, or not a number."""
    return ~((jnp.abs(after[1]) <= 0.2) & jnp.isfinite(after).all())


KNOWN: dict[str, Termination] = {
    "hopper": hopper_falls,
    "walker2d": walker_falls,
    "invertedpendulum": pole_falls,
}


def termination_of(task: str) -> Termination:
    """The rule of a task by its name, such as 'Hopper-v5' or 'hopper'; `never` where none is known."""
    return KNOWN.get(task.lower().split("-")[0], never)
