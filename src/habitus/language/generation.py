"""Responses to prompts: batched, ragged, several to each prompt, with the log-probabilities they were drawn by."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from habitus.core.domains import require
from habitus.language.decoder import Decoder
from habitus.language.decoding import Decoding, Writer, advance, begin, prepared
from habitus.language.rollout import Rollout
from habitus.language.sampling import Sampling
from habitus.language.tokenizer import Tokenizer

STRIDE = 16  # tokens between two looks for stop strings; rooms for prompts are multiples of it, so few programs compile


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    key: PRNGKeyArray,
    *,
    samples: int = 1,
    most: int = 64,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    tokenizer: Tokenizer | None = None,
    eos: Sequence[int] | None = None,
    pad: int = 0,
) -> Rollout:
    """Writes `samples` responses to each prompt. The prompt is read once for all of them.

    The record has the rows of a prompt one after the other, rewards of 0, and weights of 1.

    Args:
        prompts: tokens of each.
        most: tokens of the longest response.
        sampling: None for temperature 1 and the whole vocabulary.
        stop: texts that end a response, which keeps them; they need the `tokenizer`.
        eos: tokens that end a response, which keeps them; None for those of the decoder.
        pad: token that stands where nothing is.

    Raises:
        ConfigError: if there is no prompt, one is empty, or does not fit the context with its response, or names a
            token that the vocabulary lacks; or if a count is below 1; or for stop strings without a tokenizer.
    """
    require(samples >= 1, f"samples must be 1 or more, but is {samples}.")
    require(most >= 1, f"most must be 1 or more, but is {most}.")
    require(not stop or tokenizer is not None, "stop strings are found in text; pass tokenizer= too.")
    require(all(stop), "a stop string is empty; every response would end at once.")
    check_prompts(decoder, prompts, most)
    tokens, valid = padded(prompts, pad)
    endings = decoder.config.eos if eos is None else eos
    writer = Writer(
        prepared(decoder),
        Sampling() if sampling is None else sampling,
        jnp.asarray(np.asarray(endings, np.int32)),
        key,
    )
    state = begin(decoder, tokens, valid, samples, most, jnp.int32(pad))
    for limit in range(STRIDE, most + STRIDE, STRIDE) if stop else [most]:
        state = advance(writer, state, jnp.int32(min(limit, most)))
        if stop and tokenizer is not None:
            state = stopped(state, stop, tokenizer)
        if bool(state.done.all()):
            break
    return record(state, tokens, pad)


def check_prompts(decoder: Decoder, prompts: Sequence[Sequence[int]], most: int) -> None:
    """See `generate`."""
    context, vocab = decoder.config.context, decoder.config.vocab
    require(len(prompts) > 0, "there are no prompts.")
    for i, prompt in enumerate(prompts):
        require(len(prompt) > 0, f"prompt {i} is empty; give it a first token, such as the one that begins texts.")
        fits = len(prompt) + most <= context
        require(
            fits,
            f"prompt {i} has {len(prompt)} tokens and its response may have {most}, but the context of the model is "
            f"{context}; shorten the prompt, or lower most.",
        )
        odd = next((t for t in prompt if not 0 <= t < vocab), None)
        require(odd is None, f"prompt {i} has token {odd}, but the vocabulary has {vocab}.")


def padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Array, Array]:
    """Tokens [N, P] with padding before their beginning, and where they are valid."""
    room = -(-max(map(len, prompts)) // STRIDE) * STRIDE
    tokens, valid = np.full((len(prompts), room), pad, np.int32), np.zeros((len(prompts), room), bool)
    for i, prompt in enumerate(prompts):
        tokens[i, room - len(prompt) :], valid[i, room - len(prompt) :] = prompt, True
    return jnp.asarray(tokens), jnp.asarray(valid)


def stopped(state: Decoding, stop: Sequence[str], tokenizer: Tokenizer) -> Decoding:
    """Ends the responses that hold a stop string, at the token that completes the first."""
    tokens, length, done = (np.array(x) for x in (state.tokens, state.length, state.done))
    for row in np.ndindex(done.shape):
        words = tokens[row][: length[row]].tolist()
        if not holds(words, stop, tokenizer):
            continue
        low, high = 0, len(words)  # holds in the first `high`, and not in the first `low`
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(words[:middle], stop, tokenizer) else (middle, high)
        length[row], done[row] = high, True
    return dataclasses.replace(state, length=jnp.asarray(length), done=jnp.asarray(done))


def holds(tokens: Sequence[int], stop: Sequence[str], tokenizer: Tokenizer) -> bool:
    """Whether the text of these tokens has a stop string."""
    text = tokenizer.decode(tokens, special=True)
    return any(word in text for word in stop)


def record(state: Decoding, prompts: Int[Array, "N P"], pad: int) -> Rollout:
    """What was written, as learners get it."""
    n, samples, most = state.tokens.shape
    rows = n * samples
    length = state.length.reshape(rows)
    mask = jnp.arange(most) < length[:, None]
    written = jnp.where(mask, state.tokens.reshape(rows, most), pad)
    return Rollout(
        tokens=jnp.concatenate([jnp.repeat(prompts, samples, axis=0), written], axis=1),
        prompt_len=jnp.repeat(state.valid.sum(1).astype(jnp.int32), samples),
        response_mask=mask.astype(jnp.float32),
        behaviour_logp=jnp.where(mask, state.logp.reshape(rows, most), 0),
        token_rewards=jnp.zeros((rows, most)),
        reward=jnp.zeros(rows),
        group_id=jnp.repeat(jnp.arange(n, dtype=jnp.int32), samples),
        turn_id=jnp.zeros((rows, most), jnp.int32),
        truncated=~state.done.reshape(rows),
        loss_weight=jnp.ones(rows),
    )
