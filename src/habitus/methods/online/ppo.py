"""PPO: proximal policy optimisation.

Several epochs of minibatch ascent on one roll-out, on a surrogate that is clipped where the new policy
has moved away from the one that collected: a first-order method with most of the stability of a
trust region.

J. Schulman, F. Wolski, P. Dhariwal, A. Radford and O. Klimov, "Proximal Policy Optimization
Algorithms", 2017.
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
from habitus.core.errors import SpaceMismatch
from habitus.core.experience import Transition
from habitus.core.protocols import Learner, Policy, require
from habitus.core.returns import standardise
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, descend, minibatches, trainable
from habitus.nets.distributions import Distribution
from habitus.nets.heads import StochasticActor, Value
from habitus.nets.losses import Round, clipped_value_loss, prepare_round
from habitus.nets.normalise import RunningMoments, Standardiser
from habitus.nets.policies import Mode, Normalised, Sampling

CARD = Card(
    title="Proximal Policy Optimization Algorithms",
    authors="Schulman, John and Wolski, Filip and Dhariwal, Prafulla and Radford, Alec and Klimov, Oleg",
    year=2017,
    venue="arXiv",
    arxiv="1707.06347",
    kind="learner",
    entry="PPO",
    data=("env",),
)


class PPOState(eqx.Module):
    """Networks, optimisers, and the statistics of the observations if they are normalised."""

    actor: Callable[..., Distribution]
    critic: Value
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    moments: RunningMoments | None

    @property
    def normaliser(self) -> Standardiser:
        """What the networks see the world through."""
        return self.moments.standardiser if self.moments else Standardiser.identity()


class PPO(Learner):
    """Clipped surrogate with generalised advantage estimation. Any actions."""

    learning_rate: float = 3e-4  # paper, Table 3
    discount: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2  # of the ratio, and of the value's change
    entropy: float = 0.0  # weight of the entropy bonus
    epochs: int = 10
    minibatch_size: int = 64
    max_grad_norm: float = 0.5  # of actor and critic, each; ours, after common practice
    normalise_obs: bool = False  # with running statistics
    num_envs: int = 8
    rollout_length: int = 256
    hidden: tuple[int, ...] = (64, 64)

    on_policy: ClassVar = True
    trains: ClassVar = {"actor": ("actor_loss",), "critic": ("critic_loss",)}

    def __check_init__(self) -> None:
        require(self.clip > 0, f"clip must be above 0, but is {self.clip}.")
        require(self.entropy >= 0, f"entropy must be 0 or more, but is {self.entropy}.")

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam with the norm of the gradient clipped."""
        return optax.chain(optax.clip_by_global_norm(self.max_grad_norm), optax.adam(self.learning_rate, eps=1e-5))

    @property
    def critic_optimizer(self) -> optax.GradientTransformation:
        """The same, for the critic."""
        return self.optimizer

    def init(self, spec: Spec, key: PRNGKeyArray) -> PPOState:
        if self.normalise_obs and spec.mask is not None:
            raise SpaceMismatch("observations hold an action_mask, which must stay as it is; set normalise_obs=False.")
        actor_key, critic_key = jax.random.split(key)
        actor = StochasticActor(spec, self.hidden, actor_key)
        critic = Value(spec, self.hidden, critic_key, "tanh", final_gain=1.0)
        return PPOState(
            actor=actor,
            critic=critic,
            actor_opt=self.optimizer.init(trainable(actor)),
            critic_opt=self.critic_optimizer.init(trainable(critic)),
            moments=RunningMoments.start(spec.obs_shape) if self.normalise_obs else None,
        )

    def actor_loss(
        self, actor: Callable[..., Distribution], state: PPOState, batch: Round, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`-mean min(ratio A, clip(ratio, 1 +- eps) A) - entropy bonus` (eq. 7, 9)."""

        def judged(obs: Array, action: Array) -> tuple[Array, Array]:
            dist = actor(obs)
            return dist.log_prob(action), dist.entropy()

        log_prob, entropies = jax.vmap(judged)(batch.obs, batch.action)
        log_ratio, entropy = log_prob - batch.log_prob, entropies.mean()
        ratio = jnp.exp(log_ratio)
        advantage = standardise(batch.advantage)
        clipped = jnp.clip(ratio, 1 - self.clip, 1 + self.clip)
        surrogate = jnp.minimum(ratio * advantage, clipped * advantage).mean()
        metrics = {"actor_loss": -surrogate, "entropy": entropy, "kl": (ratio - 1 - log_ratio).mean()}
        return -surrogate - self.entropy * entropy, metrics

    def critic_loss(
        self, critic: Value, state: PPOState, batch: Round, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """Squared error to the TD(lambda) returns, with the change of the value clipped."""
        loss = clipped_value_loss(jax.vmap(critic)(batch.obs), batch.value, batch.target, self.clip)
        return loss, {"critic_loss": loss}

    def update(self, state: PPOState, batch: Transition, key: PRNGKeyArray) -> tuple[PPOState, Metrics]:
        seen = state.normaliser.transition(batch)
        ready = prepare_round(state.actor, state.critic, seen, self.discount, self.gae_lambda)
        state, metrics = minibatches(self._improve, state, ready, key, self.epochs, self.minibatch_size)
        if state.moments is not None:
            flat = batch.obs.reshape(-1, *batch.obs.shape[2:])
            state = dataclasses.replace(state, moments=state.moments.update(flat))
        return state, metrics

    def _improve(self, state: PPOState, batch: Round, key: PRNGKeyArray) -> tuple[PPOState, Metrics]:
        """One step of actor and critic on a minibatch."""
        actor, actor_opt, found = descend(
            self.optimizer, self.actor_loss, state.actor, state.actor_opt, state, batch, key
        )
        critic, critic_opt, more = descend(
            self.critic_optimizer, self.critic_loss, state.critic, state.critic_opt, state, batch, key
        )
        state = dataclasses.replace(state, actor=actor, critic=critic, actor_opt=actor_opt, critic_opt=critic_opt)
        return state, found | more

    def policy(self, state: PPOState) -> Policy:
        return Normalised(Mode(state.actor), state.normaliser)

    def explorer(self, state: PPOState) -> Policy:
        return Normalised(Sampling(state.actor), state.normaliser)
