"""Demonstrations to speed up learning in generated levels: PPO that imitates, before it acts or as it goes.

With sparse rewards and levels that never come back, PPO may see no reward at all, and a handful of
demonstrations decides whether it learns. They help twice. A run of `bc` on them, handed over as
`warm_start`, is a first policy that now and then succeeds. And after each round of PPO some cloning
steps, with the same optimiser, keep the policy near a ranked buffer, which begins with the
demonstrations and which the learner's own better episodes take over, so that poor demonstrations
do not hold it back. Without demonstrations that is RAPID; without cloning steps it is PPO.

A. Andres, L. Schäfer, E. Villar-Rodriguez, S. V. Albrecht and J. Del Ser, "Using Offline Data to
Speed-up Reinforcement Learning in Procedurally Generated Environments", 2023.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import optax
from jax.random import fold_in
from jaxtyping import PRNGKeyArray

from habitus.core.card import Card
from habitus.core.errors import ConfigError, SpaceMismatch
from habitus.core.experience import Transition
from habitus.core.protocols import Policy
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, extend
from habitus.methods.offline.bc import BCState
from habitus.methods.online.ppo import PPO, PPOState
from habitus.nets.heads import StochasticActor
from habitus.nets.normalise import Standardiser
from habitus.train.imitation import Imitating, Memory

CARD = Card(
    title="Using Offline Data to Speed-up Reinforcement Learning in Procedurally Generated Environments",
    authors="Andres, Alain and Schäfer, Lukas and Villar-Rodriguez, Esther and Albrecht, Stefano V. "
    "and Del Ser, Javier",
    year=2023,
    venue="arXiv",
    arxiv="2304.09825",
    kind="learner",
    entry="PCGImitation",
    data=("env", "log"),
    paper=True,
)


class PCGState(PPOState):
    """The state of PPO, what it imitates, and what it sees the world through if it began as a clone."""

    memory: Memory
    seen_through: Standardiser

    @property
    def normaliser(self) -> Standardiser:
        return self.moments.standardiser if self.moments else self.seen_through


class PCGImitation(Imitating, PPO):
    """PPO and imitation: `learn("pcg-imitation", env=..., data=demonstrations, warm_start=clone)`.

    `data` may be left out (RAPID), and so may `warm_start`, a run of `bc`. With `bc_updates=0` nothing
    is imitated after the start. Deployed, discrete actions are sampled: what sees a part of the world
    and remembers nothing needs chance to leave a loop.
    """

    learning_rate: float = 1e-4  # authors' code, as all that follows
    entropy: float = 0.01
    epochs: int = 4
    minibatch_size: int = 512

    takes_log: ClassVar = True
    continues: ClassVar = ("bc",)
    trains: ClassVar = PPO.trains | {"actor": ("actor_loss", "cloning_loss")}

    @property
    def cloning_optimizer(self) -> optax.GradientTransformation:
        """The actor's Adam, moments shared, without clipping."""
        return optax.chain(optax.identity(), optax.adam(self.learning_rate, eps=1e-5))

    def init(self, spec: Spec, key: PRNGKeyArray) -> PCGState:
        memory = self.remember(spec, self.num_envs)
        return extend(PCGState, super().init(spec, key), memory=memory, seen_through=Standardiser.identity())

    def adopt(self, state: PCGState, earlier: BCState | PCGState) -> PCGState:
        """The clone's policy, the moments of its optimiser and its normaliser; the critic starts afresh."""
        if isinstance(earlier, PCGState):
            return earlier
        if not isinstance(earlier.actor, StochasticActor):
            raise SpaceMismatch(
                "a clone of real actions is deterministic and cannot go on as PPO; clone discrete ones."
            )
        if self.normalise_obs:
            raise ConfigError("a clone goes on seeing the world as it did: leave normalise_obs at False.")
        moments = (state.actor_opt[0], earlier.actor_opt)
        return dataclasses.replace(state, actor=earlier.actor, actor_opt=moments, seen_through=earlier.normaliser)

    def update(self, state: PPOState, batch: Transition, key: PRNGKeyArray) -> tuple[PCGState, Metrics]:
        """A round of PPO; its episodes are ranked; `bc_updates` steps of cloning."""
        after, metrics = super().update(state, batch, key)
        assert isinstance(after, PCGState)
        after = dataclasses.replace(after, memory=self.watch(after.memory, batch))
        imitated, found = self.imitate(after, fold_in(key, 1))
        return imitated, metrics | found  # type: ignore[return-value]

    def policy(self, state: PPOState) -> Policy:
        chance = isinstance(state.actor, StochasticActor) and state.actor.log_std is None
        return self.explorer(state) if chance else super().policy(state)
