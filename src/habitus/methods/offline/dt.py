"""Decision Transformer: reinforcement learning as sequence modelling.

A causal transformer reads what was still to be earned, what was seen and what was done, step by step,
and learns by plain supervision which action came next. Asked for a high return it continues as the good
episodes of the log did. It takes luck for skill: where rewards are random, the actions before a high
return need not be good ones.

L. Chen, K. Lu, A. Rajeswaran, K. Lee, A. Grover, M. Laskin, P. Abbeel, A. Srinivas and I. Mordatch,
"Decision Transformer: Reinforcement Learning via Sequence Modeling", NeurIPS 2021.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.experience import Trajectory
from habitus.core.protocols import Learner, Policy, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, descend, trainable
from habitus.nets.normalise import Standardiser
from habitus.nets.optim import warmed_adamw
from habitus.nets.policies import Normalised
from habitus.nets.sequence import OBS, ActionHead, SequenceEncoder, Steps, masked_mean, return_target

CARD = Card(
    title="Decision Transformer: Reinforcement Learning via Sequence Modeling",
    authors="Chen, Lili and Lu, Kevin and Rajeswaran, Aravind and Lee, Kimin and Grover, Aditya and Laskin, Michael "
    "and Abbeel, Pieter and Srinivas, Aravind and Mordatch, Igor",
    year=2021,
    venue="Advances in Neural Information Processing Systems",
    arxiv="2106.01345",
    kind="learner",
    entry="DT",
    data=("log",),
)


class DecisionNet(eqx.Module):
    """The sequence so far to the next action."""

    sequence: SequenceEncoder
    head: ActionHead


class DTState(eqx.Module):
    """The network, its optimiser, the scales of observations and returns, and what to aim at."""

    actor: DecisionNet
    actor_opt: optax.OptState
    normaliser: Standardiser
    scale: Float[Array, ""]
    target: Float[Array, ""]
    blank: Steps


class DecisionPolicy(Policy):
    """Acts towards a return; what it has earned is subtracted from it."""

    net: DecisionNet
    target: Any  # a number, as is the scale
    scale: Any
    blank: Steps

    def init(self) -> tuple[Steps, Any]:
        return self.blank, self.target

    def rewarded(self, carry: Any, reward: Float[Array, ""]) -> Any:
        steps, to_go = carry
        return steps, to_go - reward

    def __call__(self, obs: Array, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        steps, to_go = carry
        steps = steps.then(to_go / self.scale, obs)
        action = self.net.head.act(self.net.sequence(steps)[-1, OBS], key)
        return action, (steps.acted(action), to_go)


class SequenceLearner(Learner):
    """What learners with a sequence model share. The values are those of the paper's Table 9."""

    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    max_grad_norm: float = 0.25
    dropout: float = 0.1
    warmup_updates: int = 1_000  # over which the learning rate rises; paper: 100,000
    batch_size: int = 64
    context: int = 20  # steps that it looks back
    width: int = 128
    layers: int = 3
    heads: int = 1

    def __check_init__(self) -> None:
        for name in ("context", "width", "layers", "heads", "warmup_updates"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more, but is {getattr(self, name)}.")
        even = self.width % self.heads == 0
        require(even, f"heads must divide the width of {self.width}, but are {self.heads}.")
        require((self.dropout >= 0) & (self.dropout < 1), f"dropout must be in [0, 1), but is {self.dropout}.")
        require(self.weight_decay >= 0, f"weight_decay must be 0 or more, but is {self.weight_decay}.")

    @property
    def window(self) -> int:
        return self.context

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """AdamW with clipped gradients and a learning rate that rises first."""
        return warmed_adamw(self.learning_rate, self.warmup_updates, self.weight_decay, self.max_grad_norm)


class DT(SequenceLearner):
    """Decision Transformer, on windows of a log. Any actions; real ones must be bounded, discrete ones are sampled."""

    target: float | None = eqx.field(default=None, static=True)  # return to aim at; None for the best of the log
    hidden: tuple[int, ...] = ()  # of the head of actions

    trains: ClassVar = {"actor": ("actor_loss",)}

    def init(self, spec: Spec, key: PRNGKeyArray) -> DTState:
        sequence_key, head_key = jax.random.split(key)
        head = ActionHead(spec, self.width, self.hidden, head_key)
        target = return_target(spec.dataset, self.target, type(self).__name__)
        actor = DecisionNet(SequenceEncoder(spec, self.width, self.layers, self.heads, sequence_key), head)
        return DTState(
            actor=actor,
            actor_opt=self.optimizer.init(trainable(actor)),
            normaliser=Standardiser.of(spec),
            scale=jnp.float32(max(float(abs(spec.dataset.to_go).max()), 1e-6)),
            target=jnp.float32(target),
            blank=Steps.blank(spec, self.context),
        )

    def actor_loss(
        self, actor: DecisionNet, state: DTState, batch: Trajectory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`mean (a' - a)^2` of real actions, or `-mean log pi(a)`, after `(R_1, s_1, a_1, ..., R_t, s_t)`."""

        def one(steps: Steps, key: PRNGKeyArray) -> Float[Array, "time"]:
            known = actor.sequence(steps, key, self.dropout)[:, OBS]
            return jax.vmap(actor.head.error)(known, steps.action)

        keys = jax.random.split(key, len(batch.valid))
        error = jax.vmap(one)(Steps.of(batch, batch.to_go / state.scale), keys)
        loss = masked_mean(error, batch.valid)
        return loss, {"actor_loss": loss}

    def update(self, state: DTState, batch: Trajectory, key: PRNGKeyArray) -> tuple[DTState, Metrics]:
        batch = eqx.tree_at(lambda b: b.steps, batch, state.normaliser.transition(batch.steps))
        actor, opt, metrics = descend(self.optimizer, self.actor_loss, state.actor, state.actor_opt, state, batch, key)
        return eqx.tree_at(lambda s: (s.actor, s.actor_opt), state, (actor, opt)), metrics

    def policy(self, state: DTState) -> Policy:
        policy = DecisionPolicy(state.actor, state.target, state.scale, state.blank)
        return Normalised(policy, state.normaliser)
