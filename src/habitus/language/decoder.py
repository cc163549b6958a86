"""A decoder of the Llama, Qwen2 and Qwen3 families: rotary attention with shared keys, and a gated feed-forward part.

Weights are as checkpoints hold them, [out, in]. Layers are stacked under one leading axis and run by `scan`, so that
training compiles one layer; `unrolled` takes them apart for decoding, since a CPU copies stacked weights at each layer.

H. Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023; A. Yang et al., "Qwen2 Technical
Report", 2024, and "Qwen3 Technical Report", 2025.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.language.config import DecoderConfig
from habitus.language.rope import rotate

Angles = tuple[Float[Array, "time half"], Float[Array, "time half"]]
Attend = Callable[[Array, Array, Array], tuple[Array, Any]]  # (queries, keys, values) -> (mixed values, what to keep)
HIDDEN = -1e30  # score of what is not seen; finite, so that rows that see nothing stay finite


def default_dtype() -> Any:
    """float32 on a CPU, where bfloat16 is slower; bfloat16 on accelerators."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


class Linear(eqx.Module):
    """`x weight^T + bias`, with the weight as [out, in]."""

    weight: Float[Array, "*layers out in"]
    bias: Float[Array, "*layers out"] | None = None

    def __call__(self, x: Float[Array, "*rows in"]) -> Float[Array, "*rows out"]:
        y = jnp.einsum("...i,oi->...o", x, self.weight)
        return y if self.bias is None else y + self.bias


class RMSNorm(eqx.Module):
    """`x / sqrt(mean x^2 + eps) * weight`, the mean in float32."""

    weight: Float[Array, "*layers size"]
    eps: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*rows size"]) -> Float[Array, "*rows size"]:
        wide = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.eps)
        return (wide * scale).astype(x.dtype) * self.weight


class Layer(eqx.Module):
    """`x + attention(norm(x))`, then `x + down(silu(gate(norm(x))) * up(norm(x)))`.

    The projections are `Linear`, or what wraps one (`lora.LoRA`).
    """

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    gate: Linear
    up: Linear
    down: Linear
    before: RMSNorm  # attention
    between: RMSNorm
    q_norm: RMSNorm | None  # Qwen3: over each head
    k_norm: RMSNorm | None
    config: DecoderConfig = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "time width"], angles: Angles, attend: Attend
    ) -> tuple[Float[Array, "time width"], Any]:
        """Args:
        angles: of the rows' positions.
        attend: mixes the values; it may look further than these rows, and say what to keep.
        """
        q, k, v = self.heads(self.before(x), angles)
        mixed, kept = attend(q, k, v)
        x = x + self.o(mixed.reshape(len(x), -1))
        inner = self.between(x)
        return x + self.down(jax.nn.silu(self.gate(inner)) * self.up(inner)), kept

    def heads(self, x: Float[Array, "time width"], angles: Angles) -> tuple[Array, Array, Array]:
        """Queries [time, heads, size], keys and values [time, kv_heads, size], turned by position."""
        q, k, v = (part(x).reshape(len(x), -1, self.config.head_size) for part in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, angles, self.config.interleaved), rotate(k, angles, self.config.interleaved), v


def attention(
    q: Float[Array, "time heads size"],
    k: Float[Array, "keys kv size"],
    v: Float[Array, "keys kv size"],
    sees: Bool[Array, "time keys"],
) -> Float[Array, "time heads size"]:
    """`softmax(q k^T / sqrt(size)) v` where `sees`; each key and value serves heads / kv queries. In float32."""
    shared = q.reshape(len(q), k.shape[1], -1, q.shape[-1])
    scores = jnp.einsum("tkgd,skd->kgts", shared, k).astype(jnp.float32) / q.shape[-1] ** 0.5
    weights = jax.nn.softmax(jnp.where(sees, scores, HIDDEN), axis=-1).astype(v.dtype)
    return jnp.einsum("kgts,skd->tkgd", weights, v).reshape(q.shape)


