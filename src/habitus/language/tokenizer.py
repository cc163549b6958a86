"""Text to tokens and back: from a `tokenizer.json`, or rebuilt from what a GGUF file says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from habitus.core.errors import DataError, MissingExtra
from habitus.core.files import write_json
from habitus.language.templates import Message, render
from habitus.language.weights import read_json

CONTROL, USER_DEFINED = 3, 4  # types of tokens in GGUF files
# how text is cut before pairs are merged, by the name that llama.cpp has for it; None for GPT-2's own way
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {"gpt-2": None, "default": None, "smollm": "digits", "llama-bpe": _WORDS % "{1,3}", "qwen2": _WORDS % ""}


@runtime_checkable
class Metadata(Protocol):
    """What a GGUF file says about itself."""

    path: Path

    def value(self, key: str, default: Any = None) -> Any:
        """An entry, or the default."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of the package `tokenizers`, with its chat template.

    Attributes:
        core: a `tokenizers.Tokenizer`.
        bos, eos, pad: ids; None where there is none.
        template: chat template, or None.
    """

    core: Any
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    template: str | None = None

    @property
    def size(self) -> int:
        """How many tokens there are, special ones included."""
        return self.core.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Tokens of a text. Special tokens that it spells out become those tokens.

        Args:
            special: whether to add what this model begins and ends texts with.

        Raises:
            DataError: if the text has a letter that the vocabulary lacks.
        """
        try:
            return self.core.encode(text, add_special_tokens=special).ids
        except Exception as error:  # the package raises this class itself
            raise DataError(f"the tokenizer has no tokens for {text[:40]!r} ({error}).") from error

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        """Text of tokens; special ones are left out unless `special`."""
        return self.core.decode([int(token) for token in tokens], skip_special_tokens=not special)

    def chat(self, messages: Sequence[Message] | str, reply: bool = True, **variables: Any) -> str:
        """The text of a conversation, by the template of the model.

        Args:
            messages: each with `role` and `content`; a text is one message of the user.
            reply: whether to open the assistant's turn.
            variables: what else the template may name, as `tools`.

        Raises:
            NoTemplate: if the tokenizer has none.
            DataError: if the template does not take these messages.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        named = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad}
        known = {k: "" if i is None else self.core.id_to_token(i) for k, i in named.items()}
        return render(self.template, messages, reply, known | variables)

    def chat_tokens(self, messages: Sequence[Message] | str, reply: bool = True, **variables: Any) -> list[int]:
        """Tokens of `chat`: the template writes what begins a text, so nothing is added."""
        return self.encode(self.chat(messages, reply, **variables), special=False)

    def with_template(self, template: str | None) -> Tokenizer:
        """The same with another chat template."""
        return dataclasses.replace(self, template=template)

    def save(self, folder: str | Path) -> Path:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which `transformers` and `read_tokenizer` load."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.core.save(str(folder / "tokenizer.json"))
        named = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad}
        data: dict[str, Any] = {k: self.core.id_to_token(i) for k, i in named.items() if i is not None}
        data |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        if self.template is not None:
            data["chat_template"] = self.template
        write_json(folder / "tokenizer_config.json", data)
        return folder


def package() -> Any:
    """The package `tokenizers`. Raises `MissingExtra` without it."""
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtra("tokenizers of language models", "language") from error
    return tokenizers


def read_tokenizer(folder: str | Path) -> Tokenizer:
    """From a folder with `tokenizer.json` and, if it is there, `tokenizer_config.json` and `chat_template.jinja`.

    Raises:
        DataError: if `tokenizer.json` is missing or damaged.
        CheckpointError: if `tokenizer_config.json` is damaged.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{path} does not exist; a tokenizer is a tokenizer.json, and what stands beside it.")
    try:
        core = package().Tokenizer.from_file(str(path))
    except MissingExtra:
        raise
    except Exception as error:  # the package raises this class itself
        raise DataError(f"{path} is damaged ({error}).") from error
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}

    def token(name: str) -> int | None:
        found = settings.get(name)
        found = found.get("content") if isinstance(found, dict) else found
        return core.token_to_id(found) if isinstance(found, str) else None

    beside = folder / "chat_template.jinja"
    template = beside.read_text(encoding="utf-8") if beside.is_file() else settings.get("chat_template")
    if isinstance(template, list):  # several by name
        by_name = {t["name"]: t["template"] for t in template}
        template = by_name.get("default") or next(iter(by_name.values()), None)
    return Tokenizer(core, token("bos_token"), token("eos_token"), token("pad_token"), template)


