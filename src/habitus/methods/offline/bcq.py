"""Discrete BCQ: batch-constrained deep Q-learning.

Double Q-learning in which the greedy action, when acting and in the target, is taken only among actions
that a clone of the behaviour finds likely: at least `threshold` times as likely as its likeliest one.
Actions that the log does not hold are thus never valued by extrapolation. A threshold of 0 is DQN, one
of 1 the mode of the clone.

S. Fujimoto, E. Conti, M. Ghavamzadeh and J. Pineau, "Benchmarking Batch Deep Reinforcement Learning
Algorithms", 2019.
"""

from __future__ import annotations

from typing import Any, ClassVar

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

CARD = Card(
    title="Benchmarking Batch Deep Reinforcement Learning Algorithms",
    authors="Fujimoto, Scott and Conti, Edoardo and Ghavamzadeh, Mohammad and Pineau, Joelle",
    year=2019,
    venue="arXiv",
    arxiv="1910.01708",
    kind="learner",
    entry="BCQ",
    data=("log",),
    actions=("discrete",),
)


class BCQState(eqx.Module):
    """Networks, optimisers, and the number of updates done. `clone` gives the logits of the behaviour."""

    critic: DiscreteCritic
    clone: DiscreteCritic
    target_critic: DiscreteCritic
    critic_opt: optax.OptState
    clone_opt: optax.OptState
    updates: Int[Array, ""]


class Constrained(Policy):
    """The action of highest value among those that the clone finds likely."""

    critic: DiscreteCritic
    clone: DiscreteCritic
    threshold: Float[Array, ""] | float

    def __call__(self, obs: Array, carry: Any, key: PRNGKeyArray) -> tuple[Int[Array, ""], Any]:
        return jnp.argmax(allowed(self.critic(obs), self.clone(obs), self.threshold)).astype(jnp.int32), carry


def allowed(
    value: Float[Array, "*batch n"], logits: Float[Array, "*batch n"], threshold: float | Array
) -> Float[Array, "*batch n"]:
    """`value`, and minus infinity where `p(a|s) < threshold max p(.|s)`."""
    ratio = jnp.exp(logits - logits.max(-1, keepdims=True))
    return jnp.where(ratio >= threshold, value, -jnp.inf)


class BCQ(Learner):
    """Batch-constrained Q-learning. Discrete actions."""

    threshold: float = 0.3  # least likelihood of an action, as a share of the likeliest; paper
    logit_penalty: float = 1e-2  # weight of the squared logits of the clone; authors' code
    learning_rate: float = 3e-4  # ours
    discount: float = 0.99
    target_period: int = 100  # updates between copies to the target network; ours, for small worlds
    batch_size: int = 128
    hidden: tuple[int, ...] = (128, 128)

    trains: ClassVar = {"critic": ("critic_loss",), "clone": ("clone_loss",)}

    def __check_init__(self) -> None:
        require(
            (0 <= self.threshold) & (self.threshold <= 1), f"threshold is a share, in [0, 1], but is {self.threshold}."
        )
        require(self.logit_penalty >= 0, f"logit_penalty must be 0 or more, but is {self.logit_penalty}.")
        require(self.learning_rate > 0, f"learning_rate must be above 0, but is {self.learning_rate}.")
        require((0 <= self.discount) & (self.discount <= 1), f"discount must be in [0, 1], but is {self.discount}.")
        require(self.target_period >= 1, f"target_period must be 1 or more, but is {self.target_period}.")
        require(self.batch_size >= 1, f"batch_size must be 1 or more, but is {self.batch_size}.")

    def init(self, spec: Spec, key: PRNGKeyArray) -> BCQState:
        spec.require("discrete", "discrete BCQ")
        critic_key, clone_key = jax.random.split(key)
        critic, clone = (DiscreteCritic(spec, self.hidden, k) for k in (critic_key, clone_key))
        adam = optax.adam(self.learning_rate)
        return BCQState(
            critic=critic,
            clone=clone,
            target_critic=copy(critic),
            critic_opt=adam.init(trainable(critic)),
            clone_opt=adam.init(trainable(clone)),
            updates=jnp.zeros((), jnp.int32),
        )

    def critic_loss(
        self, critic: DiscreteCritic, state: BCQState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`mean huber(Q(s, a) - y)`, `y = r + gamma Q'(s', argmax over likely a' of Q(s', a'))` (eq. 13-14)."""
        candidates = allowed(
            jax.vmap(state.critic)(batch.next_obs), jax.vmap(state.clone)(batch.next_obs), self.threshold
        )
        next_value = pick(jax.vmap(state.target_critic)(batch.next_obs), jnp.argmax(candidates, -1))
        target = jax.lax.stop_gradient(td_target(batch.reward, batch.terminated, next_value, self.discount))
        value = pick(jax.vmap(critic)(batch.obs), batch.action)
        loss = huber(value - target).mean()
        return loss, {"critic_loss": loss, "q": value.mean()}

    def clone_loss(
        self, clone: DiscreteCritic, state: BCQState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`-mean log p(a|s)`, and a penalty on the squared logits."""
        logits = jax.vmap(clone)(batch.obs)
        cloning = -pick(jax.nn.log_softmax(logits), batch.action).mean()
        return cloning + self.logit_penalty * (logits**2).mean(), {"cloning": cloning}

    def update(self, state: BCQState, batch: Transition, key: PRNGKeyArray) -> tuple[BCQState, Metrics]:
        adam = optax.adam(self.learning_rate)
        critic, critic_opt, metrics = descend(adam, self.critic_loss, state.critic, state.critic_opt, state, batch, key)
        clone, clone_opt, found = descend(adam, self.clone_loss, state.clone, state.clone_opt, state, batch, key)
        updates = state.updates + 1
        state = BCQState(
            critic=critic,
            clone=clone,
            target_critic=select(updates % self.target_period == 0, critic, state.target_critic),
            critic_opt=critic_opt,
            clone_opt=clone_opt,
            updates=updates,
        )
        return state, metrics | found

    def policy(self, state: BCQState) -> Policy:
        return Constrained(state.critic, state.clone, self.threshold)
