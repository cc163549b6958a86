"""TRPO: trust region policy optimisation.

Each roll-out is used for one step on the surrogate objective, along the natural gradient and as long as
the KL to the policy that collected allows. The step is then halved until the surrogate improves as
expected, so that a policy is left only for one that is measured to be better.

J. Schulman, S. Levine, P. Moritz, M. I. Jordan and P. Abbeel, "Trust Region Policy Optimization",
ICML 2015; advantages as in J. Schulman et al., "High-Dimensional Continuous Control Using Generalized
Advantage Estimation", ICLR 2016.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.experience import Transition
from habitus.core.protocols import Learner, Policy
from habitus.core.returns import standardise
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, descend, minibatches, trainable
from habitus.nets.distributions import Distribution
from habitus.nets.heads import StochasticActor, Value
from habitus.nets.losses import Round, prepare_round
from habitus.nets.policies import Mode, Sampling
from habitus.nets.trust_region import TrustRegion, mean_kl, surrogate, trust_region_step

CARD = Card(
    title="Trust Region Policy Optimization",
    authors="Schulman, John and Levine, Sergey and Moritz, Philipp and Jordan, Michael I. and Abbeel, Pieter",
    year=2015,
    venue="International Conference on Machine Learning",
    arxiv="1502.05477",
    kind="learner",
    entry="TRPO",
    data=("env",),
)


class TRPOState(eqx.Module):
    """Networks, and the optimiser of the value."""

    actor: Callable[..., Distribution]
    critic: Value
    critic_opt: optax.OptState


class TRPO(Learner):
    """Natural-gradient steps in a trust region, with generalised advantage estimation. Any actions."""

    max_kl: float = 0.01  # paper, appendix D
    damping: float = 0.1  # of the Fisher matrix; authors' code
    cg_steps: int = 10  # paper, appendix C
    backtracks: int = 10  # authors' code
    discount: float = 0.99
    gae_lambda: float = 0.97
    value_learning_rate: float = 1e-3  # ours: Adam, where the authors use L-BFGS
    value_epochs: int = 5
    value_batch_size: int = 64
    num_envs: int = 8
    rollout_length: int = 256
    hidden: tuple[int, ...] = (64, 64)

    on_policy: ClassVar = True
    trains: ClassVar = {"actor": ("actor_loss",), "critic": ("critic_loss",)}

    def __check_init__(self) -> None:
        _ = self.region  # which checks its own

    @property
    def region(self) -> TrustRegion:
        """The trust region."""
        return TrustRegion(self.max_kl, self.damping, cg_steps=self.cg_steps, backtracks=self.backtracks)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Of the value."""
        return optax.adam(self.value_learning_rate)

    def init(self, spec: Spec, key: PRNGKeyArray) -> TRPOState:
        actor_key, critic_key = jax.random.split(key)
        critic = Value(spec, self.hidden, critic_key, "tanh", final_gain=1.0)
        return TRPOState(StochasticActor(spec, self.hidden, actor_key), critic, self.optimizer.init(trainable(critic)))

    def actor_loss(
        self, actor: Callable[..., Distribution], state: TRPOState, batch: Round, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`-mean pi(a|s) / pi_old(a|s) A` (eq. 14), with standardised advantages."""
        ones = jnp.ones_like(batch.advantage)
        loss = -surrogate(actor, batch.obs, batch.action, batch.log_prob, standardise(batch.advantage), ones)
        return loss, {"actor_loss": loss}

    def divergence(
        self,
        old: Callable[..., Distribution],
        new: Callable[..., Distribution],
        state: TRPOState,
        batch: Round,
        key: PRNGKeyArray,
    ) -> Float[Array, ""]:
        """Mean KL over the states of the roll-out (eq. 12)."""
        return mean_kl(old, new, batch.obs, jnp.ones_like(batch.advantage))

    def critic_loss(
        self, critic: Value, state: TRPOState, batch: Round, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """Squared error to the TD(lambda) returns."""
        loss = ((jax.vmap(critic)(batch.obs) - batch.target) ** 2).mean()
        return loss, {"critic_loss": loss}

    def update(self, state: TRPOState, batch: Transition, key: PRNGKeyArray) -> tuple[TRPOState, Metrics]:
        ready = prepare_round(state.actor, state.critic, batch, self.discount, self.gae_lambda)
        actor, metrics = trust_region_step(
            self.region, self.actor_loss, state.actor, self.divergence, state, ready, key
        )
        state = dataclasses.replace(state, actor=actor)
        state, found = minibatches(self._fit, state, ready, key, self.value_epochs, self.value_batch_size)
        return state, metrics | found

    def _fit(self, state: TRPOState, batch: Round, key: PRNGKeyArray) -> tuple[TRPOState, Metrics]:
        """One step of the value on a minibatch."""
        critic, critic_opt, metrics = descend(
            self.optimizer, self.critic_loss, state.critic, state.critic_opt, state, batch, key
        )
        return dataclasses.replace(state, critic=critic, critic_opt=critic_opt), metrics

    def policy(self, state: TRPOState) -> Policy:
        return Mode(state.actor)

    def explorer(self, state: TRPOState) -> Policy:
        return Sampling(state.actor)
