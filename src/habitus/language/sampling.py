"""How the next token is drawn, and the log-probability of that."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.domains import require


class Sampling(eqx.Module):
    """Temperature, then the `top_k` likeliest tokens, then the fewest likeliest with `top_p` of what is left.

    Equals of the last token that is kept are kept too. A token that was drawn counts as kept when its log-probability
    is computed again, as another rounding, or a policy that has moved, may put it beyond the edge.

    The likeliest token alone (`temperature=0`) has the log-probability that temperature 1 gives it.
    """

    temperature: Float[Array, ""]
    top_p: Float[Array, ""]
    top_k: Int[Array, ""]
    greedy: bool = eqx.field(static=True)
    truncated: bool = eqx.field(static=True)

    def __init__(self, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0):
        """Args:
            temperature: 0 for the likeliest token.
            top_p: 1 for all.
            top_k: 0 for all.

        Raises:
            ConfigError: if a value is outside its domain.
        """
        fits = math.isfinite(temperature) and temperature >= 0
        require(fits, f"temperature must be 0 or more, but is {temperature}.")
        require(0 < top_p <= 1, f"top_p must be in (0, 1], but is {top_p}.")
        require(top_k >= 0, f"top_k must be 0, for all tokens, or more, but is {top_k}.")
        self.greedy, self.truncated = temperature == 0, temperature > 0 and (top_p < 1 or top_k > 0)
        self.temperature = jnp.float32(temperature or 1.0)
        self.top_p, self.top_k = jnp.float32(top_p), jnp.int32(top_k)

    def draw(self, logits: Float[Array, "vocab"], key: PRNGKeyArray) -> Int[Array, ""]:
        """The next token."""
        if self.greedy:
            return jnp.argmax(logits)
        z = logits / self.temperature
        weights = jnp.exp(z - z.max())
        if self.truncated:
            weights = jnp.where(z >= self.edge(z), weights, 0)
        return pick(weights, jax.random.uniform(key))

    def log_prob(self, logits: Float[Array, "vocab"], token: Int[Array, ""]) -> Float[Array, ""]:
        """Of this token among those kept, itself included."""
        z = logits / self.temperature
        if self.truncated:
            kept = (z >= jax.lax.stop_gradient(self.edge(z))) | (jnp.arange(len(z)) == token)
            z = jnp.where(kept, z, -jnp.inf)
        return z[token] - jax.nn.logsumexp(z)

    def edge(self, z: Float[Array, "vocab"]) -> Float[Array, ""]:
        """Just below the smallest that is kept, of logits that are divided by the temperature already."""
        weights, most = jnp.exp(z - z.max()), jnp.where(self.top_k > 0, self.top_k, len(z))
        last = largest(z, lambda above: above.sum() >= jnp.minimum(most, len(z)))
        whole = jnp.where(z >= last, weights, 0)
        mass = largest(z, lambda above: jnp.where(above, whole, 0).sum() >= self.top_p * whole.sum())
        return jnp.where(self.top_p < 1, jnp.maximum(last, mass), last)  # sums of all may differ by rounding


def largest(z: Float[Array, "vocab"], holds: Callable[[Array], Array]) -> Float[Array, ""]:
    """The largest value in `z` for which `holds(z >= value)`, which once it holds must hold for all smaller ones.

    It is returned moved half of the way to the next smaller one, so that another rounding keeps the same values.
    Bisection over the bits of floats, whose order is that of whole numbers: exact, and on a CPU quicker than to sort.
    """
    order = ordered(z)

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        enough = holds(order >= middle)
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, 32, halve, (order.min(), order.max() + 1))
    kept = jnp.min(jnp.where(order >= low, z, jnp.inf))
    return (kept + jnp.max(jnp.where(order >= low, -jnp.inf, z))) / 2


def ordered(z: Float[Array, "vocab"]) -> Int[Array, "vocab"]:
    """Whole numbers in the order of these floats."""
    bits = jax.lax.bitcast_convert_type(z.astype(jnp.float32), jnp.int32)
    return bits ^ ((bits >> 31) & jnp.int32(0x7FFFFFFF))


def pick(weights: Float[Array, "vocab"], uniform: Float[Array, ""]) -> Int[Array, ""]:
    """An index, with probability in proportion to its weight: where the running sum passes `uniform` of the total.

    In two levels, rows of a square and then within one, since a running sum over a vocabulary is slow.
    """
    side = math.isqrt(len(weights) - 1) + 1
    square = jnp.pad(weights, (0, side * side - len(weights))).reshape(side, side)
    rows = square.sum(1)
    row, rest = passed(rows, uniform * rows.sum())
    column, _ = passed(square[row], rest)
    return row * side + column


def passed(weights: Float[Array, "n"], target: Float[Array, ""]) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """The first index at which the running sum exceeds the target, and what of the target is left before it.

    An index of weight 0 is never found, whatever rounding does.
    """
    sums = jnp.cumsum(weights)
    last = len(weights) - 1 - jnp.argmax(weights[::-1] > 0)
    index = jnp.minimum((sums <= target).sum(), last)
    return index, jnp.maximum(target - (sums[index] - weights[index]), 0)
