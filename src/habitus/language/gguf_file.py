"""GGUF files, those of llama.cpp: a model, dequantised, and what its tokenizer is made of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from habitus.core.errors import CheckpointError, MissingExtra, UnknownName, suggest
from habitus.language.config import FAMILIES, DecoderConfig
from habitus.language.decoder import Decoder
from habitus.language.rope import Rope, to_halves
from habitus.language.tensors import EMBEDDING, HEAD, HEAD_NORMS, NORM, NORMS, PROJECTIONS, assemble

WHOLE = {"token_embd": EMBEDDING, "output_norm": NORM, "output": HEAD}
PARTS = {
    "attn_norm": NORMS["before"],
    "ffn_norm": NORMS["between"],
    "attn_q": PROJECTIONS["q"],
    "attn_k": PROJECTIONS["k"],
    "attn_v": PROJECTIONS["v"],
    "attn_output": PROJECTIONS["o"],
    "ffn_gate": PROJECTIONS["gate"],
    "ffn_up": PROJECTIONS["up"],
    "ffn_down": PROJECTIONS["down"],
    "attn_q_norm": HEAD_NORMS["q_norm"],
    "attn_k_norm": HEAD_NORMS["k_norm"],
}
SPEEDS = "rope_freqs.weight"  # by what the speeds of RoPE are divided, where they are
# what the package raises for a file that is cut or is none
_DAMAGED = (ValueError, IndexError, KeyError, TypeError, OSError, OverflowError, MemoryError, NotImplementedError)


class GGUFFile:
    """An open GGUF file; tensors are read as they are asked for.

    Attributes:
        config: sizes of the decoder.
    """

    def __init__(self, path: str | Path, interleaved: bool = False):
        """Args:
            interleaved: for the Llama family, whether to keep the rows of queries and keys in the file's order,
                neighbours paired, rather than in that of Hugging Face.

        Raises:
            MissingExtra: without the package gguf.
            CheckpointError: if the file is missing, truncated, or no GGUF file.
            UnknownName: if the family is not supported.
        """
        try:
            import gguf
        except ImportError as error:
            raise MissingExtra("reading GGUF files", "language") from error
        self.path, self._dequantize = Path(path), gguf.dequantize
        if not self.path.is_file():
            raise CheckpointError(f"{self.path} does not exist.")
        with self._reading():
            reader = gguf.GGUFReader(self.path)
            self._fields = dict(reader.fields)
            self._tensors = {t.name: t for t in reader.tensors}
            family = str(self.value("general.architecture"))
        if family not in FAMILIES:
            raise UnknownName(f"the model family {family!r} is not supported; {suggest(family, [*FAMILIES])}.")
        self._kept = interleaved and family == "llama"
        with self._reading():
            self.config = self._config(family)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (CheckpointError, UnknownName):
            raise
        except _DAMAGED as error:
            what = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{self.path} is truncated, or no GGUF file ({what}).") from error

    def value(self, key: str, default: Any = None) -> Any:
        """An entry of the metadata, as plain Python; `default` where there is none."""
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def _config(self, family: str) -> DecoderConfig:
        def need(key: str) -> Any:
            found = self.value(f"{family}.{key}")
            if found is None:
                raise CheckpointError(f"{self.path} lacks {family}.{key} in its metadata.")
            return found

        heads, width = need("attention.head_count"), need("embedding_length")
        if "token_embd.weight" not in self._tensors:
            raise CheckpointError(f"{self.path} lacks the tensor token_embd.weight.")
        ends = (self.value(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
        size = self.value(f"{family}.attention.key_length") or width // heads
        return DecoderConfig(
            family=family,
            vocab=int(self._tensors["token_embd.weight"].shape[-1]),
            width=width,
            layers=need("block_count"),
            heads=heads,
            kv_heads=self.value(f"{family}.attention.head_count_kv", heads),
            head_size=size,
            hidden=need("feed_forward_length"),
            context=need("context_length"),
            rope=self._rope(family, size),
            norm_eps=float(need("attention.layer_norm_rms_epsilon")),
            tied="output.weight" not in self._tensors,
            qkv_bias="blk.0.attn_q.bias" in self._tensors,
            out_bias="blk.0.attn_output.bias" in self._tensors,
            interleaved=self._kept,
            bos=self.value("tokenizer.ggml.bos_token_id"),
            eos=tuple(dict.fromkeys(e for e in ends if e is not None)),
        )

    def _rope(self, family: str, size: int) -> Rope:
        base = float(self.value(f"{family}.rope.freq_base", 10_000.0))
        if SPEEDS in self._tensors:
            found = self._array(SPEEDS)
            rope = Rope(base, "llama3", float(found.max()))
            if np.allclose(rope.divisors(size), found, rtol=1e-3):
                return rope
            raise CheckpointError(f"{self.path} scales its positions in a way that is neither linear nor Llama 3's.")
        kind = self.value(f"{family}.rope.scaling.type", "none")
        if kind == "none":
            return Rope(base)
        if kind == "linear":
            return Rope(base, "linear", float(self.value(f"{family}.rope.scaling.factor", 1.0)))
        raise CheckpointError(f"{self.path} scales its positions by {kind!r}; supported are linear and Llama 3's.")

    def _array(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        with self._reading():
            return self._dequantize(tensor.data, tensor.tensor_type)

    def decoder(self, dtype: Any = None) -> Decoder:
        """The model, dequantised.

        Args:
            dtype: of the weights; None for `default_dtype()`.

        Raises:
            CheckpointError: if tensors are missing, too many, or of another shape, or the file is damaged.
        """
        places = {translated(name): name for name in self._tensors if name != SPEEDS}
        turned = {} if self._kept or self.config.family != "llama" else self._turned()

        def read(name: str) -> np.ndarray:
            array = self._array(places[name])
            heads = next((n for part, n in turned.items() if f".{part}." in name), None)
            return array if heads is None else to_halves(array, heads)

        return assemble(self.config, places, read, str(self.path), dtype)

    def _turned(self) -> dict[str, int]:
        """What llama.cpp reorders, for Llama only."""
        return {PROJECTIONS["q"]: self.config.heads, PROJECTIONS["k"]: self.config.kv_heads}


def translated(name: str) -> str:
    """The name of Hugging Face; what is unknown stays as it is, to be refused later."""
    stem, _, kind = name.rpartition(".")
    if stem in WHOLE:
        return WHOLE[stem]
    _, layer, part = (stem.split(".", 2) + ["", ""])[:3]
    return f"model.layers.{layer}.{PARTS[part]}.{kind}" if part in PARTS else name


def read_gguf(path: str | Path, dtype: Any = None, interleaved: bool = False) -> Decoder:
    """The decoder in a GGUF file, dequantised. See `GGUFFile`."""
    return GGUFFile(path, interleaved).decoder(dtype)
