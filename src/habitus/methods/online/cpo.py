"""CPO: constrained policy optimisation.

Each step maximises the surrogate of the return within a trust region, among the policies whose
surrogate of the cost keeps its limit. Both are linear in a small step and the region is quadratic, so
the step has a closed form; where the limit is out of reach, it lowers the cost and nothing else.

J. Achiam, D. Held, A. Tamar and P. Abbeel, "Constrained Policy Optimization", ICML 2017.
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
from habitus.core.protocols import Learner, Policy, require
from habitus.core.returns import standardise
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, descend, extend, minibatches, trainable
from habitus.nets.constrained import Bounds, constrained_step
from habitus.nets.distributions import Distribution
from habitus.nets.heads import StochasticActor, Value
from habitus.nets.losses import Round, prepare_round
from habitus.nets.normalise import Standardiser
from habitus.nets.policies import Mode, Normalised, Sampling
from habitus.nets.trust_region import TrustRegion

CARD = Card(
    title="Constrained Policy Optimization",
    authors="Achiam, Joshua and Held, David and Tamar, Aviv and Abbeel, Pieter",
    year=2017,
    venue="International Conference on Machine Learning",
    arxiv="1705.10528",
    kind="learner",
    entry="CPO",
    data=("env",),
)


class CostRound(Round):
    """A round with what the costs add: their advantages, and targets of their value."""

    cost_advantage: Float[Array, "batch"]
    cost_target: Float[Array, "batch"]
    dist: Distribution  # of the policy that collected


class CPOState(eqx.Module):
    """Networks, and the optimisers of the values."""

    actor: StochasticActor
    critic: Value
    cost_critic: Value
    critic_opt: optax.OptState
    cost_critic_opt: optax.OptState
    normaliser: Standardiser


class CPO(Learner):
    """Trust-region steps that keep the sum of all costs, per step, at or below a limit. Any actions."""

    limit: float = 0.1  # of the mean cost of a step, all costs summed
    max_kl: float = 0.01  # of a step; paper
    damping: float = 0.1
    cg_steps: int = 10
    backtracks: int = 10
    first_log_std: float = -0.5  # of real actions; paper's code
    learning_rate: float = 1e-3  # of the values
    discount: float = 0.99
    gae_lambda: float = 0.95
    value_epochs: int = 4  # passes of the values over each roll-out
    value_batch_size: int = 256
    num_envs: int = 16
    rollout_length: int = 128
    hidden: tuple[int, ...] = (64, 64)

    on_policy: ClassVar = True
    constrained: ClassVar = True
    trains: ClassVar = {
        "actor": ("actor_loss",),
        "critic": ("critic_loss",),
        "cost_critic": ("cost_critic_loss",),
    }

    def __check_init__(self) -> None:
        require(self.limit >= 0, f"limit bounds a cost, so it must be 0 or more, but is {self.limit}.")
        _ = self.region

    @property
    def region(self) -> TrustRegion:
        """How far a step may go."""
        return TrustRegion(self.max_kl, self.damping, cg_steps=self.cg_steps, backtracks=self.backtracks)

    def init(self, spec: Spec, key: PRNGKeyArray) -> CPOState:
        spec.require_costs(type(self).__name__)
        actor_key, critic_key, cost_key = jax.random.split(key, 3)
        actor = StochasticActor(spec, self.hidden, actor_key)
        if actor.log_std is not None:
            spread = jnp.full(actor.log_std.shape, self.first_log_std, jnp.float32)
            actor = eqx.tree_at(lambda a: a.log_std, actor, spread)
        critic, cost_critic = (Value(spec, self.hidden, k, "tanh", final_gain=1.0) for k in (critic_key, cost_key))
        adam = optax.adam(self.learning_rate)
        return CPOState(
            actor=actor,
            critic=critic,
            cost_critic=cost_critic,
            critic_opt=adam.init(trainable(critic)),
            cost_critic_opt=adam.init(trainable(cost_critic)),
            normaliser=Standardiser.of(spec),
        )

    def actor_loss(
        self, actor: Callable[..., Distribution], state: CPOState, batch: CostRound, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`-mean ratio A`: the surrogate of the return (eq. 10)."""
        surrogate = (self._ratio(actor, batch) * standardise(batch.advantage)).mean()
        return -surrogate, {"actor_loss": -surrogate}

    def cost_surrogate(
        self, actor: Callable[..., Distribution], state: CPOState, batch: CostRound, key: PRNGKeyArray
    ) -> Float[Array, ""]:
        """`mean ratio A_C`, in cost per step: not scaled, as it is added to a cost that was measured (eq. 10)."""
        return (self._ratio(actor, batch) * (batch.cost_advantage - batch.cost_advantage.mean())).mean()

    def divergence(
        self, old: Callable[..., Distribution], new: Callable[..., Distribution], state: CPOState, batch: CostRound,
        key: PRNGKeyArray,
    ) -> Float[Array, ""]:  # fmt: skip
        """Mean KL from the policy that collected."""
        return jax.vmap(lambda d, obs: d.kl(new(obs)))(batch.dist, batch.obs).mean()

    def _ratio(self, actor: Callable[..., Distribution], batch: CostRound) -> Float[Array, "batch"]:
        log_prob = jax.vmap(lambda o, a: actor(o).log_prob(a))(batch.obs, batch.action)
        return jnp.exp(log_prob - batch.log_prob)

    def critic_loss(
        self, critic: Value, state: CPOState, batch: CostRound, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """Squared error to the TD(lambda) returns."""
        loss = ((jax.vmap(critic)(batch.obs) - batch.target) ** 2).mean()
        return loss, {"critic_loss": loss}

    def cost_critic_loss(
        self, critic: Value, state: CPOState, batch: CostRound, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The same for costs."""
        loss = ((jax.vmap(critic)(batch.obs) - batch.cost_target) ** 2).mean()
        return loss, {"cost_critic_loss": loss}

    def prepare(self, state: CPOState, rollout: Transition) -> CostRound:
        """Advantages and targets of rewards, and of the summed costs."""
        assert rollout.cost is not None
        costs = dataclasses.replace(rollout, reward=rollout.cost.sum(-1))
        ready, spent = (
            prepare_round(state.actor, critic, rows, self.discount, self.gae_lambda)
            for critic, rows in ((state.critic, rollout), (state.cost_critic, costs))
        )
        dist = jax.lax.stop_gradient(jax.vmap(state.actor)(ready.obs))
        return extend(CostRound, ready, cost_advantage=spent.advantage, cost_target=spent.target, dist=dist)

    def update(self, state: CPOState, batch: Transition, key: PRNGKeyArray) -> tuple[CPOState, Metrics]:
        assert batch.cost is not None
        ready = self.prepare(state, state.normaliser.transition(batch))
        cost = batch.cost.sum(-1).mean()
        bounds = Bounds(self.divergence, self.cost_surrogate, cost - self.limit)
        actor, metrics = constrained_step(self.region, self.actor_loss, state.actor, bounds, state, ready, key)
        state = dataclasses.replace(state, actor=actor)
        state, found = minibatches(self._fit_values, state, ready, key, self.value_epochs, self.value_batch_size)
        return state, metrics | found | {"cost": cost}

    def _fit_values(self, state: CPOState, batch: CostRound, key: PRNGKeyArray) -> tuple[CPOState, Metrics]:
        """One step of both values on a minibatch."""
        adam = optax.adam(self.learning_rate)
        critic, critic_opt, found = descend(adam, self.critic_loss, state.critic, state.critic_opt, state, batch, key)
        cost_critic, cost_critic_opt, more = descend(
            adam, self.cost_critic_loss, state.cost_critic, state.cost_critic_opt, state, batch, key
        )
        values = {"critic": critic, "critic_opt": critic_opt}
        values |= {"cost_critic": cost_critic, "cost_critic_opt": cost_critic_opt}
        return dataclasses.replace(state, **values), found | more

    def policy(self, state: CPOState) -> Policy:
        return Normalised(Mode(state.actor), state.normaliser)

    def explorer(self, state: CPOState) -> Policy:
        return Normalised(Sampling(state.actor), state.normaliser)
