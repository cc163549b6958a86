"""One token after the other, compiled: the prompt once for all responses to it, then all responses side by side."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.language.decoder import HIDDEN, Decoder, attention, positions
from habitus.language.lora import has_lora, merged
from habitus.language.sampling import Sampling

Pair = tuple[Array, Array]  # keys and values of a layer


class Decoding(eqx.Module):
    """N prompts of P columns, K responses to each of R columns, after `step` tokens."""

    prompts: tuple[Pair, ...]  # for each layer [N, P, kv, size]; shared by the responses to a prompt
    own: tuple[Pair, ...]  # [N, K, R, kv, size]
    valid: Bool[Array, "N P"]
    logits: Float[Array, "N K vocab"]  # of the next token
    tokens: Int[Array, "N K R"]
    logp: Float[Array, "N K R"]
    done: Bool[Array, "N K"]
    length: Int[Array, "N K"]
    step: Int[Array, ""]


class Writer(eqx.Module):
    """What stays the same from token to token. Each response has its own stream of random numbers, by its place."""

    decoder: Decoder  # from `prepared`
    sampling: Sampling
    eos: Int[Array, "ends"]
    key: PRNGKeyArray


@eqx.filter_jit
def prepare(decoder: Decoder) -> Decoder:
    """LoRA merged and layers one by one, as decoding wants them."""
    return merged(decoder).unrolled()


def prepared(decoder: Decoder) -> Decoder:
    """`prepare`, unless it is that already."""
    return decoder if isinstance(decoder.layers, tuple) and not has_lora(decoder) else prepare(decoder)


@eqx.filter_jit
def begin(
    decoder: Decoder, tokens: Int[Array, "N P"], valid: Bool[Array, "N P"], samples: int, most: int, pad: Int[Array, ""]
) -> Decoding:
    """Reads the prompts, which are padded before their beginning.

    Args:
        samples, most: K and R.
        pad: the token that stands after the end of a response.
    """

    def read(row: Int[Array, "P"], ok: Bool[Array, "P"]) -> tuple[Array, Any]:
        columns = jnp.arange(len(row))
        sees = (columns[:, None] >= columns) & ok
        return decoder.run(row, positions(ok), lambda q, k, v: (attention(q, k, v, sees), (k, v)))

    states, kept = jax.vmap(read)(tokens, valid)
    if not isinstance(kept[0], tuple):  # [N, layers, P, kv, size]
        kept = tuple((kept[0][:, i], kept[1][:, i]) for i in range(decoder.config.layers))
    n, config = len(tokens), decoder.config
    empty = jnp.zeros((n, samples, most, config.kv_heads, config.head_size), kept[0][0].dtype)
    logits = decoder.logits(states[:, -1])
    return Decoding(
        prompts=kept,
        own=tuple((empty, empty) for _ in kept),
        valid=valid,
        logits=jnp.broadcast_to(logits[:, None], (n, samples, config.vocab)),
        tokens=jnp.full((n, samples, most), pad, jnp.int32),
        logp=jnp.zeros((n, samples, most)),
        done=jnp.zeros((n, samples), bool),
        length=jnp.zeros((n, samples), jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )


@eqx.filter_jit(donate="all-except-first")
def advance(writer: Writer, state: Decoding, limit: Int[Array, ""]) -> Decoding:
    """Up to `limit` tokens in all, or until every response has ended. The memory of `state` is used again."""
    n, samples, _ = state.tokens.shape
    rows = jnp.arange(n * samples).reshape(n, samples)
    places = state.valid.sum(1)  # of the first token of a response

    def write(state: Decoding) -> Decoding:
        def draw(logits: Array, row: Array) -> tuple[Array, Array]:
            key = jax.random.fold_in(jax.random.fold_in(writer.key, row), state.step)
            token = writer.sampling.draw(logits, key)
            return token, writer.sampling.log_prob(logits, token)

        token, logp = jax.vmap(jax.vmap(draw))(state.logits, rows)
        before = state.tokens[:, :, state.step], state.logp[:, :, state.step]
        kept = [jnp.where(state.done, old, new) for old, new in zip(before, (token, logp), strict=True)]
        logits, own = follow(writer.decoder, state, token, places + state.step)
        return dataclasses.replace(
            state,
            own=own,
            logits=logits,
            tokens=state.tokens.at[:, :, state.step].set(kept[0]),
            logp=state.logp.at[:, :, state.step].set(kept[1]),
            done=state.done | (token[..., None] == writer.eos).any(-1),
            length=state.length + ~state.done,
            step=state.step + 1,
        )

    return jax.lax.while_loop(lambda s: (s.step < limit) & ~s.done.all(), write, state)


def follow(
    decoder: Decoder, state: Decoding, token: Int[Array, "N K"], places: Int[Array, "N"]
) -> tuple[Float[Array, "N K vocab"], tuple[Pair, ...]]:
    """Logits after these tokens, and the keys and values with theirs."""

    layers = decoder.unrolled().layers
    assert isinstance(layers, tuple)

    def one(token: Array, own: tuple[Pair, ...], prompts: tuple[Pair, ...], valid: Array, place: Array) -> Any:
        angles = decoder.config.rope.angles(place[None], decoder.config.head_size)
        x, after = decoder.embedding[token][None], []
        for layer, before, prompt in zip(layers, own, prompts, strict=True):
            x, kept = layer(x, angles, partial(mix, own=before, prompt=prompt, valid=valid, step=state.step))
            after.append(kept)
        return decoder.logits(decoder.norm(x)[0]), tuple(after)

    to_one_prompt = jax.vmap(one, in_axes=(0, 0, None, None, None))
    return jax.vmap(to_one_prompt)(token, state.own, state.prompts, state.valid, places)


def mix(
    q: Float[Array, "1 heads size"],
    k: Float[Array, "1 kv size"],
    v: Float[Array, "1 kv size"],
    own: Pair,
    prompt: Pair,
    valid: Bool[Array, "P"],
    step: Int[Array, ""],
) -> tuple[Float[Array, "1 heads size"], Pair]:
    """Attention of one token to the prompt, where it lies, and to what the response has so far."""
    own_k, own_v = (jax.lax.dynamic_update_slice(old, new, (step, 0, 0)) for old, new in zip(own, (k, v), strict=True))
    own = own_k, own_v
    shared = q[0].reshape(k.shape[1], -1, q.shape[-1])
    sees = valid, jnp.arange(len(own[0])) <= step
    parts = []
    for (keys, _), ok in zip((prompt, own), sees, strict=True):
        scores = jnp.einsum("kgd,skd->kgs", shared, keys).astype(jnp.float32) / q.shape[-1] ** 0.5
        parts.append(jnp.where(ok, scores, HIDDEN))
    top = jnp.maximum(parts[0].max(-1), parts[1].max(-1))[..., None]
    weights = [jnp.exp(part - top) for part in parts]
    total = sum(w.sum(-1, keepdims=True) for w in weights)
    found = [
        jnp.einsum("kgs,skd->kgd", (w / total).astype(v.dtype), values)
        for w, (_, values) in zip(weights, (prompt, own), strict=True)
    ]
    return (found[0] + found[1]).reshape(q.shape), own
