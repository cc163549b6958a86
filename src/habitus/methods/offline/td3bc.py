"""TD3+BC: the minimalist approach to offline reinforcement learning.

TD3 with one more term in the actor's loss: the squared distance to the logged action. The critic's
term is divided by the mean absolute Q-value of the batch, so that one weight serves rewards of any
scale. Staying near the log keeps the actor where the critic has data, which is what offline
learning needs and what plain TD3 lacks.

S. Fujimoto and S. S. Gu, "A Minimalist Approach to Offline Reinforcement Learning", NeurIPS 2021.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.experience import Transition
from habitus.core.protocols import Learner, Policy, require
from habitus.core.returns import td_target
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, copy, descend, every, polyak, trainable
from habitus.nets.heads import DeterministicActor, Ensemble, twin_critic
from habitus.nets.normalise import Standardiser
from habitus.nets.policies import Deterministic, Noisy, Normalised

CARD = Card(
    title="A Minimalist Approach to Offline Reinforcement Learning",
    authors="Fujimoto, Scott and Gu, Shixiang Shane",
    year=2021,
    venue="Advances in Neural Information Processing Systems",
    arxiv="2106.06860",
    kind="learner",
    entry="TD3BC",
    data=("log",),
    actions=("continuous",),
)


class TD3BCState(eqx.Module):
    """Networks, optimisers and the number of updates done."""

    actor: DeterministicActor
    critic: Ensemble
    target_actor: DeterministicActor
    target_critic: Ensemble
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    normaliser: Standardiser
    step: Int[Array, ""]


class TD3BC(Learner):
    """TD3 with a pull towards the logged action. Real, bounded actions."""

    alpha: float = 2.5  # weight of the critic against the cloning term; paper, Table 4
    learning_rate: float = 3e-4  # of actor and critics; paper, Table 4
    discount: float = 0.99
    tau: float = 0.005  # Polyak rate of the targets
    noise: float = 0.2  # spread of the target action's noise
    noise_clip: float = 0.5
    actor_delay: int = 2  # critic updates for each actor update
    normalise: bool = True  # standardise observations with the log's statistics; paper, section 4
    exploration: float = 0.1  # spread of the action noise when it collects; TD3
    batch_size: int = 256
    hidden: tuple[int, ...] = (256, 256)

    trains: ClassVar = {"critic": ("critic_loss",), "actor": ("actor_loss",)}

    def __check_init__(self) -> None:
        require(self.alpha > 0, f"alpha weights the critic, so it must be above 0, but is {self.alpha}.")
        require((0 < self.tau) & (self.tau <= 1), f"tau must be in (0, 1], but is {self.tau}.")
        require(self.actor_delay >= 1, f"actor_delay must be 1 or more, but is {self.actor_delay}.")
        for name in ("noise", "noise_clip", "exploration"):
            value = getattr(self, name)
            require(value >= 0, f"{name} must be 0 or more, but is {value}.")

    def init(self, spec: Spec, key: PRNGKeyArray) -> TD3BCState:
        spec.require("bounded", type(self).__name__)
        actor_key, critic_key = jax.random.split(key)
        actor = DeterministicActor(spec, self.hidden, actor_key)
        critic = twin_critic(spec, self.hidden, critic_key)
        adam = optax.adam(self.learning_rate)
        return TD3BCState(
            actor=actor,
            critic=critic,
            target_actor=copy(actor),
            target_critic=copy(critic),
            actor_opt=adam.init(trainable(actor)),
            critic_opt=adam.init(trainable(critic)),
            normaliser=Standardiser.of(spec) if self.normalise else Standardiser.identity(),
            step=jnp.zeros((), jnp.int32),
        )

    def next_action(self, state: TD3BCState, batch: Transition, key: PRNGKeyArray) -> Float[Array, "batch actions"]:
        """`clip(pi'(s') + clip(noise))`: target policy smoothing (Fujimoto et al. 2018, eq. 14)."""
        noise = self.noise * jax.random.normal(key, batch.action.shape)
        noise = jnp.clip(noise, -self.noise_clip, self.noise_clip)
        return jnp.clip(jax.vmap(state.target_actor)(batch.next_obs) + noise, -1, 1)

    def critic_loss(
        self, critic: Ensemble, state: TD3BCState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`sum_k mean (Q_k(s, a) - y)^2`, `y = r + gamma min_k Q'_k(s', clip(pi'(s') + noise))`."""
        next_action = self.next_action(state, batch, key)
        next_value = jax.vmap(state.target_critic)(batch.next_obs, next_action).min(-1)
        target = jax.lax.stop_gradient(td_target(batch.reward, batch.terminated, next_value, self.discount))
        value = jax.vmap(critic)(batch.obs, batch.action)
        loss = ((value - target[:, None]) ** 2).mean(0).sum()
        return loss, {"critic_loss": loss, "q": value.mean()}

    def actor_loss(
        self, actor: DeterministicActor, state: TD3BCState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`-lambda mean Q_1(s, pi(s)) + mean (pi(s) - b)^2`, `lambda = alpha / mean |Q_1|` (eq. 3, 5)."""
        action = jax.vmap(actor)(batch.obs)
        value = jax.vmap(state.critic.members[0])(batch.obs, action)
        weight = jax.lax.stop_gradient(self.alpha / jnp.abs(value).mean())
        cloning, found = self.regulariser(state, batch, action, key)
        loss = -weight * value.mean() + cloning
        return loss, {"actor_loss": loss, "cloning": cloning} | found

    def regulariser(
        self, state: TD3BCState, batch: Transition, action: Float[Array, "batch actions"], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """What keeps the actor near the log: `mean (pi(s) - anchor)^2`. Methods that differ replace it."""
        anchor = jax.lax.stop_gradient(self.anchor(state, batch, action))
        return ((action - anchor) ** 2).mean(), {}

    def anchor(
        self, state: TD3BCState, batch: Transition, action: Float[Array, "batch actions"]
    ) -> Float[Array, "batch actions"]:
        """The actions that the actor is pulled towards."""
        return batch.action

    def update(self, state: TD3BCState, batch: Transition, key: PRNGKeyArray) -> tuple[TD3BCState, Metrics]:
        critic_key, actor_key = jax.random.split(key)
        batch = state.normaliser.transition(batch)
        critic, critic_opt, metrics = descend(
            optax.adam(self.learning_rate), self.critic_loss, state.critic, state.critic_opt, state, batch, critic_key
        )
        state = dataclasses.replace(state, critic=critic, critic_opt=critic_opt, step=state.step + 1)
        state, actor_metrics = every(self.actor_delay, state.step, self._improve_actor, state, batch, actor_key)
        return state, metrics | actor_metrics

    def _improve_actor(self, state: TD3BCState, batch: Transition, key: PRNGKeyArray) -> tuple[TD3BCState, Metrics]:
        """The delayed part: one actor step, then all targets move."""
        actor, actor_opt, metrics = descend(
            optax.adam(self.learning_rate), self.actor_loss, state.actor, state.actor_opt, state, batch, key
        )
        state = dataclasses.replace(
            state,
            actor=actor,
            actor_opt=actor_opt,
            target_actor=polyak(state.target_actor, actor, self.tau),
            target_critic=polyak(state.target_critic, state.critic, self.tau),
        )
        return state, metrics

    def policy(self, state: TD3BCState) -> Policy:
        return Normalised(Deterministic(state.actor), state.normaliser)

    def explorer(self, state: TD3BCState) -> Policy:
        return Noisy(self.policy(state), self.exploration)
