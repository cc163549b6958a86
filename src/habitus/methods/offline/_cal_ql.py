"""Conservative values that need not sink below the return of the log, of chunks of actions.

M. Nakamoto et al., "Cal-QL: Calibrated Offline RL Pre-Training for Efficient Online Fine-Tuning", NeurIPS 2023.
"""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.experience import Transition
from habitus.core.trees import Metrics
from habitus.methods.offline.cql import CQL
from habitus.methods.online.sac import SACState
from habitus.nets.heads import Ensemble


class Macro(Transition):
    """Transitions over several steps each, their actions side by side.

    Attributes:
        discount: what the value of the successor counts: `gamma^steps`, 0 where nothing follows.
        floor: lower bound of the values, such as the discounted return of the log; -inf for none.
    """

    discount: Float[Array, "batch"] | None = None
    floor: Float[Array, "batch"] | None = None


class CalQL(CQL):
    """Conservative soft actor-critic with calibrated values and the best of several actions in the target."""

    samples: int = 4  # actions of each kind in the log-sum-exp, and in the maximum of the target

    def bellman_error(
        self, critic: Ensemble, state: SACState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, "batch 2"], Float[Array, "batch 2"]]:
        """`Q_k(s, a) - y`, `y = r + m max_j min_k Q'_k(s', a_j)`, `m` the batch's discount; and `Q_k(s, a)`."""
        assert isinstance(batch, Macro) and batch.discount is not None

        def best(obs: Array, key: PRNGKeyArray) -> Float[Array, ""]:
            actions = jax.vmap(state.actor(obs).sample)(jax.random.split(key, self.samples))
            return jax.vmap(lambda a: state.target_critic(obs, a).min())(actions).max()

        follows = jax.vmap(best)(batch.next_obs, jax.random.split(key, batch.size))
        target = jax.lax.stop_gradient(batch.reward + batch.discount * follows)
        value = jax.vmap(critic)(batch.obs, batch.action)
        return value - target[:, None], value

    def critic_loss(
        self, critic: Ensemble, state: SACState, batch: Any, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`sum_k mean [1/2 (Q_k(s, a) - y)^2 + alpha (log sum_a exp max(Q_k, floor) - Q_k(s, a_logged))]`."""
        assert isinstance(batch, Macro) and batch.floor is not None
        error_key, sample_key = jax.random.split(key)
        error, value = self.bellman_error(critic, state, batch, error_key)
        keys = jax.random.split(sample_key, batch.size)
        gap = jax.vmap(lambda *row: self.conservative_gap(critic, state, *row))(
            batch.obs, batch.next_obs, batch.action, keys, batch.floor
        )
        loss = 0.5 * (error**2).mean(0).sum() + self.alpha * gap.mean(0).sum()
        return loss, {"critic_loss": loss, "q": value.mean(), "gap": gap.mean()}
