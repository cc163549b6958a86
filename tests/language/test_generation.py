"""Generation: what is recorded is what a pass over it says, whatever the batch, the sampling and the rounding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.language.config import DecoderConfig
from habitus.language.decoder import Decoder
from habitus.language.decoding import prepared
from habitus.language.generation import generate
from habitus.language.likelihood import token_log_probs
from habitus.language.lora import adapt
from habitus.language.sampling import Sampling, pick
from habitus.language.tokenizer import characters

VOCAB, MOST, EOS = 32, 20, 1
PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11, 12, 13]]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    sizes = DecoderConfig.tiny(VOCAB, width=32, family="qwen3", kv_heads=2, context=64, eos=(EOS,))
    return Decoder.random(sizes, jax.random.key(0), spread=0.3)


@pytest.fixture(scope="module")
def forced():
    """Teacher forcing, compiled once for each kind of sampling."""
    return jax.jit(lambda decoder, rollout, sampling: token_log_probs(decoder, rollout, sampling)[0])


LAWS = [
    Sampling(),
    Sampling(temperature=0.3),
    Sampling(temperature=2.5),
    Sampling(top_k=3),
    Sampling(top_p=0.7),
    Sampling(0.7, top_p=0.9, top_k=8),
    Sampling(1.3, top_p=0.05),
    Sampling(temperature=0.0),
]


@pytest.mark.parametrize("sampling", LAWS, ids=lambda s: f"T{s.temperature:.1f}-p{s.top_p:.2f}-k{s.top_k}-{s.greedy}")
def test_the_recorded_log_probability_is_the_recomputed_one(decoder, forced, sampling):
    rollout = generate(decoder, PROMPTS, jax.random.key(1), samples=4, most=MOST, sampling=sampling)
    found = forced(decoder, rollout, sampling)
    np.testing.assert_allclose(found, rollout.behaviour_logp, atol=1e-5)
    assert (np.asarray(rollout.behaviour_logp)[np.asarray(rollout.response_mask) > 0] <= 1e-6).all()
    np.testing.assert_allclose(jnp.exp(found - rollout.behaviour_logp), 1, atol=1e-5)


@pytest.fixture(scope="module")
def rollout(decoder):
    return generate(decoder, PROMPTS, jax.random.key(1), samples=4, most=MOST)


def test_the_record_has_its_shape(rollout):
    assert rollout.tokens.shape == (12, 16 + MOST) and rollout.prompt_room == 16
    assert rollout.group_id.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert rollout.prompt_len.tolist() == [3] * 4 + [1] * 4 + [7] * 4
    for row, prompt in ((0, PROMPTS[0]), (11, PROMPTS[2])):
        assert rollout.tokens[row, 16 - len(prompt) : 16].tolist() == prompt
        assert rollout.valid[row].tolist() == [False] * (16 - len(prompt)) + [True] * (len(prompt) + MOST)


def test_the_end_is_inside_the_mask_and_what_follows_is_not(rollout):
    responses, mask = np.asarray(rollout.responses), np.asarray(rollout.response_mask) > 0
    lengths = mask.sum(1)
    assert len(set(lengths.tolist())) > 2  # some end early
    for row, n, cut in zip(responses, lengths, rollout.truncated, strict=True):
        assert bool(cut) == (EOS not in row[:n])
        assert EOS not in row[: n - 1] and not row[n:].any() and (cut <= (n == MOST))
    assert not np.asarray(rollout.behaviour_logp)[~mask].any()
    assert (mask == (np.arange(MOST) < lengths[:, None])).all()


def test_a_response_does_not_depend_on_what_else_is_in_the_batch(decoder, rollout):
    alone = generate(decoder, PROMPTS[:1], jax.random.key(1), samples=4, most=MOST)
    np.testing.assert_array_equal(alone.responses, rollout.responses[:4])
    np.testing.assert_allclose(alone.behaviour_logp, rollout.behaviour_logp[:4], atol=1e-5)


def test_responses_of_a_group_differ_and_keys_decide(decoder, rollout):
    assert len({tuple(r) for r in np.asarray(rollout.responses).tolist()}) > 6
    again = generate(decoder, PROMPTS, jax.random.key(1), samples=4, most=MOST)
    other = generate(decoder, PROMPTS, jax.random.key(2), samples=4, most=MOST)
    np.testing.assert_array_equal(again.tokens, rollout.tokens)
    assert not np.array_equal(other.tokens, rollout.tokens)


def test_greedy_is_the_likeliest_of_a_pass_over_it(decoder):
    found = generate(decoder, PROMPTS, jax.random.key(1), most=MOST, sampling=Sampling(0.0))
    logits = jax.vmap(decoder)(found.tokens, found.valid)[:, 15:-1]
    mask = np.asarray(found.response_mask) > 0
    np.testing.assert_array_equal(np.asarray(logits.argmax(-1))[mask], np.asarray(found.responses)[mask])


def test_lora_is_merged_for_decoding(decoder, forced):
    wrapped = adapt(decoder, 2, jax.random.key(3), parts=("q",))
    found = generate(prepared(wrapped), PROMPTS, jax.random.key(1), samples=4, most=MOST)
    np.testing.assert_allclose(forced(wrapped, found, Sampling()), found.behaviour_logp, atol=1e-5)


def test_logits_in_chunks_are_the_same_with_their_gradient(decoder, rollout):
    def loss(decoder, chunk):
        logp, spread = token_log_probs(decoder, rollout, chunk=chunk, remat=chunk is not None)
        return logp.mean() + spread.mean()

    whole, parts = (jax.jit(jax.value_and_grad(loss), static_argnums=1)(decoder, chunk) for chunk in (None, 7))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_stop_strings_end_a_response_where_they_are_complete(decoder, rollout):
    letters = characters("".join(chr(97 + i) for i in range(26)) + "0123", ("<pad>", "<eos>"))
    free = np.asarray(rollout.responses)
    row = int(np.argmax(np.asarray(rollout.response_mask).sum(1)))
    stop = letters.decode(free[row][2:4].tolist())
    found = generate(
        decoder, PROMPTS, jax.random.key(1), samples=4, most=MOST, stop=[stop, "never there"], tokenizer=letters
    )
    for i, text in enumerate(found.texts(letters)):
        n = int(found.response_mask[i].sum())
        np.testing.assert_array_equal(np.asarray(found.responses)[i][:n], free[i][:n])
        assert (stop in text) == text.endswith(stop) and text.count(stop) <= 1
    assert int(found.response_mask[row].sum()) <= 4 and not found.truncated[row]
    np.testing.assert_allclose(
        np.where(found.response_mask > 0, rollout.behaviour_logp, 0), found.behaviour_logp, atol=1e-5
    )


def test_what_is_drawn_has_its_probability_and_what_is_cut_is_never_drawn():
    logits = jnp.log(jnp.array([0.4, 0.25, 0.2, 0.1, 0.05]))
    for sampling, kept in (
        (Sampling(), [0, 1, 2, 3, 4]),
        (Sampling(top_k=2), [0, 1]),
        (Sampling(top_p=0.6), [0, 1]),
        (Sampling(top_p=0.66), [0, 1, 2]),
        (Sampling(top_p=0.5, top_k=2), [0]),  # of what top_k leaves
        (Sampling(top_p=1e-6), [0]),
        (Sampling(top_k=99), [0, 1, 2, 3, 4]),
    ):
        wanted = np.where(np.isin(np.arange(5), kept), np.exp(logits), 0)
        wanted /= wanted.sum()
        found = jnp.exp(jax.vmap(sampling.log_prob, in_axes=(None, 0))(logits, jnp.array(kept)))
        np.testing.assert_allclose(found, wanted[kept], rtol=1e-5)
        draws = jax.vmap(sampling.draw, in_axes=(None, 0))(logits, jax.random.split(jax.random.key(0), 20_000))
        share = np.bincount(np.asarray(draws), minlength=5) / 20_000
        np.testing.assert_allclose(share, wanted, atol=4 * np.sqrt(0.25 / 20_000))
        assert share[wanted == 0].sum() == 0


def test_an_index_of_weight_0_is_never_picked():
    weights = jnp.array([0.0, 0, 3e-8, 0, 1, 0, 0, 1e-8, 0, 0])
    found = jax.vmap(pick, in_axes=(None, 0))(weights, jnp.linspace(0, 1, 1001))
    assert set(np.asarray(found).tolist()) <= {2, 4, 7}


def test_a_token_beyond_the_edge_counts_as_kept():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    found = jnp.exp(Sampling(top_k=1).log_prob(logits, jnp.array(2)))
    np.testing.assert_allclose(found, 0.2 / 0.7, rtol=1e-5)


def test_what_does_not_fit_is_refused(decoder):
    for says, prompts, settings in (
        ("there are no prompts", [], {}),
        ("prompt 1 is empty", [[1], []], {}),
        ("prompt 0 has 50 tokens and its response may have 20", [[2] * 50], {}),
        ("prompt 0 has token 32", [[32]], {}),
        ("samples must be 1", [[1]], {"samples": 0}),
        ("pass tokenizer=", [[1]], {"stop": ["x"]}),
    ):
        with pytest.raises(ConfigError, match=says):
            generate(decoder, prompts, jax.random.key(0), **({"most": MOST} | settings))
    for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"temperature": float("nan")}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Sampling(**bad)
