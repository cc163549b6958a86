"""Dueling double DQN from a log, with returns of several steps and prioritised replay.

Q-learning whose network says separately how good a state is and how much better each action is than
the others, whose target takes several logged rewards before it bootstraps, and which sees a row the
more often the more it was wrong about it. Values are held to a range in which the returns are known to lie.

Z. Wang, T. Schaul, M. Hessel, H. van Hasselt, M. Lanctot and N. de Freitas, "Dueling Network
Architectures for Deep Reinforcement Learning", ICML 2016; T. Schaul, J. Quan, I. Antonoglou and
D. Silver, "Prioritized Experience Replay", ICLR 2016.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.experience import PRIORITY, Trajectory, Transition, Weighted
from habitus.core.protocols import Learner, Policy, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, copy, descend, polyak, trainable
from habitus.nets.heads import DuelingCritic
from habitus.nets.losses import pick
from habitus.nets.policies import Greedy

CARD = Card(
    title="Dueling Network Architectures for Deep Reinforcement Learning",
    authors="Wang, Ziyu and Schaul, Tom and Hessel, Matteo and van Hasselt, Hado and Lanctot, Marc "
    "and de Freitas, Nando",
    year=2016,
    venue="International Conference on Machine Learning",
    arxiv="1511.06581",
    kind="learner",
    entry="DuelingDQN",
    data=("log",),
    actions=("discrete",),
)


class Returns(eqx.Module):
    """What a target is made of: the first decision of each window, and what followed it.

    Attributes:
        rewards: discounted, summed over the window.
        bootstrap: discount of the value of `last`; 0 where the episode terminated within the window.
        last: the observation after the window.
    """

    obs: Array
    action: Array
    rewards: Float[Array, "batch"]
    bootstrap: Float[Array, "batch"]
    last: Array


def window_returns(steps: Transition, valid: Bool[Array, "batch time"], discount: float | Array) -> Returns:
    """`sum_k gamma^k r_k` over the valid steps of each window, and `gamma^n` or 0 for what follows them."""
    powers = discount ** jnp.arange(valid.shape[1])
    count = valid.sum(1)
    end = jax.tree.map(lambda x: jax.vmap(lambda row, i: row[i])(x, count - 1), steps)
    return Returns(
        obs=steps.obs[:, 0],
        action=steps.action[:, 0],
        rewards=jnp.where(valid, powers * steps.reward, 0.0).sum(1),
        bootstrap=jnp.where(end.terminated, 0.0, discount**count),
        last=end.next_obs,
    )


class DuelingDQNState(eqx.Module):
    """Networks and optimiser."""

    critic: DuelingCritic
    target_critic: DuelingCritic
    critic_opt: optax.OptState


class DuelingDQN(Learner):
    """Dueling double deep Q-learning. Discrete actions, from a log."""

    learning_rate: float = 3e-4
    discount: float = 0.99
    n_step: int = 1  # rewards in a target before it bootstraps; above 1 the logged actions count as good ones
    tau: float = 0.005  # Polyak rate of the target
    value_bound: float = 1e6  # values are held within +- this, in targets and by `bound_weight`
    bound_weight: float = 5.0  # of the sum, over the batch, of how far values lie above the bound
    priority_alpha: float = 0.6  # how strongly errors decide which rows come; Schaul et al., section 4
    priority_beta: float = 0.9  # how far weights undo that
    batch_size: int = 256
    hidden: tuple[int, ...] = (128, 128)  # the layers of both parts have half the last width

    trains: ClassVar = {"critic": ("critic_loss",)}

    def __check_init__(self) -> None:
        require(self.n_step >= 1, f"n_step must be 1 or more, but is {self.n_step}.")
        require((0 < self.tau) & (self.tau <= 1), f"tau must be in (0, 1], but is {self.tau}.")
        require(self.value_bound > 0, f"value_bound must be above 0, but is {self.value_bound}.")
        for name in ("bound_weight", "priority_alpha"):
            require(getattr(self, name) >= 0, f"{name} must be 0 or more, but is {getattr(self, name)}.")
        share = (0 <= self.priority_beta) & (self.priority_beta <= 1)
        require(share, f"priority_beta must be in [0, 1], but is {self.priority_beta}.")

    @property
    def window(self) -> int | None:
        """Consecutive steps that a batch must hold."""
        return self.n_step if self.n_step > 1 else None

    @property
    def priority(self) -> tuple[float, float] | None:
        """Exponents of prioritised replay, or None for uniform draws."""
        return self.priority_alpha, self.priority_beta

    def init(self, spec: Spec, key: PRNGKeyArray) -> DuelingDQNState:
        spec.require("discrete", type(self).__name__)
        require(not spec.acts, "dueling-dqn draws windows from a log, which a world does not give; use dqn there.")
        critic = DuelingCritic(spec, self.hidden, key)
        return DuelingDQNState(critic, copy(critic), optax.adam(self.learning_rate).init(trainable(critic)))

    def returns(self, batch: Transition | Trajectory) -> Returns:
        """The windows of a batch. Raises `ConfigError` if they are not `n_step` long."""
        if isinstance(batch, Transition):
            steps, valid = jax.tree.map(lambda x: x[:, None], batch), jnp.ones((batch.size, 1), bool)
        else:
            steps, valid = batch.steps, batch.valid
        length = valid.shape[1]
        require(length == self.n_step, f"n_step={self.n_step} needs DatasetSource(window={self.n_step}), not {length}.")
        return window_returns(steps, valid, self.discount)

    def critic_loss(
        self, critic: DuelingCritic, state: DuelingDQNState, batch: Weighted, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`mean w (Q(s, a) - y)^2 + c sum max(|Q(s, a)| - bound, 0)`, `y` the n-step double-Q target, clipped."""
        seen = self.returns(batch.rows)
        best = jnp.argmax(jax.vmap(state.critic)(seen.last), -1)
        follows = jnp.clip(pick(jax.vmap(state.target_critic)(seen.last), best), -self.value_bound, self.value_bound)
        target = jax.lax.stop_gradient(seen.rewards + seen.bootstrap * follows)
        value = pick(jax.vmap(critic)(seen.obs), seen.action)
        error = value - target
        beyond = jnp.maximum(jnp.abs(value) - self.value_bound, 0.0).sum()
        loss = (batch.weight * error**2).mean()
        found = {"critic_loss": loss, "q": value.mean(), PRIORITY: jnp.abs(error)}
        return loss + self.bound_weight * beyond, found

    def update(
        self, state: DuelingDQNState, batch: Transition | Trajectory | Weighted, key: PRNGKeyArray
    ) -> tuple[DuelingDQNState, Metrics]:
        given = batch if isinstance(batch, Weighted) else Weighted(batch, jnp.ones(len(jax.tree.leaves(batch)[0])))
        critic, critic_opt, metrics = descend(
            optax.adam(self.learning_rate), self.critic_loss, state.critic, state.critic_opt, state, given, key
        )
        if not isinstance(batch, Weighted):
            del metrics[PRIORITY]
        target = polyak(state.target_critic, critic, self.tau)
        return dataclasses.replace(state, critic=critic, critic_opt=critic_opt, target_critic=target), metrics

    def policy(self, state: DuelingDQNState) -> Policy:
        return Greedy(state.critic)
