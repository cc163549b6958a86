"""PRDC: policy regularisation with a data-set constraint.

TD3+BC in which the actor is pulled not towards the action that was logged at this state, but towards
the action of the logged pair nearest to `(beta s, pi(s))`. An action seen in a nearby state is thereby
allowed, so the constraint binds less where the log is mediocre, and the actor still never leaves the
log: the distance to the data set bounds how far the critic must extrapolate.

Y. Ran, Y. Li, F. Zhang, Z. Zhang and Y. Yu, "Policy Regularization with Dataset Constraint for
Offline Reinforcement Learning", ICML 2023.
"""

from __future__ import annotations

from typing import Literal

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.errors import ConfigError
from habitus.core.experience import Transition
from habitus.core.protocols import require
from habitus.core.spec import Spec
from habitus.core.trees import Shared, extend
from habitus.data.pairs import NearestPairs
from habitus.methods.offline.td3bc import TD3BC, TD3BCState

CARD = Card(
    title="Policy Regularization with Dataset Constraint for Offline Reinforcement Learning",
    authors="Ran, Yuhang and Li, Yi-Chen and Zhang, Fuxiang and Zhang, Zongzhang and Yu, Yang",
    year=2023,
    venue="International Conference on Machine Learning",
    arxiv="2306.06569",
    kind="learner",
    entry="PRDC",
    data=("log",),
    actions=("continuous",),
    paper=True,
)


class PRDCState(TD3BCState):
    """The state of TD3+BC, and the index of the log's pairs."""

    pairs: Shared


class PRDC(TD3BC):
    """TD3 with a pull towards the nearest pair of the log."""

    # weight of the state in the distance; paper: 2 for locomotion, 7.5 for mazes
    beta: float = eqx.field(default=2.0, static=True)
    neighbours: int = 1  # pairs to be near to; paper: 1
    mode: Literal["mean", "kth"] = "mean"  # with several: near to all, or to the last alone as in the authors' code
    index: Literal["auto", "kdtree", "brute"] = "auto"  # how pairs are searched
    max_pairs: int = 1_000_000  # a larger log is sub-sampled to this many pairs

    def __check_init__(self) -> None:
        require(self.beta >= 0, f"beta weights the state in a distance, so it must be 0 or more, but is {self.beta}.")
        require(self.neighbours >= 1, f"neighbours must be 1 or more, but is {self.neighbours}.")
        require(self.max_pairs >= 1, f"max_pairs must be 1 or more, but is {self.max_pairs}.")
        require(self.mode in ("mean", "kth"), f"mode must be mean or kth, but is {self.mode!r}.")

    def init(self, spec: Spec, key: PRNGKeyArray) -> PRDCState:
        if spec.dataset is None:
            raise ConfigError("PRDC keeps near the pairs of a log, so it needs one: give data=...")
        state = super().init(spec, key)
        log = spec.dataset
        rows = np.linspace(0, len(log) - 1, min(len(log), self.max_pairs)).astype(int)
        obs = np.asarray(log.obs[rows], np.float32)
        if self.normalise:
            obs = (obs - log.mean) / (log.std + 1e-3)
        pairs = NearestPairs(obs, np.asarray(log.action[rows], np.float32), self.beta, self.index)
        return extend(PRDCState, state, pairs=Shared(pairs))

    def anchor(
        self, state: TD3BCState, batch: Transition, action: Float[Array, "batch actions"]
    ) -> Float[Array, "batch actions"]:
        """The actions of the pairs nearest to `(beta s, pi(s))` (eq. 4).

        The state is a constant of the distance, so its gradient in the action is that of the action
        part alone (envelope theorem): pulling towards these actions minimises the distance to the set.
        """
        assert isinstance(state, PRDCState)
        pairs: NearestPairs = state.pairs.value
        rows = pairs.nearest(batch.obs, jax.lax.stop_gradient(action), self.neighbours)
        near = pairs.actions[rows]
        # the mean of squared distances to several points has the gradient of the distance to their mean
        return near[:, -1] if self.mode == "kth" else near.mean(1)
