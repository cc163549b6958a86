"""Policies made of networks. They act in canonical spaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.protocols import Policy
from habitus.nets.distributions import Distribution
from habitus.nets.normalise import Standardiser


class Deterministic(Policy):
    """Acts as a network says."""

    actor: Callable[[Array], Array]

    def __call__(self, obs: Array, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        return self.actor(obs), carry


class Sampling(Policy):
    """Samples from the distribution that a network gives."""

    actor: Callable[[Array], Distribution]

    def __call__(self, obs: Array, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        return self.actor(obs).sample(key), carry


class Mode(Policy):
    """Takes the mode of the distribution that a network gives."""

    actor: Callable[[Array], Distribution]

    def __call__(self, obs: Array, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        return self.actor(obs).mode(), carry


class Greedy(Policy):
    """Takes the action of highest value, and a uniform one with probability `epsilon`."""

    critic: Callable[[Array], Array]
    epsilon: Float[Array, ""] | float = 0.0

    def __call__(self, obs: Array, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        values = self.critic(obs)
        explore_key, action_key = jax.random.split(key)
        uniform = jax.random.randint(action_key, (), 0, values.shape[-1])
        explore = jax.random.uniform(explore_key) < self.epsilon
        return jnp.where(explore, uniform, jnp.argmax(values)).astype(jnp.int32), carry


class Noisy(Policy):
    """Adds Gaussian noise to a policy with real actions, and clips to [-1, 1]."""

    policy: Policy
    scale: Float[Array, ""] | float

    def init(self) -> Any:
        return self.policy.init()

    def rewarded(self, carry: Any, reward: Float[Array, ""]) -> Any:
        return self.policy.rewarded(carry, reward)

    def __call__(self, obs: Array, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        act_key, noise_key = jax.random.split(key)
        action, carry = self.policy(obs, carry, act_key)
        noise = self.scale * jax.random.normal(noise_key, action.shape)
        return jnp.clip(action + noise, -1.0, 1.0), carry


class Normalised(Policy):
    """Shows a policy standardised observations."""

    policy: Policy
    normaliser: Standardiser

    def init(self) -> Any:
        return self.policy.init()

    def rewarded(self, carry: Any, reward: Float[Array, ""]) -> Any:
        return self.policy.rewarded(carry, reward)

    def __call__(self, obs: Array, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        return self.policy(self.normaliser(obs), carry, key)
