"""The decoder against its own definition; against transformers see `tests_torch`."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError, DataError, UnknownName
from habitus.language.config import FAMILIES, DecoderConfig
from habitus.language.decoder import Decoder
from habitus.language.lora import adapt, adapters, has_lora, merged
from habitus.language.rope import Rope, rotate, to_halves, to_neighbours

TOKENS = jnp.array([3, 1, 4, 1, 5, 9, 2, 6])


def config(family: str = "llama", **more) -> DecoderConfig:
    return DecoderConfig.tiny(16, width=32, family=family, kv_heads=2, qkv_bias=family == "qwen2", **more)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder.random(config("qwen3", tied=False), jax.random.key(0), spread=0.2)


@eqx.filter_jit
def logits(decoder: Decoder, tokens, valid=None, remat: bool = False):
    return decoder(tokens, valid, remat)


def test_later_tokens_do_not_change_earlier_logits(decoder):
    other = TOKENS.at[5:].set(0)
    a, b = logits(decoder, TOKENS), logits(decoder, other)
    np.testing.assert_allclose(a[:5], b[:5], atol=1e-6)
    assert not np.allclose(a[5:], b[5:], atol=1e-3)


def test_padding_at_either_end_changes_nothing(decoder):
    plain = logits(decoder, TOKENS)
    padded = jnp.concatenate([jnp.array([7, 7, 7]), TOKENS, jnp.array([7, 7])])
    found = logits(decoder, padded, (jnp.arange(13) >= 3) & (jnp.arange(13) < 11))
    np.testing.assert_allclose(found[3:11], plain, atol=1e-5)
    assert jnp.isfinite(found).all()


def test_layers_one_by_one_are_layers_under_scan(decoder):
    apart = decoder.unrolled()
    np.testing.assert_allclose(logits(apart, TOKENS), logits(decoder, TOKENS), atol=1e-5)
    again = apart.stacked()
    assert eqx.tree_equal(again, decoder)


def test_rematerialised_gradients_are_the_same(decoder):
    def loss(decoder, remat):
        return (decoder(TOKENS, remat=remat) ** 2).mean()

    plain, again = (eqx.filter_jit(eqx.filter_grad(loss))(decoder, remat) for remat in (False, True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_differ_where_they_should(family):
    made = Decoder.random(config(family), jax.random.key(0))
    assert (made.layers.q.bias is not None) == (family == "qwen2")
    assert (made.layers.q_norm is not None) == (family == "qwen3")
    assert made.layers.k.weight.shape == (2, 16, 32)


def test_shared_keys_are_repeated_keys(decoder):
    sizes, size = dataclasses.replace(decoder.config, kv_heads=4), decoder.config.head_size

    def repeat(part):
        weight = part.weight.reshape(2, 2, size, -1).repeat(2, axis=1).reshape(2, 4 * size, -1)
        return dataclasses.replace(part, weight=weight)

    layers = dataclasses.replace(decoder.layers, k=repeat(decoder.layers.k), v=repeat(decoder.layers.v), config=sizes)
    wide = dataclasses.replace(decoder, layers=layers, config=sizes)
    np.testing.assert_allclose(logits(wide, TOKENS), logits(decoder, TOKENS), atol=1e-5)


def test_rotation_keeps_lengths_and_scores_depend_on_distances():
    rope = Rope(100.0)
    q, k = jax.random.normal(jax.random.key(1), (2, 1, 1, 8))

    def score(i, j, interleaved):
        turned = [rotate(x, rope.angles(jnp.array([at]), 8), interleaved) for x, at in ((q, i), (k, j))]
        np.testing.assert_allclose(jnp.linalg.norm(turned[0]), jnp.linalg.norm(q), rtol=1e-5)
        return (turned[0] * turned[1]).sum()

    for interleaved in (False, True):
        np.testing.assert_allclose(score(7, 3, interleaved), score(14, 10, interleaved), rtol=1e-4)
        assert abs(score(7, 3, interleaved) - score(7, 4, interleaved)) > 1e-3


def test_both_layouts_of_pairs_are_one_model(decoder):
    sizes = dataclasses.replace(config(), interleaved=True)
    halves = Decoder.random(config(), jax.random.key(2), spread=0.2)

    def move(weight, heads):
        return jnp.asarray(np.stack([to_neighbours(np.asarray(w), heads) for w in weight]))

    layers = dataclasses.replace(
        halves.layers,
        q=dataclasses.replace(halves.layers.q, weight=move(halves.layers.q.weight, 4)),
        k=dataclasses.replace(halves.layers.k, weight=move(halves.layers.k.weight, 2)),
        config=sizes,
    )
    neighbours = dataclasses.replace(halves, layers=layers, config=sizes)
    np.testing.assert_allclose(logits(neighbours, TOKENS), logits(halves, TOKENS), atol=1e-5)
    rows = np.arange(48).reshape(16, 3)
    assert (to_halves(to_neighbours(rows, 2), 2) == rows).all()


def test_scaled_positions():
    plain, linear = Rope(100.0).speeds(8), Rope(100.0, "linear", 4.0).speeds(8)
    np.testing.assert_allclose(linear, plain / 4)
    llama3 = Rope(5e5, "llama3", 8.0)
    divisors = llama3.divisors(128)
    assert divisors[0] == 1 and divisors[-1] == 8 and (np.diff(divisors) >= 0).all()


def test_lora_starts_as_nothing_trains_alone_and_merges(decoder):
    wrapped = adapt(decoder, 2, jax.random.key(3), parts=("q", "down"))
    np.testing.assert_allclose(logits(wrapped, TOKENS), logits(decoder, TOKENS), atol=1e-6)
    where = adapters(wrapped)
    moved = jax.tree.map(lambda x, m: x + 0.1 if m else x, wrapped, where)
    np.testing.assert_allclose(logits(merged(moved), TOKENS), logits(moved, TOKENS), atol=1e-4)
    assert not np.allclose(logits(moved, TOKENS), logits(decoder, TOKENS), atol=1e-3)
    assert not has_lora(merged(moved)) and has_lora(moved)

    low, rest = eqx.partition(moved, where)
    grads = eqx.filter_jit(eqx.filter_grad(lambda low: (eqx.combine(low, rest)(TOKENS) ** 2).mean()))(low)
    found = jax.tree.leaves(grads)
    assert len(found) == 4 and all(jnp.abs(g).max() > 0 for g in found)


def test_only_the_adapters_have_a_gradient_within_a_wrapped_projection(decoder):
    wrapped = adapt(decoder, 2, jax.random.key(3), parts=("q",))
    grads = eqx.filter_jit(eqx.filter_grad(lambda d: (d(TOKENS) ** 2).mean()))(wrapped)
    assert not grads.layers.q.base.weight.any() and grads.layers.q.up.any() and grads.layers.k.weight.any()


@pytest.mark.parametrize("family", FAMILIES)
def test_config_survives_its_json(family):
    for rope in (Rope(5e4), Rope(1e4, "linear", 2.0), Rope(5e5, "llama3", 8.0)):
        before = config(family, rope=rope, eos=(2, 7), bos=1)
        assert DecoderConfig.from_hf(before.to_hf()) == before


def test_older_configs_are_read_too():
    data = config(rope=Rope(5e5, "llama3", 8.0)).to_hf()
    del data["rope_parameters"]
    assert DecoderConfig.from_hf(data).rope == Rope(5e5, "llama3", 8.0)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model_type": "mamba"}, UnknownName, "'mamba' is not supported"),
        ({"hidden_act": "gelu"}, DataError, "gelu"),
        ({"mlp_bias": True}, DataError, "feed-forward"),
        ({"use_sliding_window": True}, DataError, "sliding"),
        ({"quantization_config": {"bits": 4}}, DataError, "quantised"),
        ({"rope_parameters": {"rope_type": "yarn"}}, DataError, "yarn"),
        ({"rope_parameters": {"rope_type": "linear"}}, DataError, "factor"),
        ({"vocab_size": 0}, ConfigError, "vocab must be 1 or more"),
        ({"num_key_value_heads": 3}, ConfigError, "kv_heads must divide"),
    ],
)
def test_what_is_not_supported_is_said(change, error, says):
    with pytest.raises(error, match=says):
        DecoderConfig.from_hf(config().to_hf() | change)


def test_bad_lora_is_refused(decoder):
    with pytest.raises(ConfigError, match="rank must be 1"):
        adapt(decoder, 0, jax.random.key(0))
    with pytest.raises(ConfigError, match="head is not"):
        adapt(decoder, 1, jax.random.key(0), parts=("head",))
    with pytest.raises(ConfigError, match="has LoRA already"):
        adapt(adapt(decoder, 1, jax.random.key(0)), 1, jax.random.key(0))
