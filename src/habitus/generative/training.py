"""Training of a generative model as one compiled loop, for those that are not a learner's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.domains import require
from habitus.core.errors import Diverged
from habitus.core.trees import batch_size as rows_of
from habitus.core.trees import copy, descend, not_finite, polyak, take, trainable
from habitus.generative.ema import ramped_decay

M = TypeVar("M")
Loss = Callable[[Any, Any, PRNGKeyArray], Array]
POINTS = 20  # how often progress is told


def train(
    model: M,
    loss: Loss,
    examples: Any,
    key: PRNGKeyArray,
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    warmup: float = 0.1,
    decay: float = 0.995,
    average_every: int = 10,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[M, Float[np.ndarray, "points"]]:
    """Minimises the mean of `loss(model, example, key)` by Adam; the answer is the average of the parameters.

    Args:
        examples: a tree of arrays with a leading axis of examples.
        warmup: share of the steps over which the learning rate rises from a tenth; then it falls to 0 as a cosine.
        decay, average_every: of the moving average, and how many steps apart it is taken; at first it follows faster
            (`ema.ramped_decay`), so that a short training does not keep the first parameters.
        progress: told the steps done and the mean loss since it was last told, twenty times.

    Returns:
        the averaged model, and the mean losses of twenty stretches.

    Raises:
        ConfigError: if a number is out of its domain.
        Diverged: if a parameter stops being finite.
    """
    require(steps >= 1 and batch_size >= 1, f"steps is {steps} and batch_size {batch_size}; both must be 1 or more.")
    require(learning_rate > 0, f"learning_rate must be above 0, but is {learning_rate}.")
    require(0 <= warmup < 1, f"warmup is a share of the steps, in [0, 1), but is {warmup}.")
    require(0 <= decay < 1 and average_every >= 1, f"decay must be in [0, 1), but is {decay}.")
    schedule = optax.warmup_cosine_decay_schedule(
        0.1 * learning_rate, learning_rate, max(1, int(warmup * steps)), max(2, steps), 0.0
    )
    adam = optax.adam(schedule)
    state = (model, copy(model), adam.init(trainable(model)))
    stops, done, losses = np.unique(np.linspace(0, steps, POINTS + 1).round().astype(int))[1:], 0, []
    for stop in stops:
        state, total = _steps(
            state, adam, loss, examples, key, batch_size, jnp.asarray((done, stop)), decay, average_every
        )
        losses.append(float(total) / (stop - done))
        done = int(stop)
        if progress is not None:
            progress(done, losses[-1])
    if not np.isfinite(losses).all() or bool(not_finite(state[1])):
        raise Diverged("the loss of the generative model", steps, None)
    return state[1], np.asarray(losses)


@eqx.filter_jit
def _steps(
    state: tuple[M, M, Any],
    adam: optax.GradientTransformation,
    loss: Loss,
    examples: Any,
    key: PRNGKeyArray,
    size: int,
    between: Int[Array, "2"],
    decay: float,
    every: int,
) -> tuple[tuple[M, M, Any], Array]:
    """The steps `between` two counts. These are traced, so that every stretch is the same program."""
    arrays, static = eqx.partition(state, eqx.is_array)

    def mean_loss(model: M, batch: Any, key: PRNGKeyArray) -> tuple[Array, dict[str, Array]]:
        keys = jax.random.split(key, size)
        value = jax.vmap(lambda x, k: loss(model, x, k))(batch, keys).mean()
        return value, {"loss": value}

    def one(i: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        model, average, opt = eqx.combine(carry[0], static)
        pick_key, loss_key = jax.random.split(jax.random.fold_in(key, i))
        batch = take(examples, jax.random.randint(pick_key, (size,), 0, rows_of(examples)))
        model, opt, found = descend(adam, mean_loss, model, opt, batch, loss_key)
        tau = jnp.where((i + 1) % every == 0, 1 - ramped_decay(i // every, decay), 0.0)
        after = model, polyak(average, model, tau), opt
        return eqx.filter(after, eqx.is_array), carry[1] + found["loss"]

    arrays, total = jax.lax.fori_loop(between[0], between[1], one, (arrays, jnp.zeros(())))
    return eqx.combine(arrays, static), total
