"""BC: behaviour cloning.

Supervised learning of the logged action from the observation. It asks nothing of the rewards and never
leaves the log, so it is as good as the behaviour, rarely better, and the baseline that every offline
method must beat. Discrete actions are cloned by their likelihood and sampled; real ones by the squared
error, which is the likelihood of a Gaussian of fixed spread, acting with its mean.

D. A. Pomerleau, "ALVINN: An Autonomous Land Vehicle in a Neural Network", NeurIPS 1988.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.experience import Transition
from habitus.core.protocols import Learner, Policy
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, descend, trainable
from habitus.nets.heads import DeterministicActor, StochasticActor
from habitus.nets.normalise import Standardiser
from habitus.nets.policies import Deterministic, Normalised, Sampling

CARD = Card(
    title="ALVINN: An Autonomous Land Vehicle in a Neural Network",
    authors="Pomerleau, Dean A.",
    year=1988,
    venue="Advances in Neural Information Processing Systems",
    arxiv="",
    kind="learner",
    entry="BC",
    data=("log",),
)


class BCState(eqx.Module):
    """The network, its optimiser, and the statistics of the observations."""

    actor: DeterministicActor | StochasticActor
    actor_opt: optax.OptState
    normaliser: Standardiser


class BC(Learner):
    """Behaviour cloning. Any actions; real ones must be bounded."""

    learning_rate: float = 3e-4  # ours
    normalise: bool = True  # standardise observations with the log's statistics
    batch_size: int = 256
    hidden: tuple[int, ...] = (256, 256)

    trains: ClassVar = {"actor": ("actor_loss",)}

    def init(self, spec: Spec, key: PRNGKeyArray) -> BCState:
        actor: DeterministicActor | StochasticActor
        if spec.continuous:
            spec.require("bounded", "BC")
            actor = DeterministicActor(spec, self.hidden, key)
        else:
            actor = StochasticActor(spec, self.hidden, key, "relu", final_gain=None)
        normaliser = Standardiser.of(spec) if self.normalise else Standardiser.identity()
        return BCState(actor, optax.adam(self.learning_rate).init(trainable(actor)), normaliser)

    def actor_loss(
        self, actor: DeterministicActor | StochasticActor, state: BCState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`mean (pi(s) - a)^2` for real actions, `-mean log pi(a|s)` for discrete ones."""
        if isinstance(actor, DeterministicActor):
            loss = ((jax.vmap(actor)(batch.obs) - batch.action) ** 2).mean()
        else:
            loss = -jnp.mean(jax.vmap(lambda o, a: actor(o).log_prob(a))(batch.obs, batch.action))
        return loss, {"actor_loss": loss}

    def update(self, state: BCState, batch: Transition, key: PRNGKeyArray) -> tuple[BCState, Metrics]:
        batch = state.normaliser.transition(batch)
        actor, actor_opt, metrics = descend(
            optax.adam(self.learning_rate), self.actor_loss, state.actor, state.actor_opt, state, batch, key
        )
        return dataclasses.replace(state, actor=actor, actor_opt=actor_opt), metrics

    def policy(self, state: BCState) -> Policy:
        real = isinstance(state.actor, DeterministicActor)
        clone: Policy = Deterministic(state.actor) if real else Sampling(state.actor)  # type: ignore[arg-type]
        return Normalised(clone, state.normaliser)
