"""Greatest and least values over windows of time, exact or smooth.

A window of w steps is put together from disjoint blocks whose lengths are the powers of two in w, each block from two
of half its length: O(T log w) work, and one loop body to compile whatever T and w. As the blocks are disjoint it works
for sums of exponentials, which must not count a step twice, as well as for maxima.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from habitus.core.stl.expressions import Scalar

LARGE = 1e30  # stands for infinity, whose differences would be NaN in gradients
Pair = tuple[Array, Array]


class Extremes(eqx.Module):
    """What least and greatest mean.

    Attributes:
        temperature: None for min and max; else `max(x) ~ temperature * log sum exp(x / temperature)` and
            `min(x) = -max(-x)`, which err by `temperature * log n` at most, the maximum upwards and the minimum
            downwards.
        valid: which steps of the trace are real; None for all.
    """

    temperature: Scalar | None = None
    valid: Bool[Array, "time"] | None = None

    def greatest_among(self, values: Sequence[Float[Array, "*time"]]) -> Float[Array, "*time"]:
        """The greatest of several values."""
        if self.temperature is None:
            return reduce(jnp.maximum, values)
        if len(values) == 1:
            return values[0]
        return self.temperature * _log_sum_exp(jnp.stack(values) / self.temperature)

    def least_among(self, values: Sequence[Float[Array, "*time"]]) -> Float[Array, "*time"]:
        """The least of several values."""
        return -self.greatest_among([-value for value in values])

    def greatest(self, x: Float[Array, "time"], start: int, width: int) -> Float[Array, "time"]:
        """At each t the greatest over the `width` steps from `t + start` on that there are; -LARGE if there is none."""
        return window(_greater, self.temperature, -LARGE, self._real(x, -LARGE), start, width)  # type: ignore[no-any-return]

    def least(self, x: Float[Array, "time"], start: int, width: int) -> Float[Array, "time"]:
        """At each t the least over the `width` steps from `t + start` on that there are; LARGE if there is none."""
        return -self.greatest(-x, start, width)

    def greatest_of(self, x: Float[Array, "time"], start: int, width: int) -> Float[Array, ""]:
        """`greatest` at the first step alone: a single pass where it is smooth."""
        seen = self._real(x, -LARGE)[start : start + width]
        if self.temperature is None or len(seen) == 0:  # gradients of fused maxima take XLA minutes to compile
            return self.greatest(x, start, width)[0]
        return self.temperature * _log_sum_exp(seen / self.temperature)

    def until(
        self, held: Float[Array, "time"], goal: Float[Array, "time"], start: int, width: int
    ) -> Float[Array, "time"]:
        """At each t `max_k min(goal[t + k], min_{j < k} held[t + j])` over `start <= k < start + width`."""
        steps = len(goal)
        if start >= steps:
            return jnp.full_like(goal, -LARGE)
        held, goal = self._real(held, LARGE), self._real(goal, -LARGE)
        before = self.least(held, 0, start) if start else jnp.full_like(held, LARGE)
        if self.temperature is None:
            found = window(_joined, None, (LARGE, -LARGE), (held, goal), start, width)[1]
            return jnp.minimum(before, found)
        ks = np.arange(start, min(start + width, steps), dtype=np.int32)
        return _smooth_until(self.temperature, before, held, goal, ks)

    def _real(self, x: Float[Array, "time"], blank: float) -> Float[Array, "time"]:
        """The values, `blank` where the step is not real."""
        return x if self.valid is None else jnp.where(self.valid, x, blank)


def window(
    combine: Callable[[Scalar | None, Any, Any], Any],
    temperature: Scalar | None,
    blank: Any,
    x: Any,
    start: int,
    width: int,
) -> Any:
    """At each t, `combine` over the `width` steps from `t + start` on; past the end there is `blank`.

    Args:
        combine: of the temperature, an earlier stretch and the one after it; associative, with `blank` as its neutral
            element. A function of a module, so that what is compiled for it is found again.
        x: a tree of signals [time]; `blank` is a tree of numbers alike.
    """
    steps = len(jax.tree.leaves(x)[0])
    width = min(width, steps)
    sizes = 2 ** np.arange(width.bit_length(), dtype=np.int32)
    starts = np.minimum(start + width % sizes, steps).astype(np.int32)
    return _doubled(combine, temperature, blank, x, (sizes, starts, (width & sizes) > 0))


@partial(jax.jit, static_argnums=0)
def _doubled(combine: Any, temperature: Scalar | None, blank: Any, x: Any, rows: Any) -> Any:
    """`window`, given for each power of two how long, from where and whether its block takes part."""

    def later(block: Any, by: Array) -> Any:
        return jax.tree.map(lambda leaf, empty: _shifted(_padded(leaf, empty), by), block, blank)

    def double(now: tuple[Any, Any], row: tuple[Array, Array, Array]) -> tuple[tuple[Any, Any], None]:
        block, found = now
        size, start, taken = row
        longer = combine(temperature, found, later(block, start))
        found = jax.tree.map(lambda new, old: jnp.where(taken, new, old), longer, found)
        return (combine(temperature, block, later(block, size)), found), None

    nothing = jax.tree.map(lambda leaf, empty: jnp.full_like(leaf, empty), x, blank)
    return jax.lax.scan(double, (x, nothing), rows)[0][1]


@jax.jit
def _smooth_until(temperature: Scalar, before: Array, held: Array, goal: Array, ks: Array) -> Array:
    """As it is written, one k after the other, for all t at once: soft minima do not distribute over soft maxima."""
    held, goal = _padded(held, LARGE), _padded(goal, -LARGE)

    def advance(now: Pair, k: Int[Array, ""]) -> tuple[Pair, None]:
        before, best = now
        best = _greater(temperature, best, _lesser(temperature, before, _shifted(goal, k)))
        return (_lesser(temperature, before, _shifted(held, k)), best), None

    return jax.lax.scan(advance, (before, jnp.full_like(before, -LARGE)), ks)[0][1]


def _log_sum_exp(x: Array) -> Array:
    """Over the first axis, of finite numbers: without JAX's care for infinities, which makes programs twice as long."""
    most = jax.lax.stop_gradient(x.max(0))
    return most + jnp.log(jnp.exp(x - most).sum(0))


def _greater(temperature: Scalar | None, x: Array, y: Array) -> Array:
    if temperature is None:
        return jnp.maximum(x, y)
    return temperature * jnp.logaddexp(x / temperature, y / temperature)


def _lesser(temperature: Scalar | None, x: Array, y: Array) -> Array:
    return -_greater(temperature, -x, -y)


def _joined(temperature: Scalar | None, early: Pair, late: Pair) -> Pair:
    """Of two stretches of time, (least held, until within), for both together; exact ones only."""
    return jnp.minimum(early[0], late[0]), jnp.maximum(early[1], jnp.minimum(early[0], late[1]))


def _padded(x: Array, blank: Any) -> Array:
    """A signal with as much blank after it."""
    return jnp.concatenate([x, jnp.full_like(x, blank)])


def _shifted(x: Array, by: Any) -> Array:
    """The first half of a padded signal, moved to the past by as many steps."""
    return jax.lax.dynamic_slice_in_dim(x, by, len(x) // 2)
