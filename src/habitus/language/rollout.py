"""Responses of a language model, as learners get them."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from habitus.language.tokenizer import Tokenizer


class Rollout(eqx.Module):
    """B responses of up to R tokens to prompts of up to P, S = P + R columns.

    A prompt ends in column P - 1 and is padded before its beginning, so that responses begin in column P. The mask is
    1 where the policy wrote the token, its end included, and 0 for what an environment wrote, and for padding.
    """

    tokens: Int[Array, "B S"]
    prompt_len: Int[Array, "B"]
    response_mask: Float[Array, "B R"]
    behaviour_logp: Float[Array, "B R"]  # as they were drawn; 0 where the mask is
    token_rewards: Float[Array, "B R"]
    reward: Float[Array, "B"]  # sum of the token rewards
    group_id: Int[Array, "B"]  # which responses are to one prompt
    turn_id: Int[Array, "B R"]
    truncated: Bool[Array, "B"]  # met the limit of length without an end
    loss_weight: Float[Array, "B"]  # 0 for what is left out of the loss
    ref_logp: Float[Array, "B R"] | None = None
    values: Float[Array, "B R"] | None = None
    reward_terms: dict[str, Float[Array, "B"]] = eqx.field(default_factory=dict)
    meta: dict[str, Array] = eqx.field(default_factory=dict)

    @property
    def responses(self) -> Int[Array, "B R"]:
        """Tokens from column P on."""
        return self.tokens[:, self.prompt_room :]

    @property
    def prompt_room(self) -> int:
        """P."""
        return self.tokens.shape[1] - self.response_mask.shape[1]

    @property
    def valid(self) -> Bool[Array, "B S"]:
        """False for the padding before prompts; what stands after a response is not seen from it anyway."""
        columns = jnp.arange(self.tokens.shape[1])
        return columns >= self.prompt_room - self.prompt_len[:, None]

    def texts(self, tokenizer: Tokenizer, special: bool = False) -> list[str]:
        """What the policy wrote, as text."""
        rows = zip(np.asarray(self.responses), np.asarray(self.response_mask) > 0, strict=True)
        return [tokenizer.decode(row[mask].tolist(), special) for row, mask in rows]
