"""Policies made of networks. They act in canonical spaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.protocols import Policy
from habitus.core.trees import Metrics, take
from habitus.nets.distributions import Distribution, Normal
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
        if isinstance(self.epsilon, float) and self.epsilon == 0:  # then nothing is drawn
            return jnp.argmax(values).astype(jnp.int32), carry
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

    def report(self, carry: Any) -> Metrics:
        return self.policy.report(carry)

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

    def report(self, carry: Any) -> Metrics:
        return self.policy.report(carry)

    def __call__(self, obs: Array, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        return self.policy(self.normaliser(obs), carry, key)


class ByStep(Policy):
    """Another policy at each step of an episode; the carry counts the steps. Beyond the last one, the last.

    Attributes:
        policies: memoryless ones, stacked along a leading axis.
        horizon: how many.
    """

    policies: Policy
    horizon: int = eqx.field(static=True)

    def init(self) -> Int[Array, ""]:
        return jnp.zeros((), jnp.int32)

    def __call__(self, obs: Array, carry: Int[Array, ""], key: PRNGKeyArray) -> tuple[Array, Int[Array, ""]]:
        policy = take(self.policies, jnp.minimum(carry, self.horizon - 1))
        return policy(obs, (), key)[0], carry + 1


def likelihood(policy: Policy, obs: Array) -> Distribution:
    """What a policy with real actions would do, as a density that every action has a gradient under.

    The distribution that its network gives, if it gives one. Around a deterministic action, a Gaussian of unit
    variance (Jackson et al. 2024, as in the authors' code); noise that is added only to explore is left out.
    """
    if isinstance(policy, Normalised):
        return likelihood(policy.policy, policy.normaliser(obs))
    if isinstance(policy, Noisy):
        return likelihood(policy.policy, obs)
    if isinstance(policy, (Sampling, Mode)):
        return policy.actor(obs)
    action, _ = policy(obs, policy.init(), jax.random.key(0))
    return Normal(action, jnp.zeros_like(action))
