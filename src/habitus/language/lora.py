"""LoRA: a low-rank change of frozen projections.

E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.domains import require
from habitus.language.decoder import Decoder, Linear, projections

ATTENTION = ("q", "k", "v", "o")
ALL = (*ATTENTION, "gate", "up", "down")


class LoRA(eqx.Module):
    """`base(x) + scale (x down^T) up^T`; no gradient reaches the base."""

    base: Linear
    down: Float[Array, "*layers rank in"]
    up: Float[Array, "*layers out rank"]  # starts at 0, so that nothing changes at first
    scale: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*rows in"]) -> Float[Array, "*rows out"]:
        frozen = jax.lax.stop_gradient(self.base)(x)
        return frozen + self.scale * jnp.einsum("...r,or->...o", jnp.einsum("...i,ri->...r", x, self.down), self.up)

    def merged(self) -> Linear:
        """One projection that does the same."""
        change = self.scale * jnp.einsum("...or,...ri->...oi", self.up, self.down)
        return Linear(self.base.weight + change.astype(self.base.weight.dtype), self.base.bias)


def adapt(
    decoder: Decoder, rank: int, key: PRNGKeyArray, alpha: float | None = None, parts: Sequence[str] = ALL
) -> Decoder:
    """`decoder` with LoRA around these projections of every layer.

    Args:
        alpha: the change is scaled by `alpha / rank`; None for `2 rank`.
        parts: of `ALL`.

    Raises:
        ConfigError: if the rank is below 1 or a part is not one of these, or the decoder has LoRA already.
    """
    decoder = decoder.stacked()
    shapes, layers = projections(decoder.config), decoder.config.layers
    require(rank >= 1, f"rank must be 1 or more, but is {rank}.")
    unknown = sorted(set(parts) - set(ALL))
    require(not unknown, f"parts must be among {', '.join(ALL)}, but {', '.join(unknown)} is not.")
    require(not has_lora(decoder), "the decoder has LoRA already; merge it first.")
    scale = (2 * rank if alpha is None else alpha) / rank
    wrapped: list[Any] = []
    for part, k in zip(parts, jax.random.split(key, max(len(parts), 1)), strict=False):
        base = getattr(decoder.layers, part)
        out, inputs, _ = shapes[part]
        bound = inputs**-0.5
        down = jax.random.uniform(k, (layers, rank, inputs), base.weight.dtype, -bound, bound)
        wrapped.append(LoRA(base, down, jnp.zeros((layers, out, rank), base.weight.dtype), scale))
    return eqx.tree_at(lambda d: [getattr(d.layers, part) for part in parts], decoder, wrapped)


def has_lora(decoder: Decoder) -> bool:
    """Whether any projection is wrapped."""
    return any(is_lora(x) for x in jax.tree.leaves(decoder, is_leaf=is_lora))


def merged(decoder: Decoder) -> Decoder:
    """The same decoder with every LoRA folded into its projection: for decoding, and to save it."""
    return jax.tree.map(lambda x: x.merged() if is_lora(x) else x, decoder, is_leaf=is_lora)


def adapters(decoder: Decoder) -> Decoder:
    """True for the leaves that train, the low-rank ones, and False for the others: for `eqx.partition`."""

    def mark(x: Any) -> Any:
        if not is_lora(x):
            return False
        marks = jax.tree.map(lambda _: False, x)
        return eqx.tree_at(lambda m: (m.down, m.up), marks, (True, True))

    return jax.tree.map(mark, decoder, is_leaf=is_lora)


def is_lora(x: Any) -> bool:
    """Whether `x` is a wrapped projection, for use as `is_leaf`."""
    return isinstance(x, LoRA)
