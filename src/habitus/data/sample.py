"""Drawing distinct rows in time that does not grow with the log."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, UInt32

ROUNDS = 10  # with 6, some orders of five rows come up visibly more often than others


@partial(jax.jit, static_argnums=(1, 2))
def distinct_rows(key: PRNGKeyArray, rows: int, size: int) -> Int[Array, "size"]:
    """`size` distinct integers below `rows`, each choice as likely as any other.

    They are the first outputs of a keyed permutation of range(rows): a Feistel network over pairs
    (left, right) with left < width and right < height, where the rectangle just covers `rows`.
    What falls beyond is permuted again until it does not (cycle walking: Black and Rogaway,
    'Ciphers with arbitrary finite domains', 2002). `jax.random.choice` sorts all rows instead.
    """
    width = math.isqrt(rows - 1) + 1
    height = -(-rows // width)
    keys = jax.random.bits(key, (ROUNDS, 2), jnp.uint32)

    def permute(index: UInt32[Array, "size"]) -> UInt32[Array, "size"]:
        left, right = index // height, index % height
        for round_key in keys:
            left = (left + _scramble(right ^ round_key[0]) % width) % width
            right = (right + _scramble(left ^ round_key[1]) % height) % height
        return left * height + right

    first = permute(jnp.arange(size, dtype=jnp.uint32))
    inside = jax.lax.while_loop(
        lambda index: (index >= rows).any(), lambda index: jnp.where(index >= rows, permute(index), index), first
    )
    return inside.astype(jnp.int32)


def _scramble(x: UInt32[Array, "size"]) -> UInt32[Array, "size"]:
    """The finaliser of MurmurHash3: every bit of the result depends on every bit of `x`."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
