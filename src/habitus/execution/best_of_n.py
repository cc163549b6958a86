"""Draws several actions and takes the best; for whole plans see `BestPlan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.domains import require
from habitus.core.experience import Action, Obs
from habitus.core.protocols import Policy
from habitus.core.trees import Metrics, take
from habitus.execution.planner import best_of, candidate_keys


class BestOfN(Policy):
    """Draws `n` actions of a policy and takes the one that a scorer likes best; of equals, the first.

    All candidates start from the same carry, and that of the chosen one goes on. Candidate i has the key
    `fold_in(key, i)`, so those of a smaller n are among those of a larger one. A candidate whose score is not a number
    is never preferred to one whose score is.

    Attributes:
        policy: what draws. For a planner the class is `BestPlan`.
        scorer: `scorer(obs, action) -> score`, such as a critic.
        n: how many are drawn.

    Raises:
        ConfigError: if n is below 1.
    """

    policy: Policy
    scorer: Callable[[Obs, Action], Float[Array, ""]]
    n: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        require(self.n >= 1, f"n must be 1 or more, but is {self.n}.")

    def init(self) -> Any:
        return self.policy.init()

    def rewarded(self, carry: Any, reward: Float[Array, ""]) -> Any:
        return self.policy.rewarded(carry, reward)

    def report(self, carry: Any) -> Metrics:
        return self.policy.report(carry)

    def __call__(self, obs: Obs, carry: Any, key: PRNGKeyArray) -> tuple[Action, Any]:
        actions, carries = jax.vmap(lambda k: self.policy(obs, carry, k))(candidate_keys(key, self.n))
        return take((actions, carries), best_of(jax.vmap(lambda a: self.scorer(obs, a))(actions)))
