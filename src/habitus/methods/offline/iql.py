"""IQL: implicit Q-learning.

Offline value learning that never asks for the value of an action outside the log. The state value is an
upper expectile of Q over logged actions, which approaches the best logged action as the expectile goes
to 1; Q learns from that value, and the policy is cloned from the log with weights that grow
exponentially with the advantage.

I. Kostrikov, A. Nair and S. Levine, "Offline Reinforcement Learning with Implicit Q-Learning", ICLR 2022.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, TypeVar

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
from habitus.core.trees import Metrics, copy, descend, extend, polyak, trainable
from habitus.nets.distributions import Distribution
from habitus.nets.heads import BoundedGaussianActor, Ensemble, StochasticActor, Value, twin_critic
from habitus.nets.losses import expectile_loss
from habitus.nets.normalise import Standardiser
from habitus.nets.policies import Mode, Normalised, Sampling

CARD = Card(
    title="Offline Reinforcement Learning with Implicit Q-Learning",
    authors="Kostrikov, Ilya and Nair, Ashvin and Levine, Sergey",
    year=2022,
    venue="International Conference on Learning Representations",
    arxiv="2110.06169",
    kind="learner",
    entry="IQL",
    data=("log", "env"),
)


S = TypeVar("S", bound="ImplicitQState")


class ImplicitQState(eqx.Module):
    """Critics, state value, their optimisers, and the statistics of the observations."""

    critic: Ensemble
    value: Value
    target_critic: Ensemble
    critic_opt: optax.OptState
    value_opt: optax.OptState
    normaliser: Standardiser


class IQLState(ImplicitQState):
    """The values, and the policy."""

    actor: Callable[..., Distribution]
    actor_opt: optax.OptState


class ImplicitQ(Learner):
    """The values: what is learned without ever asking for the value of an action outside the log."""

    expectile: float = 0.7  # paper: 0.7 for locomotion, 0.9 for mazes
    learning_rate: float = 3e-4  # paper, appendix B; held constant, where the authors anneal the actor's
    discount: float = 0.99
    tau: float = 0.005  # Polyak rate of the target critics
    normalise: bool = False  # standardise observations with the log's statistics; the authors do not
    batch_size: int = 256
    hidden: tuple[int, ...] = (256, 256)

    def __check_init__(self) -> None:
        require((0 < self.expectile) & (self.expectile < 1), f"expectile must be in (0, 1), but is {self.expectile}.")
        require((0 < self.tau) & (self.tau <= 1), f"tau must be in (0, 1], but is {self.tau}.")

    def values(self, spec: Spec, key: PRNGKeyArray) -> ImplicitQState:
        """First critics and value."""
        critic_key, value_key = jax.random.split(key)
        critic, value = twin_critic(spec, self.hidden, critic_key), Value(spec, self.hidden, value_key)
        adam = optax.adam(self.learning_rate)
        return ImplicitQState(
            critic=critic,
            value=value,
            target_critic=copy(critic),
            critic_opt=adam.init(trainable(critic)),
            value_opt=adam.init(trainable(value)),
            normaliser=Standardiser.of(spec) if self.normalise else Standardiser.identity(),
        )

    def advantage(self, value: Value, state: ImplicitQState, batch: Transition) -> Float[Array, "batch"]:
        """`min_k Q'_k(s, a) - V(s)`."""
        q = jax.vmap(state.target_critic)(batch.obs, batch.action).min(-1)
        return jax.lax.stop_gradient(q) - jax.vmap(value)(batch.obs)

    def value_loss(
        self, value: Value, state: ImplicitQState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`mean L_tau(min_k Q'_k(s, a) - V(s))`, the expectile loss (eq. 5)."""
        advantage = self.advantage(value, state, batch)
        loss = expectile_loss(advantage, self.expectile).mean()
        return loss, {"value_loss": loss, "advantage": advantage.mean()}

    def critic_loss(
        self, critic: Ensemble, state: ImplicitQState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`sum_k mean (Q_k(s, a) - r - gamma V(s'))^2` (eq. 6)."""
        next_value = jax.vmap(state.value)(batch.next_obs)
        target = jax.lax.stop_gradient(td_target(batch.reward, batch.terminated, next_value, self.discount))
        q = jax.vmap(critic)(batch.obs, batch.action)
        loss = ((q - target[:, None]) ** 2).mean(0).sum()
        return loss, {"critic_loss": loss, "q": q.mean()}

    def improve_value(self, state: S, batch: Transition, key: PRNGKeyArray) -> tuple[S, Metrics]:
        """One step of the state value."""
        adam = optax.adam(self.learning_rate)
        value, value_opt, metrics = descend(adam, self.value_loss, state.value, state.value_opt, state, batch, key)
        return dataclasses.replace(state, value=value, value_opt=value_opt), metrics

    def improve_critic(self, state: S, batch: Transition, key: PRNGKeyArray) -> tuple[S, Metrics]:
        """One step of the critics; their targets follow."""
        adam = optax.adam(self.learning_rate)
        critic, critic_opt, metrics = descend(adam, self.critic_loss, state.critic, state.critic_opt, state, batch, key)
        target = polyak(state.target_critic, critic, self.tau)
        return dataclasses.replace(state, critic=critic, critic_opt=critic_opt, target_critic=target), metrics


class IQL(ImplicitQ):
    """Expectile values and advantage-weighted cloning. Discrete actions, or real, bounded ones.

    Real actions come from a Gaussian around a squashed mean, as in the authors' code: a squashed
    Gaussian would give logged actions at the bounds no finite likelihood.
    """

    temperature: float = 3.0  # inverse temperature of the weights ("beta"); paper: 3, mazes 10
    max_weight: float = 100.0  # authors' code

    trains: ClassVar = {"value": ("value_loss",), "actor": ("actor_loss",), "critic": ("critic_loss",)}

    def __check_init__(self) -> None:
        require(self.temperature >= 0, f"temperature must be 0 or more, but is {self.temperature}.")
        require(self.max_weight > 0, f"max_weight must be above 0, but is {self.max_weight}.")

    def init(self, spec: Spec, key: PRNGKeyArray) -> IQLState:
        actor_key, value_key = jax.random.split(key)
        actor: BoundedGaussianActor | StochasticActor
        if spec.continuous:
            actor = BoundedGaussianActor(spec, self.hidden, actor_key)
        else:
            actor = StochasticActor(spec, self.hidden, actor_key, "relu", final_gain=None)
        opt = optax.adam(self.learning_rate).init(trainable(actor))
        return extend(IQLState, self.values(spec, value_key), actor=actor, actor_opt=opt)

    def actor_loss(
        self, actor: Callable[..., Distribution], state: IQLState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`-mean exp(beta A(s, a)) log pi(a|s)`, the weight clipped (eq. 7)."""
        advantage = jax.lax.stop_gradient(self.advantage(state.value, state, batch))
        weight = jnp.minimum(jnp.exp(self.temperature * advantage), self.max_weight)
        log_prob = jax.vmap(lambda o, a: actor(o).log_prob(a))(batch.obs, batch.action)
        loss = -(weight * log_prob).mean()
        return loss, {"actor_loss": loss, "log_prob": log_prob.mean()}

    def update(self, state: IQLState, batch: Transition, key: PRNGKeyArray) -> tuple[IQLState, Metrics]:
        adam, batch = optax.adam(self.learning_rate), state.normaliser.transition(batch)
        state, metrics = self.improve_value(state, batch, key)
        actor, actor_opt, found = descend(adam, self.actor_loss, state.actor, state.actor_opt, state, batch, key)
        state, more = self.improve_critic(state, batch, key)
        return dataclasses.replace(state, actor=actor, actor_opt=actor_opt), metrics | found | more

    def policy(self, state: IQLState) -> Policy:
        return Normalised(Mode(state.actor), state.normaliser)

    def explorer(self, state: IQLState) -> Policy:
        return Normalised(Sampling(state.actor), state.normaliser)
