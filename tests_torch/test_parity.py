"""The decoder against transformers, on randomly initialised models of each family."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from habitus.language.config import FAMILIES, DecoderConfig
from habitus.language.decoder import Decoder
from habitus.language.generation import generate
from habitus.language.rope import Rope
from habitus.language.sampling import Sampling
from habitus.language.weights import read_folder, write_folder

VOCAB, MOST = 61, 24
PROMPTS = [[5, 9, 2, 33, 60, 7, 7, 1], [12, 3]]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10_000.0,
}
SETTINGS = {
    "llama": {"tie_word_embeddings": False},
    "llama-bias": {"attention_bias": True},
    "llama-3.1": {"rope_parameters": LLAMA3},
    "llama-linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": True, "head_dim": 24, "attention_bias": False},
    "qwen3-bias": {"tie_word_embeddings": False, "attention_bias": True},
}


def theirs(name: str):
    """A small model whose biases and norms are not what they start as, so that each part counts."""
    classes = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    }
    settings, model = classes[name.partition("-")[0]]
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "eos_token_id": None,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    torch.manual_seed(0)
    made = model(settings(**(sizes | SETTINGS[name]))).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def their_logits(model, tokens) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def test_every_family_is_tried():
    assert {name.partition("-")[0] for name in SETTINGS} == set(FAMILIES)


@pytest.mark.parametrize("name", SETTINGS)
def test_logits_and_greedy_continuations_of_what_transformers_wrote(name, tmp_path):
    model = theirs(name)
    model.save_pretrained(tmp_path)
    decoder = read_folder(tmp_path)
    ours = jax.jit(lambda d, t: d(t))(decoder, jnp.array(PROMPTS[0]))
    np.testing.assert_allclose(ours, their_logits(model, PROMPTS[0]), atol=1e-4)
    found = generate(decoder, PROMPTS, jax.random.key(0), most=MOST, sampling=Sampling(temperature=0.0))
    for row, prompt in zip(found.responses, PROMPTS, strict=True):
        asked = torch.tensor([prompt])
        with torch.no_grad():
            whole = model.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=MOST, do_sample=False)
        assert row.tolist() == whole[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rope", [Rope(10_000.0), Rope(5e5, "llama3", 8.0, original=64)], ids=["plain", "llama3"])
def test_transformers_loads_what_we_write(family, rope, tmp_path):
    config = DecoderConfig.tiny(
        VOCAB,
        width=32,
        family=family,
        kv_heads=2,
        qkv_bias=family == "qwen2",
        rope=rope,
        tied=family != "llama",
        eos=(1, 2),
    )
    decoder = Decoder.random(config, jax.random.key(1), spread=0.3)
    write_folder(decoder, tmp_path, most_bytes=20_000)  # in several files
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.config.eos_token_id == [1, 2]
    ours = jax.jit(lambda d, t: d(t))(decoder, jnp.array(PROMPTS[0]))
    np.testing.assert_allclose(ours, their_logits(model.eval(), PROMPTS[0]), atol=1e-4)


def test_truncation_is_that_of_transformers():
    from transformers.generation import logits_process as processes

    logits = np.random.default_rng(0).normal(0, 2, (50, 64)).astype(np.float32)
    for temperature, p, k in ((1.0, 0.9, 0), (0.6, 1.0, 5), (1.4, 0.5, 20), (1.0, 0.02, 0)):
        ours = Sampling(temperature, top_p=p, top_k=k)
        z = torch.from_numpy(logits) / temperature
        for used, process in ((k, processes.TopKLogitsWarper(k or 1)), (p < 1, processes.TopPLogitsWarper(p))):
            z = process(None, z) if used else z
        kept = jax.vmap(lambda row, s=ours: row / s.temperature >= s.edge(row / s.temperature))(jnp.asarray(logits))
        np.testing.assert_array_equal(np.asarray(kept), torch.isfinite(z).numpy())
