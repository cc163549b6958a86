"""CQL: conservative Q-learning, for real and for discrete actions.

Off-policy learning with one more term in the critic's loss, which lowers the values of all actions in
proportion to `exp Q` and raises those of logged ones. The learned Q is then a lower bound in
expectation of the true value of the policy, so that actions outside the log cannot look better than
they are. The real-valued one extends soft actor-critic, the discrete one double DQN.

A. Kumar, A. Zhou, G. Tucker and S. Levine, "Conservative Q-Learning for Offline Reinforcement
Learning", NeurIPS 2020.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.experience import Transition
from habitus.core.protocols import require
from habitus.core.trees import Metrics
from habitus.methods.online.dqn import DQN, DQNState
from habitus.methods.online.sac import SAC, SACState
from habitus.nets.heads import DiscreteCritic, Ensemble
from habitus.nets.losses import pick

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

    # weight of the conservative term; the 5 of the authors' code, whose squared error lacks the 1/2 of eq. 4
    alpha: float = 2.5
    soft_backup: bool = False  # authors' code
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
        self,
        critic: Ensemble,
        state: SACState,
        obs: Array,
        next_obs: Array,
        action: Array,
        key: PRNGKeyArray,
        floor: Float[Array, ""] | None = None,
    ) -> Float[Array, "members"]:
        """`log integral exp Q(s, a) da - Q(s, a_logged)`, a critic.

        The integral is estimated by importance sampling from the uniform distribution, the policy at
        `s`, and the policy at `s'` (appendix F). Values of the policy's actions are lifted to `floor`, if there is
        one: what lies below the return of the log need not be lowered (Nakamoto et al., "Cal-QL", NeurIPS 2023).
        """
        uniform_key, here_key, there_key = jax.random.split(key, 3)
        uniform = jax.random.uniform(uniform_key, (self.samples, action.shape[0]), minval=-1.0, maxval=1.0)
        proposals = [(uniform, jnp.full(self.samples, -action.shape[0] * jnp.log(2.0)))]
        for at, own in ((obs, here_key), (next_obs, there_key)):
            proposals.append(jax.vmap(state.actor(at).sample_and_log_prob)(jax.random.split(own, self.samples)))
        actions, log_probs = (jax.lax.stop_gradient(jnp.concatenate(parts)) for parts in zip(*proposals, strict=True))
        values = jax.vmap(lambda a: critic(obs, a))(actions)
        if floor is not None:
            values = jnp.concatenate([values[: self.samples], jnp.maximum(values[self.samples :], floor)])
        integral = logsumexp(values - log_probs[:, None], axis=0) - jnp.log(len(log_probs))
        return integral - critic(obs, action)


class DiscreteCQL(DQN):
    """Conservative double Q-learning. Discrete actions."""

    alpha: float = 0.1  # weight of the conservative term; Schweighofer et al. 2022; paper: 1 to 4 on Atari

    def __check_init__(self) -> None:
        require(self.alpha >= 0, f"alpha must be 0 or more, but is {self.alpha}.")

    def critic_loss(
        self, critic: DiscreteCritic, state: DQNState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """Double Q-learning's loss `+ alpha mean [log sum_a exp Q(s, a) - Q(s, a_logged)]`."""
        loss, metrics = super().critic_loss(critic, state, batch, key)
        values = jax.vmap(critic)(batch.obs)
        gap = (logsumexp(values, axis=-1) - pick(values, batch.action)).mean()
        return loss + self.alpha * gap, metrics | {"gap": gap}
