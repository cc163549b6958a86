"""DQN, with the double estimator.

Q-learning with a network, a slowly following target network and replayed experience. The greedy action
of the target is chosen by the online network and valued by the target network, which removes most of
the over-estimation of the maximum.

V. Mnih et al., "Human-level Control through Deep Reinforcement Learning", Nature 2015;
H. van Hasselt, A. Guez and D. Silver, "Deep Reinforcement Learning with Double Q-learning", AAAI 2016.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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
from habitus.core.trees import Metrics, copy, descend, select, trainable
from habitus.nets.heads import DiscreteCritic
from habitus.nets.losses import huber, pick
from habitus.nets.policies import Greedy

CARD = Card(
    title="Deep Reinforcement Learning with Double Q-learning",
    authors="van Hasselt, Hado and Guez, Arthur and Silver, David",
    year=2016,
    venue="AAAI Conference on Artificial Intelligence",
    arxiv="1509.06461",
    kind="learner",
    entry="DQN",
    data=("env", "log"),
    actions=("discrete",),
)


class DQNState(eqx.Module):
    """Networks, optimiser, and the number of updates done."""

    critic: DiscreteCritic
    target_critic: DiscreteCritic
    critic_opt: optax.OptState
    updates: Int[Array, ""]


class DQN(Learner):
    """Double deep Q-learning. Discrete actions, from a world or from a log."""

    learning_rate: float = 3e-4  # of Adam; ours
    discount: float = 0.99  # Mnih et al.
    target_period: int = 100  # updates between copies to the target network; ours, for small worlds
    epsilon_start: float = 1.0  # share of uniform actions at the first update
    epsilon_end: float = 0.05  # and after `epsilon_updates` of them
    epsilon_updates: int = 5_000
    batch_size: int = 128  # ours
    hidden: tuple[int, ...] = (128, 128)  # ours

    trains: ClassVar = {"critic": ("critic_loss",)}

    def __check_init__(self) -> None:
        require(self.target_period >= 1, f"target_period must be 1 or more, but is {self.target_period}.")
        for name in ("epsilon_start", "epsilon_end"):
            value = getattr(self, name)
            require((0 <= value) & (value <= 1), f"{name} is a share, in [0, 1], but is {value}.")
        require(self.epsilon_updates >= 1, f"epsilon_updates must be 1 or more, but is {self.epsilon_updates}.")

    def init(self, spec: Spec, key: PRNGKeyArray) -> DQNState:
        spec.require("discrete", type(self).__name__)
        critic = DiscreteCritic(spec, self.hidden, key)
        critic_opt = optax.adam(self.learning_rate).init(trainable(critic))
        return DQNState(critic, copy(critic), critic_opt, jnp.zeros((), jnp.int32))

    def critic_loss(
        self, critic: DiscreteCritic, state: DQNState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`mean huber(Q(s, a) - y)`, `y = r + gamma Q'(s', argmax_a' Q(s', a'))` (van Hasselt et al., eq. 4)."""
        best = jnp.argmax(jax.vmap(self.scores(state))(batch.next_obs), -1)
        next_value = pick(jax.vmap(state.target_critic)(batch.next_obs), best)
        target = jax.lax.stop_gradient(td_target(batch.reward, batch.terminated, next_value, self.discount))
        value = pick(jax.vmap(critic)(batch.obs), batch.action)
        loss = huber(value - target).mean()
        return loss, {"critic_loss": loss, "q": value.mean()}

    def scores(self, state: DQNState) -> Callable[[Array], Float[Array, "n"]]:
        """What the greedy action maximises, both when acting and in the target."""
        return state.critic

    def update(self, state: DQNState, batch: Transition, key: PRNGKeyArray) -> tuple[DQNState, Metrics]:
        critic, critic_opt, metrics = descend(
            optax.adam(self.learning_rate), self.critic_loss, state.critic, state.critic_opt, state, batch, key
        )
        updates = state.updates + 1
        target = select(updates % self.target_period == 0, critic, state.target_critic)
        state = dataclasses.replace(state, critic=critic, critic_opt=critic_opt, target_critic=target, updates=updates)
        return state, metrics

    def policy(self, state: DQNState) -> Policy:
        return Greedy(self.scores(state))

    def explorer(self, state: DQNState) -> Policy:
        progress = jnp.minimum(state.updates / self.epsilon_updates, 1.0)
        epsilon = self.epsilon_start + progress * (self.epsilon_end - self.epsilon_start)
        return Greedy(self.scores(state), epsilon)
