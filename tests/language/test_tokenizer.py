"""Tokenizers and chat templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from habitus.core.errors import CheckpointError, DataError
from habitus.language.templates import NoTemplate, render
from habitus.language.tokenizer import CUTS, byte_pairs, characters, gguf_tokenizer, read_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BYTES = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]  # of GPT-2
WORDS = ["<|im_start|>", "<|im_end|>", *BYTES, "he", "ll", "hell", "hello", "Ġhello", "12", "123"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello", "1 2", "12 3"]
KINDS = [3, 3] + [1] * (len(WORDS) - 2)


class File:
    """A GGUF file as far as a tokenizer sees it."""

    path = Path("m.gguf")

    def __init__(self, **changes):
        own = {"model": "gpt2", "pre": "smollm", "tokens": WORDS, "merges": MERGES, "token_type": KINDS}
        own |= {"bos_token_id": 0, "eos_token_id": 1, "padding_token_id": 1}
        self.entries = {f"tokenizer.ggml.{k}": v for k, v in (own | changes).items()}
        self.entries["tokenizer.chat_template"] = CHATML

    def value(self, key, default=None):
        found = self.entries.get(key)
        return default if found is None else found


@pytest.fixture
def tokenizer():
    return gguf_tokenizer(File())


def words(tokenizer, text: str) -> list[str]:
    return [tokenizer.core.id_to_token(i) for i in tokenizer.encode(text)]


@pytest.mark.parametrize("text", ["hello hello 123", "Grüße, 世界 \n\n\t x", " ", ""])
@pytest.mark.parametrize("cut", CUTS)
def test_text_comes_back(text, cut):
    tokenizer = gguf_tokenizer(File(pre=cut, add_bos_token=False))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_cut_as_each_family_cuts_them():
    found = {cut: words(gguf_tokenizer(File(pre=cut, add_bos_token=False)), "123") for cut in CUTS}
    assert found["smollm"] == found["qwen2"] == ["1", "2", "3"]
    assert found["gpt-2"] == found["llama-bpe"] == ["123"]


def test_special_tokens_are_one_token_and_are_left_out_of_text(tokenizer):
    ids = tokenizer.encode("<|im_start|>hello<|im_end|>")
    assert ids == [0, WORDS.index("hello"), 1]
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, special=True) == "<|im_start|>hello<|im_end|>"
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.size) == (0, 1, 1, len(WORDS))


def test_a_text_begins_as_the_model_wants_it():
    tokenizer = gguf_tokenizer(File(add_bos_token=True))
    assert tokenizer.encode("hello") == [0, WORDS.index("hello")]
    assert tokenizer.encode("hello", special=False) == [WORDS.index("hello")]


def test_a_conversation_by_its_template(tokenizer):
    assert tokenizer.chat("hello") == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert tokenizer.chat(turns, reply=False).endswith("<|im_start|>assistant\nb<|im_end|>\n")
    ids = tokenizer.chat_tokens("hello")
    assert ids[0] == 0 and tokenizer.decode(ids, special=True) == tokenizer.chat("hello")


def test_a_tokenizer_survives_its_folder(tokenizer, tmp_path):
    again = read_tokenizer(tokenizer.save(tmp_path))
    assert (again.bos, again.eos, again.pad, again.template) == (0, 1, 1, CHATML)
    text = "<|im_start|>hello 123"
    assert again.encode(text) == tokenizer.encode(text)
    (tmp_path / "chat_template.jinja").write_text("other")
    assert read_tokenizer(tmp_path).template == "other"
    several = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    settings = {"chat_template": several, "bos_token": {"content": "<|im_start|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "chat_template.jinja").unlink()
    again = read_tokenizer(tmp_path)
    assert again.template == "d" and again.bos == 0 and again.eos is None


def test_without_a_template_there_is_no_chat(tokenizer):
    with pytest.raises(NoTemplate, match="has no chat template"):
        tokenizer.with_template(None).chat("hello")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__ }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ 1 / 0 }}",
        "{% if %}",
    ],
)
def test_a_template_cannot_do_what_it_should_not(template):
    with pytest.raises(DataError, match="chat template"):
        render(template, [{"role": "user", "content": "x"}], True, {})


def test_what_templates_expect_is_there():
    assert render("{{ m | tojson }}", [], True, {"m": {"a": "ü"}}) == '{"a": "ü"}'
    assert len(render("{{ strftime_now('%Y') }}", [], True, {})) == 4
    assert (
        render("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", [], True, {}) == "1"
    )


def test_damaged_tokenizers_are_said_to_be(tokenizer, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_tokenizer(tmp_path)
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="tokenizer.json is damaged"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "llama"}, "'llama'"),
        ({"pre": "mystery"}, "'mystery'"),
        ({"merges": None}, "lacks"),
        ({"tokens": []}, "lacks"),
    ],
)
def test_a_gguf_tokenizer_that_is_not_supported_is_refused(changes, says):
    with pytest.raises(DataError, match=says):
        gguf_tokenizer(File(**changes))


def test_characters():
    tokenizer = characters("0123456789>;#")
    ids = tokenizer.encode("31>13")
    assert ids == [5, 3, 12, 3, 5] and tokenizer.size == 15
    assert tokenizer.decode([*ids, tokenizer.eos, tokenizer.pad]) == "31>13"
    with pytest.raises(DataError, match="no tokens for '3x'"):
        tokenizer.encode("3x")
    with pytest.raises(DataError, match="repeats"):
        characters("aa")


def test_words_of_a_vocabulary_can_be_of_the_user(tmp_path):
    core = byte_pairs([*WORDS, "<tool>"], MERGES, [*KINDS, 4], "smollm", None)
    assert core.encode("a<tool>").ids == [WORDS.index("a"), len(WORDS)]
    assert core.decode([len(WORDS)], skip_special_tokens=True) == "<tool>"
