"""SAC: soft actor-critic.

Off-policy actor-critic for the maximum-entropy objective: the critic learns the soft Q-value of a
squashed Gaussian policy by clipped double Q-learning, the actor descends its KL divergence to
`exp(Q / temperature)` by reparameterisation, and the temperature is tuned to hold the entropy at a
target. Entropy in the objective explores and keeps the actor from exploiting errors of the critic.

T. Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.experience import Transition
from habitus.core.protocols import Learner, Policy, require
from habitus.core.returns import td_target
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, copy, descend, polyak, trainable
from habitus.nets.heads import Ensemble, TanhGaussianActor, twin_critic
from habitus.nets.policies import Mode, Sampling

CARD = Card(
    title="Soft Actor-Critic Algorithms and Applications",
    authors="Haarnoja, Tuomas and Zhou, Aurick and Hartikainen, Kristian and Tucker, George and Ha, Sehoon "
    "and Tan, Jie and Kumar, Vikash and Zhu, Henry and Gupta, Abhishek and Abbeel, Pieter and Levine, Sergey",
    year=2018,
    venue="arXiv",
    arxiv="1812.05905",
    kind="learner",
    entry="SAC",
    data=("env", "log"),
    actions=("continuous",),
)


S = TypeVar("S", bound="SACState")


class SACState(eqx.Module):
    """Networks and optimisers."""

    actor: TanhGaussianActor
    critic: Ensemble
    target_critic: Any  # an `Ensemble`, unless a subclass looks at it through a guard
    log_temperature: Float[Array, ""]
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    temperature_opt: optax.OptState

    @property
    def temperature(self) -> Float[Array, ""]:
        """Weight of the entropy, held constant by whoever uses it."""
        return jax.lax.stop_gradient(jnp.exp(self.log_temperature))


class SAC(Learner):
    """Soft actor-critic with two critics and a tuned temperature. Real, bounded actions."""

    learning_rate: float = 3e-4  # of every network; paper, Table 1
    discount: float = 0.99
    tau: float = 0.005  # Polyak rate of the target critics
    temperature: float = 1.0  # of the entropy, or its first value if it is tuned
    tune_temperature: bool = True
    target_entropy: float | None = None  # None for minus the number of action dimensions; paper, section 5
    soft_backup: bool = True  # count the entropy of later actions in the critic's target
    batch_size: int = 256
    hidden: tuple[int, ...] = (256, 256)

    trains: ClassVar = {
        "critic": ("critic_loss",),
        "actor": ("actor_loss",),
        "log_temperature": ("temperature_loss",),
    }

    def __check_init__(self) -> None:
        require((0 < self.tau) & (self.tau <= 1), f"tau must be in (0, 1], but is {self.tau}.")
        require(self.temperature > 0, f"temperature must be above 0, but is {self.temperature}.")

    def init(self, spec: Spec, key: PRNGKeyArray) -> SACState:
        spec.require("bounded", type(self).__name__)
        actor_key, critic_key = jax.random.split(key)
        actor = TanhGaussianActor(spec, self.hidden, actor_key)
        critic = twin_critic(spec, self.hidden, critic_key)
        log_temperature = jnp.log(jnp.asarray(self.temperature, jnp.float32))
        adam = optax.adam(self.learning_rate)
        return SACState(
            actor=actor,
            critic=critic,
            target_critic=copy(critic),
            log_temperature=log_temperature,
            actor_opt=adam.init(trainable(actor)),
            critic_opt=adam.init(trainable(critic)),
            temperature_opt=adam.init(log_temperature),
        )

    def bellman_error(
        self, critic: Ensemble, state: SACState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, "batch 2"], Float[Array, "batch 2"]]:
        """`Q_k(s, a) - y`, `y = r + gamma (min_k Q'_k(s', a') - alpha log pi(a'|s'))` (eq. 5); and `Q_k(s, a)`."""

        def soft_value(obs: Array, key: PRNGKeyArray) -> Float[Array, ""]:
            action, log_prob = state.actor(obs).sample_and_log_prob(key)
            value = state.target_critic(obs, action).min()
            return value - state.temperature * log_prob if self.soft_backup else value

        next_value = jax.vmap(soft_value)(batch.next_obs, jax.random.split(key, batch.size))
        target = jax.lax.stop_gradient(td_target(batch.reward, batch.terminated, next_value, self.discount))
        value = jax.vmap(critic)(batch.obs, batch.action)
        return value - target[:, None], value

    def critic_loss(
        self, critic: Ensemble, state: SACState, batch: Any, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`sum_k 1/2 mean (Q_k(s, a) - y)^2` (eq. 5)."""
        error, value = self.bellman_error(critic, state, batch, key)
        loss = 0.5 * (error**2).mean(0).sum()
        return loss, {"critic_loss": loss, "q": value.mean()}

    def actor_loss(
        self, actor: TanhGaussianActor, state: SACState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`mean alpha log pi(a|s) - min_k Q_k(s, a)`, `a` reparameterised (eq. 9)."""

        def one(obs: Array, key: PRNGKeyArray) -> tuple[Float[Array, ""], Float[Array, ""]]:
            action, log_prob = actor(obs).sample_and_log_prob(key)
            return state.temperature * log_prob - state.critic(obs, action).min(), log_prob

        loss, log_prob = jax.vmap(one)(batch.obs, jax.random.split(key, batch.size))
        return loss.mean(), {"actor_loss": loss.mean(), "entropy": -log_prob.mean()}

    def temperature_loss(
        self, log_temperature: Float[Array, ""], state: SACState, entropy: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        """`alpha (H(pi) - target)`: rises while the entropy is below its target (eq. 17)."""
        target = -float(state.actor.size) if self.target_entropy is None else self.target_entropy
        loss = jnp.exp(log_temperature) * jax.lax.stop_gradient(entropy - target)
        return loss, {"temperature": jnp.exp(log_temperature)}

    def update(self, state: SACState, batch: Transition, key: PRNGKeyArray) -> tuple[SACState, Metrics]:
        critic_key, actor_key = jax.random.split(key)
        state, metrics = self.improve_critic(state, batch, critic_key)
        state, found = self.improve_actor(state, batch, actor_key)
        return state, metrics | found

    def improve_critic(self, state: S, batch: Any, key: PRNGKeyArray) -> tuple[S, Metrics]:
        """One step of the critics; their targets follow."""
        critic, critic_opt, metrics = descend(
            optax.adam(self.learning_rate), self.critic_loss, state.critic, state.critic_opt, state, batch, key
        )
        target = polyak(state.target_critic, critic, self.tau)
        return dataclasses.replace(state, critic=critic, critic_opt=critic_opt, target_critic=target), metrics

    def improve_actor(self, state: S, batch: Transition, key: PRNGKeyArray) -> tuple[S, Metrics]:
        """One step of the actor and, if it is tuned, of the temperature."""
        adam = optax.adam(self.learning_rate)
        actor, actor_opt, metrics = descend(adam, self.actor_loss, state.actor, state.actor_opt, state, batch, key)
        state = dataclasses.replace(state, actor=actor, actor_opt=actor_opt)
        metrics |= {"temperature": state.temperature}
        if self.tune_temperature:
            log_temperature, temperature_opt, _ = descend(
                adam, self.temperature_loss, state.log_temperature, state.temperature_opt, state, metrics["entropy"]
            )
            state = dataclasses.replace(state, log_temperature=log_temperature, temperature_opt=temperature_opt)
        return state, metrics

    def policy(self, state: SACState) -> Policy:
        return Mode(state.actor)

    def explorer(self, state: SACState) -> Policy:
        return Sampling(state.actor)
