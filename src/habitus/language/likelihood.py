"""Log-probabilities of what was written, by one pass over it: what training differentiates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from habitus.language.decoder import Decoder
from habitus.language.objectives.metrics import entropy
from habitus.language.rollout import Rollout
from habitus.language.sampling import Sampling


def token_log_probs(
    decoder: Decoder,
    rollout: Rollout,
    sampling: Sampling | None = None,
    remat: bool = False,
    chunk: int | None = None,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    """Log-probabilities of the tokens of the responses, and entropies of what each was drawn from, in nats.

    By the policy that wrote them and with its `sampling`, they are what was recorded while sampling, up to rounding.
    Where the mask is 0 both are 0. Entropies are at the temperature, over the whole vocabulary.

    Args:
        sampling: None for temperature 1 and the whole vocabulary.
        remat: whether to compute layers again in the backward pass rather than keep what they computed.
        chunk: logits of how many tokens to hold at once; None for all.
    """
    sampling = Sampling() if sampling is None else sampling
    states = jax.vmap(lambda tokens, valid: decoder.states(tokens, valid, remat))(rollout.tokens, rollout.valid)
    before = states[:, rollout.prompt_room - 1 : -1]

    def read(at: tuple[Float[Array, "width"], Int[Array, ""]]) -> tuple[Array, Array]:
        logits = decoder.logits(at[0])
        return sampling.log_prob(logits, at[1]), entropy(logits / sampling.temperature)

    flat = before.reshape(-1, before.shape[-1]), rollout.responses.reshape(-1)
    found = jax.vmap(read)(flat) if chunk is None else jax.lax.map(jax.checkpoint(read), flat, batch_size=chunk)
    mask = rollout.response_mask
    logp, spread = (jnp.where(mask > 0, x.reshape(mask.shape), 0) for x in found)
    return logp, spread
