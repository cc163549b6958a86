"""Greatest and least values over windows of time, exact or smooth.

A window of w steps is put together from disjoint blocks whose lengths are the powers of two in w. Each block is made
from two of half its length, so a window costs O(T log w) and as many operations as w has binary digits, whatever T.
As the blocks are disjoint it works for sums of exponentials, which must not count a step twice, as for maxima.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from habitus.core.stl.expressions import Scalar

LARGE = 1e30  # stands for infinity, whose differences would be NaN in gradients


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

    def greater(self, x: Float[Array, "time"], y: Float[Array, "time"]) -> Float[Array, "time"]:
        """The greater of two values."""
        if self.temperature is None:
            return jnp.maximum(x, y)
        return self.temperature * jnp.logaddexp(x / self.temperature, y / self.temperature)

    def lesser(self, x: Float[Array, "time"], y: Float[Array, "time"]) -> Float[Array, "time"]:
        """The lesser of two values."""
        return -self.greater(-x, -y)

    def greatest(self, x: Float[Array, "time"], start: int, width: int) -> Float[Array, "time"]:
        """At each t the greatest over the `width` steps from `t + start` on that there are; -LARGE if there is none."""
        return window(self.greater, -LARGE, self.only_valid(x, -LARGE), start, width)

    def least(self, x: Float[Array, "time"], start: int, width: int) -> Float[Array, "time"]:
        """At each t the least over the `width` steps from `t + start` on that there are; LARGE if there is none."""
        return -self.greatest(-x, start, width)

    def until(
        self, held: Float[Array, "time"], goal: Float[Array, "time"], start: int, width: int
    ) -> Float[Array, "time"]:
        """At each t `max_k min(goal[t + k], min_{j < k} held[t + j])` over `start <= k < start + width`."""
        held, goal = self.only_valid(held, LARGE), self.only_valid(goal, -LARGE)
        if start >= len(goal):
            return jnp.full_like(goal, -LARGE)
        before = self.least(held, 0, start) if start else jnp.full_like(held, LARGE)
        if self.temperature is not None:
            return self._smooth_until(before, held, goal, start, width)
        found = window(_joined, (LARGE, -LARGE), (held, goal), start, width)[1]
        return jnp.minimum(before, found)

    def _smooth_until(self, before: Array, held: Array, goal: Array, start: int, width: int) -> Float[Array, "time"]:
        """As written, one k after the other, for all t at once: soft minima do not distribute over soft maxima."""
        held, goal = padded(held, LARGE), padded(goal, -LARGE)

        def advance(now: tuple[Array, Array], k: Int[Array, ""]) -> tuple[tuple[Array, Array], None]:
            before, best = now
            best = self.greater(best, self.lesser(before, shifted(goal, k)))
            return (self.lesser(before, shifted(held, k)), best), None

        ks = jnp.arange(start, min(start + width, len(before)))
        return jax.lax.scan(advance, (before, jnp.full_like(before, -LARGE)), ks)[0][1]

    def only_valid(self, x: Float[Array, "time"], blank: float) -> Float[Array, "time"]:
        """The values, `blank` where the step is not real."""
        return x if self.valid is None else jnp.where(self.valid, x, blank)


def _joined(early: tuple[Array, Array], late: tuple[Array, Array]) -> tuple[Array, Array]:
    """Of two stretches of time, one after the other: (least held, until within), for both together."""
    return jnp.minimum(early[0], late[0]), jnp.maximum(early[1], jnp.minimum(early[0], late[1]))


def window(combine: Callable[[Any, Any], Any], blank: Any, x: Any, start: int, width: int) -> Any:
    """At each t, `combine` over the `width` steps from `t + start` on; past the end there is `blank`.

    Args:
        combine: associative, with `blank` as its neutral element; the earlier argument is the earlier stretch.
        x: a tree of signals [time]; `blank` is a tree of numbers alike.
    """
    steps = len(jax.tree.leaves(x)[0])
    width, size, found, block = min(width, steps), 1, None, x

    def later(block: Any, by: int) -> Any:
        return jax.tree.map(lambda leaf, empty: shifted(padded(leaf, empty), min(by, steps)), block, blank)

    while True:
        if width & size:
            piece = later(block, start)
            found = piece if found is None else combine(found, piece)
            start += size
        if 2 * size > width:
            assert found is not None
            return found
        block, size = combine(block, later(block, size)), 2 * size


def padded(x: Float[Array, "time"], blank: float) -> Float[Array, "twice"]:
    """A signal with as much blank after it."""
    return jnp.concatenate([x, jnp.full_like(x, blank)])


def shifted(x: Float[Array, "twice"], by: int | Int[Array, ""]) -> Float[Array, "time"]:
    """The `time` values of a padded signal from `by` on."""
    # an index that is data: outside of jit one program does for all
    return jax.lax.dynamic_slice_in_dim(x, by, len(x) // 2)
