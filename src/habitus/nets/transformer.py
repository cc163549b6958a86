"""A small transformer: layer norms before attention and dense layers, as GPT-2 has them.

A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017; A. Radford et al., "Language Models are
Unsupervised Multitask Learners", 2019.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from habitus.core.domains import require
from habitus.nets.mlp import ACTIVATIONS, Linear, dense


def dropout(x: Float[Array, "*shape"], rate: float | Array, key: PRNGKeyArray | None) -> Float[Array, "*shape"]:
    """Each entry is 0 with probability `rate`, the others grow to keep the mean; nothing without a key."""
    if key is None or (isinstance(rate, float) and rate == 0):
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0.0)


class Attention(eqx.Module):
    """Self-attention with several heads."""

    joint: Linear  # queries, keys and values, side by side
    out: Linear
    heads: int = eqx.field(static=True)

    def __init__(self, width: int, heads: int, key: PRNGKeyArray):
        self.joint, self.out = dense([(width, 3 * width), (width, width)], jax.random.split(key))
        self.heads = heads

    def __call__(self, x: Float[Array, "time width"], sees: Bool[Array, "time time"]) -> Float[Array, "time width"]:
        """Args:
        sees: whether the row of the first axis attends to that of the second.
        """
        parts = jax.vmap(self.joint)(x).reshape(len(x), 3, self.heads, -1)
        q, k, v = jnp.moveaxis(parts, 1, 0)
        scores = jnp.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(sees, scores, -1e9), axis=-1)
        return jax.vmap(self.out)(jnp.einsum("hqk,khd->qhd", weights, v).reshape(x.shape))


class Block(eqx.Module):
    """`x + attention(norm(x))`, then `x + dense(norm(x))`."""

    attention: Attention
    up: Linear
    down: Linear
    norms: tuple[eqx.nn.LayerNorm, eqx.nn.LayerNorm]
    activation: str = eqx.field(static=True)

    def __init__(self, width: int, heads: int, activation: str, key: PRNGKeyArray):
        keys = jax.random.split(key, 3)
        self.attention = Attention(width, heads, keys[0])
        self.up, self.down = dense([(width, 4 * width), (4 * width, width)], keys[1:])
        self.norms, self.activation = (eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)), activation

    def __call__(
        self,
        x: Float[Array, "time width"],
        sees: Bool[Array, "time time"],
        key: PRNGKeyArray | None,
        rate: float | Array,
    ) -> Float[Array, "time width"]:
        keys = (None, None) if key is None else jax.random.split(key)
        x = x + dropout(self.attention(jax.vmap(self.norms[0])(x), sees), rate, keys[0])
        inner = ACTIVATIONS[self.activation](jax.vmap(self.up)(jax.vmap(self.norms[1])(x)))
        return x + dropout(jax.vmap(self.down)(inner), rate, keys[1])


class Transformer(eqx.Module):
    """Blocks one after the other, and a last norm. Rows have no places but those that their features tell."""

    blocks: tuple[Block, ...]
    norm: eqx.nn.LayerNorm

    def __init__(self, width: int, layers: int, heads: int, key: PRNGKeyArray, activation: str = "relu"):
        """Raises:
        ConfigError: if a count is below 1, or the heads do not divide the width.
        """
        for name, count in (("width", width), ("layers", layers), ("heads", heads)):
            require(count >= 1, f"{name} must be 1 or more, but is {count}.")
        require(width % heads == 0, f"heads must divide the width of {width}, but are {heads}.")
        self.blocks = tuple(Block(width, heads, activation, k) for k in jax.random.split(key, layers))
        self.norm = eqx.nn.LayerNorm(width)

    def __call__(
        self,
        x: Float[Array, "time width"],
        valid: Bool[Array, "time"],
        key: PRNGKeyArray | None = None,
        rate: float | Array = 0.0,
    ) -> Float[Array, "time width"]:
        """Each row attends to itself and to earlier valid rows.

        Args:
            key: for dropout; None to act.
            rate: of the dropout.
        """
        rows = jnp.arange(len(x))
        sees = (rows[:, None] >= rows) & (valid | (rows[:, None] == rows))
        for i, block in enumerate(self.blocks):
            x = block(x, sees, None if key is None else jax.random.fold_in(key, i), rate)
        return jax.vmap(self.norm)(x)
