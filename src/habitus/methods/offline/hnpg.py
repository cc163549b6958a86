"""HNPG: on-policy policy gradients that a log speeds up.

A natural-gradient step needs the advantages of the policy as it is, and a log has those of another.
Here the critic of each step of the episode is fitted to two things at once: the returns of fresh
roll-outs, which are right whatever the critic can represent, and Bellman targets on the log, which say
what the log knows of good states. The policy then takes a trust-region step on the states of both sides,
with its own actions in the log's states too. If the log covers a good policy that one is found; if it is
useless, or the critic cannot satisfy Bellman's equation, what is left is an on-policy method.

Y. Zhou, A. Sekhari, Y. Song and W. Sun, "Offline Data Enhanced On-Policy Policy Gradient with Provable
Guarantees", ICLR 2024.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from habitus.core.card import Card
from habitus.core.errors import ConfigError, DataError
from habitus.core.experience import Sides, Trajectory
from habitus.core.protocols import require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics
from habitus.data.dataset import Dataset
from habitus.methods.online.trpo_stepwise import Rows, StepwiseState, StepwiseTRPO

CARD = Card(
    title="Offline Data Enhanced On-Policy Policy Gradient with Provable Guarantees",
    authors="Zhou, Yifei and Sekhari, Ayush and Song, Yuda and Sun, Wen",
    year=2024,
    venue="International Conference on Learning Representations",
    arxiv="2311.08384",
    kind="learner",
    entry="HNPG",
    data=("env", "log"),
    actions=("continuous",),
    paper=True,
)


class HNPG(StepwiseTRPO):
    """Policy gradients on a world and a log: `learn("hnpg", env=..., data=...)`.

    Real actions; a world with a horizon, and a log of whole episodes of it.
    """

    offline_weight: float = eqx.field(static=True, default=1.0)  # of the log; at 0 it is not looked at

    sides: ClassVar = True

    def __check_init__(self) -> None:
        super().__check_init__()
        require(self.offline_weight >= 0, f"offline_weight must be 0 or more, but is {self.offline_weight}.")

    @property
    def log_weight(self) -> float:
        return self.offline_weight

    def init(self, spec: Spec, key: PRNGKeyArray) -> StepwiseState:
        state = super().init(spec, key)
        if spec.dataset is None:
            raise ConfigError("HNPG learns from a log too: give data=...")
        _check_episodes(spec.dataset, spec.horizon or 0)
        return state

    def update(self, state: StepwiseState, batch: Any, key: PRNGKeyArray) -> tuple[StepwiseState, Metrics]:
        assert isinstance(batch, Sides) and isinstance(batch.logged, Trajectory)
        steps, valid = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (batch.logged.steps, batch.logged.valid))
        logged = Rows.of(steps, valid) if self.offline_weight else None
        return self.improve(state, self._own(batch.own), logged, key)


def _check_episodes(log: Dataset, horizon: int) -> None:
    """Raises `DataError` unless every episode is of `horizon` steps, or terminates sooner, and some reach the end."""
    short = (log.lengths < horizon) & ~np.asarray(log.terminated[log.ends])
    wrong = np.flatnonzero(short | (log.lengths > horizon))
    if len(wrong):
        steps = log.lengths[wrong[0]]
        raise DataError(
            f"episode {wrong[0]} of {log.name} has {steps} steps, but the world's horizon is {horizon}; "
            "use a log of whole episodes of that world."
        )
    if log.lengths.max() < horizon:
        raise DataError(
            f"no episode of {log.name} gets to step {log.lengths.max()} of {horizon}, so the log says nothing of it; "
            "use one in which some do."
        )
