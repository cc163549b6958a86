"""The embedded default answers."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from habitus.language.likelihood import token_log_probs
from habitus.language.model import load
from habitus.language.sampling import Sampling


@pytest.fixture(scope="module")
def model():
    return load("smollm2")


def test_it_is_what_its_card_says(model):
    config = model.decoder.config
    assert (config.family, config.layers, config.width, config.heads, config.kv_heads) == ("llama", 30, 576, 9, 3)
    leaves = jax.tree.leaves(model.decoder)
    assert sum(x.size for x in leaves) == 134_515_008 and model.tokenizer.size == config.vocab == 49_152


def test_text_comes_back(model):
    text = "Ünïcode, 12345 and\n\ttabs: 世界"
    assert model.tokenizer.decode(model.tokenizer.encode(text)) == text
    assert len(model.tokenizer.encode("12345")) == 5


def test_it_knows_the_capital_of_france(model):
    prompt = model.tokenizer.chat_tokens("What is the capital of France?")
    greedy = Sampling(temperature=0.0)
    found = model.generate([prompt], jax.random.key(0), most=16, sampling=greedy)
    assert found.texts(model.tokenizer) == ["The capital of France is Paris."] and not found.truncated.any()
    logp, _ = jax.jit(token_log_probs)(model.decoder, found, greedy)
    np.testing.assert_allclose(logp, found.behaviour_logp, atol=1e-3)
