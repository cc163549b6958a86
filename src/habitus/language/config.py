"""What shape a decoder has, and how the files of Hugging Face say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx

from habitus.core.domains import require
from habitus.core.errors import DataError, UnknownName, suggest
from habitus.language.rope import Rope

FAMILIES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


class DecoderConfig(eqx.Module):
    """Sizes of a decoder of the Llama, Qwen2 or Qwen3 family."""

    family: str = eqx.field(static=True)  # one of FAMILIES
    vocab: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    layers: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    kv_heads: int = eqx.field(static=True)  # each is shared by heads / kv_heads queries
    head_size: int = eqx.field(static=True)
    hidden: int = eqx.field(static=True)  # of the feed-forward part
    context: int = eqx.field(static=True, default=2048)  # most tokens at once
    rope: Rope = eqx.field(static=True, default=Rope())
    norm_eps: float = eqx.field(static=True, default=1e-6)
    tied: bool = eqx.field(static=True, default=True)  # whether the head is the embedding
    qkv_bias: bool = eqx.field(static=True, default=False)
    out_bias: bool = eqx.field(static=True, default=False)  # of the projection after attention
    interleaved: bool = eqx.field(static=True, default=False)  # which features RoPE pairs; see `rope.rotate`
    bos: int | None = eqx.field(static=True, default=None)
    eos: tuple[int, ...] = eqx.field(static=True, default=())  # tokens that end a response

    def __check_init__(self) -> None:
        """Raises:
        UnknownName: if the family is none of FAMILIES.
        ConfigError: if a size is below 1, or they do not fit each other.
        """
        if self.family not in FAMILIES:
            raise UnknownName(
                f"the model family {self.family!r} is not supported; {suggest(self.family, [*FAMILIES])}."
            )
        for name in ("vocab", "width", "layers", "heads", "kv_heads", "head_size", "hidden", "context"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more, but is {getattr(self, name)}.")
        fits = self.heads % self.kv_heads == 0
        require(fits, f"kv_heads must divide the {self.heads} heads, but are {self.kv_heads}.")
        require(self.head_size % 2 == 0, f"head_size must be even, as RoPE turns pairs, but is {self.head_size}.")

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised."""
        return self.family == "qwen3"

    @classmethod
    def tiny(
        cls, vocab: int, width: int = 64, layers: int = 2, heads: int = 4, context: int = 256, **more: Any
    ) -> DecoderConfig:
        """A small Llama, for character vocabularies."""
        sizes: dict[str, Any] = dict(kv_heads=heads, head_size=width // heads, hidden=4 * width, family="llama") | more
        return cls(vocab=vocab, width=width, layers=layers, heads=heads, context=context, **sizes)

    @classmethod
    def from_hf(cls, data: Mapping[str, Any]) -> DecoderConfig:
        """From the contents of a `config.json`.

        Raises:
            UnknownName: if the family is not supported.
            DataError: if an entry is missing, or asks for what is not supported.
        """
        family = str(data.get("model_type"))
        if family not in FAMILIES:
            raise UnknownName(f"the model family {family!r} is not supported; {suggest(family, [*FAMILIES])}.")
        refuse(data)
        try:
            heads, width = data["num_attention_heads"], data["hidden_size"]
            bias = bool(data.get("attention_bias", False))
            eos = data.get("eos_token_id")
            return cls(
                family=family,
                vocab=data["vocab_size"],
                width=width,
                layers=data["num_hidden_layers"],
                heads=heads,
                kv_heads=data.get("num_key_value_heads") or heads,
                head_size=data.get("head_dim") or width // heads,
                hidden=data["intermediate_size"],
                context=data.get("max_position_embeddings", 2048),
                rope=rope_from_hf(data),
                norm_eps=data.get("rms_norm_eps", 1e-6),
                tied=bool(data.get("tie_word_embeddings", False)),
                qkv_bias=family == "qwen2" or bias,
                out_bias=family != "qwen2" and bias,
                bos=data.get("bos_token_id"),
                eos=tuple(eos) if isinstance(eos, (list, tuple)) else () if eos is None else (eos,),
            )
        except (KeyError, TypeError) as error:
            raise DataError(f"the model's config.json lacks {error} or holds a wrong value for it.") from error

    def to_hf(self) -> dict[str, Any]:
        """The contents of a `config.json` that `transformers` reads; both ways that its versions write RoPE."""
        rope: dict[str, Any] = {"rope_type": "default"}
        if self.rope.scaling != "none":
            rope = {"rope_type": self.rope.scaling, "factor": self.rope.factor}
        if self.rope.scaling == "llama3":
            rope |= {"low_freq_factor": self.rope.low, "high_freq_factor": self.rope.high}
            rope["original_max_position_embeddings"] = self.rope.original
        eos: Any = list(self.eos) if len(self.eos) > 1 else self.eos[0] if self.eos else None
        return {
            "architectures": [FAMILIES[self.family]],
            "model_type": self.family,
            "vocab_size": self.vocab,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "intermediate_size": self.hidden,
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tied,
            "attention_bias": self.qkv_bias and self.family != "qwen2",
            "hidden_act": "silu",
            "rope_theta": self.rope.base,
            "rope_scaling": None if self.rope.scaling == "none" else rope,
            "rope_parameters": rope | {"rope_theta": self.rope.base},
            "bos_token_id": self.bos,
            "eos_token_id": eos,
        }


def refuse(data: Mapping[str, Any]) -> None:
    """Raises `DataError` for what would silently change what the model says."""
    if data.get("hidden_act", "silu") != "silu":
        raise DataError(f"the model's activation is {data['hidden_act']!r}; only silu is supported.")
    if data.get("mlp_bias"):
        raise DataError("the model has biases in its feed-forward part, which is not supported.")
    if data.get("use_sliding_window"):
        raise DataError("the model attends through a sliding window, which is not supported.")
    if data.get("quantization_config"):
        raise DataError("the model is quantised; save it in float32, float16 or bfloat16, or use its GGUF file.")


def rope_from_hf(data: Mapping[str, Any]) -> Rope:
    """`rope_parameters` as transformers 5 writes it, or `rope_theta` and `rope_scaling` of older versions.

    Raises:
        DataError: if the scaling is neither linear nor that of Llama 3.
    """
    more = data.get("rope_parameters") or data.get("rope_scaling") or {}
    base = float(more.get("rope_theta") or data.get("rope_theta") or 10_000.0)
    kind = more.get("rope_type") or more.get("type") or "default"
    if kind == "default":
        return Rope(base)
    if kind == "linear":
        return Rope(base, "linear", float(more["factor"]))
    if kind == "llama3":
        factor, low, high = (float(more[n]) for n in ("factor", "low_freq_factor", "high_freq_factor"))
        return Rope(base, "llama3", factor, low, high, int(more["original_max_position_embeddings"]))
    raise DataError(f"the model scales its positions by {kind!r}; supported are linear and llama3.")
