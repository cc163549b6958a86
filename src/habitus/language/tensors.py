"""Decoders as named tensors, by the names of Hugging Face, which all files are read and written through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from habitus.core.errors import CheckpointError
from habitus.language.config import DecoderConfig
from habitus.language.decoder import Decoder, Layer, Linear, RMSNorm, default_dtype, projections
from habitus.language.lora import merged
from habitus.language.rope import to_halves

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
PROJECTIONS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
NORMS = {"before": "input_layernorm", "between": "post_attention_layernorm"}
HEAD_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}


def layer_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Names within a layer, and the shapes of their tensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part, (out, inputs, bias) in projections(config).items():
        shapes[f"{PROJECTIONS[part]}.weight"] = (out, inputs)
        if bias:
            shapes[f"{PROJECTIONS[part]}.bias"] = (out,)
    shapes |= {f"{name}.weight": (config.width,) for name in NORMS.values()}
    if config.qk_norm:
        shapes |= {f"{name}.weight": (config.head_size,) for name in HEAD_NORMS.values()}
    return shapes


def shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a decoder."""
    whole: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab, config.width), NORM: (config.width,)}
    if not config.tied:
        whole[HEAD] = (config.vocab, config.width)
    one = layer_shapes(config)
    return whole | {f"model.layers.{i}.{name}": one[name] for i in range(config.layers) for name in one}


def check_names(config: DecoderConfig, found: Iterable[str], where: str) -> None:
    """Raises:
    CheckpointError: if a tensor is missing, or one is there that the decoder does not have. What older versions
        wrote beside them, the speeds of RoPE and the head of a tied model, is let pass.
    """
    wanted, held = set(shapes(config)), set(found)
    extra = {n for n in held - wanted if not n.endswith("rotary_emb.inv_freq") and not (config.tied and n == HEAD)}
    for problem, names in (("lacks", wanted - held), ("holds, beyond what the model has,", extra)):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (" .." if len(names) > 3 else "")
            count = f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
            raise CheckpointError(f"{where} {problem} {count}: {shown}; is its configuration that of another model?")


def assemble(
    config: DecoderConfig, found: Iterable[str], read: Callable[[str], Any], where: str, dtype: Any = None
) -> Decoder:
    """The decoder of these tensors.

    Args:
        found: names of all tensors that there are.
        read: a tensor by its name, each asked for once.
        where: where they are from, for messages.
        dtype: of the weights; None for `default_dtype()`.

    Raises:
        CheckpointError: if names or shapes are not those of the configuration.
    """
    check_names(config, found, where)
    dtype, wanted = default_dtype() if dtype is None else dtype, shapes(config)

    def one(name: str) -> np.ndarray:
        array = np.asarray(read(name))
        if array.shape != wanted[name]:
            raise CheckpointError(f"{where} has {name} of shape {array.shape}, but the model's is {wanted[name]}.")
        return array

    def stack(name: str) -> Any:
        return jnp.asarray(np.stack([one(f"model.layers.{i}.{name}") for i in range(config.layers)]), dtype)

    parts: dict[str, Any] = {}
    for part, (_, _, bias) in projections(config).items():
        name = PROJECTIONS[part]
        parts[part] = Linear(stack(f"{name}.weight"), stack(f"{name}.bias") if bias else None)
    for part, name in (NORMS | HEAD_NORMS).items():
        there = part in NORMS or config.qk_norm
        parts[part] = RMSNorm(stack(f"{name}.weight"), config.norm_eps) if there else None
    return Decoder(
        embedding=jnp.asarray(one(EMBEDDING), dtype),
        layers=Layer(**parts, config=config),
        norm=RMSNorm(jnp.asarray(one(NORM), dtype), config.norm_eps),
        head=None if config.tied else jnp.asarray(one(HEAD), dtype),
        config=config,
    )


def named(decoder: Decoder) -> Iterator[tuple[str, np.ndarray]]:
    """Names and tensors, LoRA merged, with RoPE's pairs as halves; the inverse of `assemble`."""
    decoder = merged(decoder.stacked())
    config, layers = decoder.config, decoder.layers
    yield EMBEDDING, np.asarray(decoder.embedding)
    yield NORM, np.asarray(decoder.norm.weight)
    if decoder.head is not None:
        yield HEAD, np.asarray(decoder.head)
    turned = {"q": config.heads, "k": config.kv_heads} if config.interleaved else {}
    for part, name in (PROJECTIONS | NORMS | HEAD_NORMS).items():
        module = getattr(layers, part)
        for kind in ("weight", "bias"):
            stacked = None if module is None else getattr(module, kind, None)
            if stacked is None:
                continue
            for i, array in enumerate(np.asarray(stacked)):
                rows = to_halves(array, turned[part]) if part in turned else array
                yield f"model.layers.{i}.{name}.{kind}", rows
