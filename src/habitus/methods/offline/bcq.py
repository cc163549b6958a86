"""Discrete BCQ: batch-constrained deep Q-learning.

Double Q-learning in which the greedy action, when acting and in the target, is taken only among actions
that a clone of the behaviour finds likely: at least `threshold` times as likely as its likeliest one.
Actions that the log does not hold are thus never valued by extrapolation. A threshold of 0 is DQN, one
of 1 the mode of the clone.

S. Fujimoto, E. Conti, M. Ghavamzadeh and J. Pineau, "Benchmarking Batch Deep Reinforcement Learning
Algorithms", 2019.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.experience import Transition
from habitus.core.protocols import require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, descend, extend, trainable
from habitus.methods.online.dqn import DQN, DQNState
from habitus.nets.heads import DiscreteCritic
from habitus.nets.losses import pick

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


class BCQState(DQNState):
    """The state of DQN, and a clone of the behaviour, which gives logits."""

    clone: DiscreteCritic
    clone_opt: optax.OptState


class Likely(eqx.Module):
    """Q(s, .) where the clone finds an action likely, and minus infinity elsewhere."""

    critic: DiscreteCritic
    clone: DiscreteCritic
    threshold: Float[Array, ""] | float

    def __call__(self, obs: Array) -> Float[Array, "n"]:
        logits = self.clone(obs)
        # at least, not above, so that a threshold of 1 leaves the likeliest action
        likely = jnp.exp(logits - logits.max()) >= self.threshold
        return jnp.where(likely, self.critic(obs), -jnp.inf)


class BCQ(DQN):
    """Batch-constrained Q-learning. Discrete actions."""

    threshold: float = 0.3  # least likelihood of an action, as a share of the likeliest; paper
    logit_penalty: float = 1e-2  # weight of the squared logits of the clone; authors' code

    trains: ClassVar = {"critic": ("critic_loss",), "clone": ("clone_loss",)}

    def __check_init__(self) -> None:
        require(
            (0 <= self.threshold) & (self.threshold <= 1), f"threshold is a share, in [0, 1], but is {self.threshold}."
        )
        require(self.logit_penalty >= 0, f"logit_penalty must be 0 or more, but is {self.logit_penalty}.")

    def init(self, spec: Spec, key: PRNGKeyArray) -> BCQState:
        critic_key, clone_key = jax.random.split(key)
        state = super().init(spec, critic_key)
        clone = DiscreteCritic(spec, self.hidden, clone_key)
        clone_opt = optax.adam(self.learning_rate).init(trainable(clone))
        return extend(BCQState, state, clone=clone, clone_opt=clone_opt)

    def scores(self, state: DQNState) -> Likely:
        """Q over likely actions, so that neither the target nor the policy leaves them."""
        assert isinstance(state, BCQState)
        return Likely(state.critic, state.clone, self.threshold)

    def clone_loss(
        self, clone: DiscreteCritic, state: BCQState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`-mean log p(a|s)`, and a penalty on the squared logits."""
        logits = jax.vmap(clone)(batch.obs)
        cloning = -pick(jax.nn.log_softmax(logits), batch.action).mean()
        return cloning + self.logit_penalty * (logits**2).mean(), {"cloning": cloning}

    def update(self, state: DQNState, batch: Transition, key: PRNGKeyArray) -> tuple[BCQState, Metrics]:
        assert isinstance(state, BCQState)
        clone, clone_opt, found = descend(
            optax.adam(self.learning_rate), self.clone_loss, state.clone, state.clone_opt, state, batch, key
        )
        after, metrics = super().update(state, batch, key)
        return extend(BCQState, after, clone=clone, clone_opt=clone_opt), metrics | found