def gguf_tokenizer(file: Metadata) -> Tokenizer:
    """Rebuilt from the vocabulary and the merges in a GGUF file.

    Raises:
        DataError: if it is not of byte-level pairs, cuts text in a way not known here, or entries are missing.
    """

    def entry(name: str, default: Any = None) -> Any:
        return file.value(f"tokenizer.ggml.{name}", default)

    if entry("model") != "gpt2":
        raise DataError(
            f"{file.path} has a tokenizer of kind {entry('model')!r}; only gpt2, byte-level pairs, is supported."
        )
    cut = entry("pre", "default")
    if cut not in CUTS:
        raise DataError(f"{file.path} cuts text by {cut!r}, which is not known; known are {', '.join(CUTS)}.")
    words, merges, kinds = entry("tokens"), entry("merges"), entry("token_type")
    if not words or merges is None:
        raise DataError(f"{file.path} lacks the tokens or the merges of its tokenizer.")
    begins = entry("bos_token_id") if entry("add_bos_token", cut == "llama-bpe") else None
    core = byte_pairs(words, merges, kinds or [1] * len(words), cut, begins)
    bos, eos, pad = (entry(f"{name}_token_id") for name in ("bos", "eos", "padding"))
    return Tokenizer(core, bos, eos, pad, file.value("tokenizer.chat_template"))


def byte_pairs(words: Sequence[str], merges: Sequence[str], kinds: Sequence[int], cut: str, begins: int | None) -> Any:
    """A byte-level `tokenizers.Tokenizer`.

    Args:
        words: tokens in the order of their ids.
        merges: pairs `left right`, the first merged first.
        kinds: types of the tokens, as GGUF files have them.
        cut: of `CUTS`.
        begins: id of the token that every text begins with, or None.
    """
    tokenizers = package()
    from tokenizers import decoders, models, pre_tokenizers, processors

    whole = cut == "llama-bpe"  # a word that is a token is not taken apart
    parts = (merge.partition(" ") for merge in merges)
    pairs = [(left, right) for left, _, right in parts]
    vocab = {word: i for i, word in enumerate(words)}
    core = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=whole))
    rule = CUTS[cut]
    if rule is None:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    elif rule == "digits":
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    else:
        split = pre_tokenizers.Split(tokenizers.Regex(rule), behavior="isolated")
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    core.decoder = decoders.ByteLevel()
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        added = [word for word, k in zip(words, kinds, strict=True) if k == kind]
        add = core.add_special_tokens if special else core.add_tokens
        add([tokenizers.AddedToken(word, normalized=False, special=special) for word in added])
    if begins is not None:
        word = words[begins]
        core.post_processor = processors.TemplateProcessing(
            single=f"{word} $A", pair=f"{word} $A {word}:1 $B:1", special_tokens=[(word, begins)]
        )
    return core


def characters(letters: str, special: Mapping[str, int] | Sequence[str] = ("<pad>", "<eos>")) -> Tokenizer:
    """One token a letter, for tiny models: special tokens first, then the letters. Other letters are an error.

    Raises:
        DataError: if a letter occurs twice.
    """
    tokenizers = package()
    from tokenizers import decoders, models, pre_tokenizers

    if len(set(letters)) != len(letters):
        raise DataError(f"the letters of a vocabulary must differ, but {letters!r} repeats one.")
    words = [*special, *letters]
    core = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=""))
    core.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([tokenizers.AddedToken(word, normalized=False, special=True) for word in special])
    at = {word: i for i, word in enumerate(words)}
    return Tokenizer(core, None, at.get("<eos>"), at.get("<pad>"))