class Decoder(eqx.Module):
    """Embedding, layers, a last norm and a head. Written for one sequence; `jax.vmap` adds the batch."""

    embedding: Float[Array, "vocab width"]
    layers: Layer | tuple[Layer, ...]  # one with stacked leaves, or one by one
    norm: RMSNorm
    head: Float[Array, "vocab width"] | None  # None where the embedding is the head
    config: DecoderConfig = eqx.field(static=True)

    @classmethod
    def random(cls, config: DecoderConfig, key: PRNGKeyArray, dtype: Any = None, spread: float = 0.02) -> Decoder:
        """Normal weights of this spread, zero biases, unit norms.

        Args:
            dtype: of the weights; None for `default_dtype()`.
        """
        dtype = default_dtype() if dtype is None else dtype
        shape = (config.vocab, config.width)
        at, layers, head = jax.random.split(key, 3)
        return cls(
            embedding=spread * jax.random.normal(at, shape, dtype),
            layers=eqx.filter_vmap(lambda k: random_layer(config, k, dtype, spread))(
                jax.random.split(layers, config.layers)
            ),
            norm=RMSNorm(jnp.ones(config.width, dtype), config.norm_eps),
            head=None if config.tied else spread * jax.random.normal(head, shape, dtype),
            config=config,
        )

    def __call__(
        self, tokens: Int[Array, "time"], valid: Bool[Array, "time"] | None = None, remat: bool = False
    ) -> Float[Array, "time vocab"]:
        """Logits of the token after each. See `states`."""
        return self.logits(self.states(tokens, valid, remat))

    def states(
        self, tokens: Int[Array, "time"], valid: Bool[Array, "time"] | None = None, remat: bool = False
    ) -> Float[Array, "time width"]:
        """What the head reads, after the last norm.

        Args:
            valid: False where a token is padding, at either end; positions count valid tokens. None for all.
            remat: whether to compute layers again in the backward pass rather than keep what they computed.
        """
        valid = jnp.ones(tokens.shape, bool) if valid is None else valid
        rows = jnp.arange(len(tokens))
        sees = (rows[:, None] >= rows) & valid
        return self.run(tokens, positions(valid), lambda q, k, v: (attention(q, k, v, sees), None), remat)[0]

    def run(
        self, tokens: Int[Array, "time"], places: Int[Array, "time"], attend: Attend, remat: bool = False
    ) -> tuple[Float[Array, "time width"], Any]:
        """All layers with one `attend`: what the head reads, and what was kept, stacked over layers or one by one."""
        angles = self.config.rope.angles(places, self.config.head_size)
        x = self.embedding[tokens]

        def step(x: Array, layer: Layer) -> tuple[Array, Any]:
            return layer(x, angles, attend)

        if isinstance(self.layers, tuple):
            keeps = []
            for layer in self.layers:
                x, kept = (jax.checkpoint(step) if remat else step)(x, layer)
                keeps.append(kept)
            return self.norm(x), tuple(keeps)
        x, kept = jax.lax.scan(jax.checkpoint(step) if remat else step, x, self.layers)
        return self.norm(x), kept

    def logits(self, states: Float[Array, "*rows width"]) -> Float[Array, "*rows vocab"]:
        """In float32."""
        head = self.embedding if self.head is None else self.head
        return jnp.einsum("...i,oi->...o", states, head, preferred_element_type=jnp.float32)

    def unrolled(self) -> Decoder:
        """The same with its layers one by one."""
        if isinstance(self.layers, tuple):
            return self
        apart = tuple(jax.tree.map(lambda x, i=i: x[i], self.layers) for i in range(self.config.layers))
        return dataclasses.replace(self, layers=apart)

    def stacked(self) -> Decoder:
        """The same with its layers stacked, for training."""
        if not isinstance(self.layers, tuple):
            return self
        return dataclasses.replace(self, layers=jax.tree.map(lambda *parts: jnp.stack(parts), *self.layers))

    def astype(self, dtype: Any) -> Decoder:
        """The same with its weights in another precision."""
        return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, self)


def positions(valid: Bool[Array, "time"]) -> Int[Array, "time"]:
    """The place of each token among the valid ones; 0 for padding before the first."""
    return jnp.maximum(jnp.cumsum(valid) - 1, 0)


def random_layer(config: DecoderConfig, key: PRNGKeyArray, dtype: Any, spread: float) -> Layer:
    """One layer, as `Decoder.random` makes them."""
    shapes = projections(config)
    parts: dict[str, Any] = {}
    for (name, (out, inputs, bias)), k in zip(shapes.items(), jax.random.split(key, len(shapes)), strict=True):
        weight = spread * jax.random.normal(k, (out, inputs), dtype)
        parts[name] = Linear(weight, jnp.zeros(out, dtype) if bias else None)

    def norm(size: int) -> RMSNorm:
        return RMSNorm(jnp.ones(size, dtype), config.norm_eps)

    over_heads: dict[str, Any] = {n: norm(config.head_size) if config.qk_norm else None for n in ("q_norm", "k_norm")}
    return Layer(**parts, before=norm(config.width), between=norm(config.width), **over_heads, config=config)


def projections(config: DecoderConfig) -> dict[str, tuple[int, int, bool]]:
    """Outputs, inputs and whether there is a bias, of each projection of a layer."""
    queries, keys = config.heads * config.head_size, config.kv_heads * config.head_size
    return {
        "q": (queries, config.width, config.qkv_bias),
        "k": (keys, config.width, config.qkv_bias),
        "v": (keys, config.width, config.qkv_bias),
        "o": (config.width, queries, config.out_bias),
        "gate": (config.hidden, config.width, False),
        "up": (config.hidden, config.width, False),
        "down": (config.width, config.hidden, False),
    }
