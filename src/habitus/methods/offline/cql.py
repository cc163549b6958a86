"""CQL: conservative Q-learning, for real and for discrete actions.

Off-policy learning with one more term in the critic's loss, which lowers the values of all actions in
proportion to `exp Q` and raises those of logged ones. The learned Q is then a lower bound in
expectation of the true value of the policy, so that actions outside the log cannot look better than
they are.

A. Kumar, A. Zhou, G. Tucker and S. Levine, "Conservative Q-Learning for Offline Reinforcement
Learning", NeurIPS 2020.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.experience import Transition
from habitus.core.protocols import Learner, Policy, require
from habitus.core.returns import td_target
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, copy, descend, select, trainable
from habitus.methods.online.sac import SAC, SACState
from habitus.nets.heads import DiscreteCritic, Ensemble
from habitus.nets.losses import huber, pick
from habitus.nets.policies import Greedy

CARD = Card(
    title="Conservative Q-Learning for Offline Reinforcement Learning",
    authors="Kumar, Aviral and Zhou, Aurick and Tucker, George and Levine, Sergey",
    year=2020,
    venue="Advances in Neural Information Processing Systems",
    arxiv="2006.04779",
    kind="learner",
    entry="CQL",
    data=("log", "env"),
    variants=(("cql-discrete", "DiscreteCQL"),),
)


class CQL(SAC):
    """Conservative soft actor-critic. Real, bounded actions."""

    alpha: float = 5.0  # weight of the conservative term; authors' code, locomotion
    samples: int = 10  # actions of each kind in the estimate of the log-sum-exp; authors' code

    def __check_init__(self) -> None:
        require(self.alpha >= 0, f"alpha must be 0 or more, but is {self.alpha}.")
        require(self.samples >= 1, f"samples must be 1 or more, but is {self.samples}.")

    def critic_loss(
        self, critic: Ensemble, state: SACState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """Soft actor-critic's loss `+ alpha sum_k mean [log sum_a exp Q_k(s, a) - Q_k(s, a_logged)]` (eq. 4)."""
        soft_key, sample_key = jax.random.split(key)
        loss, metrics = super().critic_loss(critic, state, batch, soft_key)
        keys = jax.random.split(sample_key, batch.size)
        gap = jax.vmap(lambda *row: self.conservative_gap(critic, state, *row))(
            batch.obs, batch.next_obs, batch.action, keys
        )
        return loss + self.alpha * gap.mean(0).sum(), metrics | {"gap": gap.mean()}

    def conservative_gap(
        self, critic: Ensemble, state: SACState, obs: Array, next_obs: Array, action: Array, key: PRNGKeyArray
    ) -> Float[Array, "members"]:
        """`log integral exp Q(s, a) da - Q(s, a_logged)`, a critic.

        The integral is estimated by importance sampling from the uniform distribution, the policy at
        `s`, and the policy at `s'` (appendix F).
        """
        uniform_key, here_key, there_key = jax.random.split(key, 3)
        uniform = jax.random.uniform(uniform_key, (self.samples, action.shape[0]), minval=-1.0, maxval=1.0)
        proposals = [(uniform, jnp.full(self.samples, -action.shape[0] * jnp.log(2.0)))]
        for at, own in ((obs, here_key), (next_obs, there_key)):
            proposals.append(jax.vmap(state.actor(at).sample_and_log_prob)(jax.random.split(own, self.samples)))
        actions, log_probs = (jax.lax.stop_gradient(jnp.concatenate(parts)) for parts in zip(*proposals, strict=True))
        values = jax.vmap(lambda a: critic(obs, a))(actions)
        integral = logsumexp(values - log_probs[:, None], axis=0) - jnp.log(len(log_probs))
        return integral - critic(obs, action)


class DiscreteCQLState(eqx.Module):
    """Networks, optimiser, and the number of updates done."""

    critic: DiscreteCritic
    target_critic: DiscreteCritic
    critic_opt: optax.OptState
    updates: Int[Array, ""]


class DiscreteCQL(Learner):
    """Conservative double Q-learning. Discrete actions."""

    alpha: float = 0.1  # weight of the conservative term; as in studies with small discrete worlds
    learning_rate: float = 3e-4  # ours
    discount: float = 0.99
    target_period: int = 100  # updates between copies to the target network; ours
    batch_size: int = 128
    hidden: tuple[int, ...] = (128, 128)

    trains: ClassVar = {"critic": ("critic_loss",)}

    def __check_init__(self) -> None:
        require(self.alpha >= 0, f"alpha must be 0 or more, but is {self.alpha}.")
        require(self.learning_rate > 0, f"learning_rate must be above 0, but is {self.learning_rate}.")
        require((0 <= self.discount) & (self.discount <= 1), f"discount must be in [0, 1], but is {self.discount}.")
        require(self.target_period >= 1, f"target_period must be 1 or more, but is {self.target_period}.")
        require(self.batch_size >= 1, f"batch_size must be 1 or more, but is {self.batch_size}.")

    def init(self, spec: Spec, key: PRNGKeyArray) -> DiscreteCQLState:
        spec.require("discrete", "discrete CQL")
        critic = DiscreteCritic(spec, self.hidden, key)
        critic_opt = optax.adam(self.learning_rate).init(trainable(critic))
        return DiscreteCQLState(critic, copy(critic), critic_opt, jnp.zeros((), jnp.int32))

    def critic_loss(
        self, critic: DiscreteCritic, state: DiscreteCQLState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`mean huber(Q(s, a) - y) + alpha mean [log sum_a exp Q(s, a) - Q(s, a_logged)]`, double targets."""
        best = jnp.argmax(jax.vmap(state.critic)(batch.next_obs), -1)
        next_value = pick(jax.vmap(state.target_critic)(batch.next_obs), best)
        target = jax.lax.stop_gradient(td_target(batch.reward, batch.terminated, next_value, self.discount))
        values = jax.vmap(critic)(batch.obs)
        value = pick(values, batch.action)
        gap = (logsumexp(values, axis=-1) - value).mean()
        error = huber(value - target).mean()
        return error + self.alpha * gap, {"critic_loss": error, "gap": gap, "q": value.mean()}

    def update(self, state: DiscreteCQLState, batch: Transition, key: PRNGKeyArray) -> tuple[DiscreteCQLState, Metrics]:
        critic, critic_opt, metrics = descend(
            optax.adam(self.learning_rate), self.critic_loss, state.critic, state.critic_opt, state, batch, key
        )
        updates = state.updates + 1
        target = select(updates % self.target_period == 0, critic, state.target_critic)
        return DiscreteCQLState(critic, target, critic_opt, updates), metrics

    def policy(self, state: DiscreteCQLState) -> Policy:
        return Greedy(state.critic)
