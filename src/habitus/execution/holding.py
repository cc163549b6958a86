"""Keeps doing what was done while a reading fails, and says how often.

H. Xue et al., "Reactive Diffusion Policy", RSS 2025, reads forces at the rate of its actions: a sensor that drops out
for one step must not end the episode, and must not go unnoticed.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.protocols import Policy
from habitus.core.trees import Metrics


class Held(eqx.Module):
    """What `Holding` remembers: the last readings and action that were good, and the steps without a good reading."""

    policy: Any
    obs: Float[Array, "obs"]
    action: Float[Array, "*action"]
    steps: Int[Array, ""]


class Holding(Policy):
    """Repeats its last action in steps in which some number of the observation is not finite.

    The policy inside goes on all the same, and is shown the last finite value of each such number, so that its clock
    and its memory stay right; before there is one it is shown 0.

    Attributes:
        policy: what acts; it never sees NaN or Inf.
        obs_size: numbers in an observation [obs].
        action_shape: of an action, which is 0 until there is one to repeat.
    """

    policy: Policy
    obs_size: int = eqx.field(static=True)
    action_shape: tuple[int, ...] = eqx.field(static=True)

    def init(self) -> Held:
        action = jnp.zeros(self.action_shape)
        return Held(self.policy.init(), jnp.zeros(self.obs_size), action, jnp.zeros((), jnp.int32))

    def rewarded(self, carry: Held, reward: Float[Array, ""]) -> Held:
        return eqx.tree_at(lambda c: c.policy, carry, self.policy.rewarded(carry.policy, reward))

    def report(self, carry: Held) -> Metrics:
        """What the policy inside reports, and `held`: steps of this episode in which a reading failed."""
        return self.policy.report(carry.policy) | {"held": carry.steps}

    def __call__(
        self, obs: Float[Array, "obs"], carry: Held, key: PRNGKeyArray
    ) -> tuple[Float[Array, "*action"], Held]:
        good = jnp.isfinite(obs)
        shown = jnp.where(good, obs, carry.obs)
        action, inner = self.policy(shown, carry.policy, key)
        action = jnp.where(good.all(), action, carry.action)
        return action, Held(inner, shown, action, carry.steps + ~good.all())
