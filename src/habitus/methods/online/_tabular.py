"""Q-learning with a table (Watkins and Dayan, 1992), for worlds small enough to count.

Step sizes fall polynomially with the updates of a pair (Even-Dar and Mansour, 2003), as they must
where rewards are random.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.errors import SpaceMismatch
from habitus.core.experience import Transition
from habitus.core.protocols import Learner, Policy, require
from habitus.core.returns import td_target
from habitus.core.spec import Spec
from habitus.core.trees import Metrics
from habitus.nets.policies import Greedy
from habitus.nets.regression import Table


class TabularQState(eqx.Module):
    """The table, updates of each pair, updates done, and updates planned in all (infinite if unknown)."""

    table: Table
    visits: Float[Array, "states actions"]
    updates: Int[Array, ""]
    planned: Float[Array, ""]


class TabularQ(Learner):
    """Q-learning on replayed transitions. Integer observations, discrete actions."""

    decay: float = 0.7  # the n-th update of a pair has step size n^-decay; converges between 1/2 and 1
    discount: float = 0.95
    epsilon_start: float = 1.0  # share of uniform actions at the first update
    epsilon_end: float = 0.05  # and at the last
    batch_size: int = 32

    def __check_init__(self) -> None:
        require((0.5 < self.decay) & (self.decay <= 1), f"decay must be in (1/2, 1], but is {self.decay}.")

    def init(self, spec: Spec, key: PRNGKeyArray) -> TabularQState:
        spec.require("discrete", "tabular Q-learning")
        if not spec.tabular:
            raise SpaceMismatch(f"tabular Q-learning counts states, but observations are {spec.observation_space}.")
        zeros = jnp.zeros((spec.obs_size, spec.num_actions))
        planned = jnp.asarray(float(spec.updates or jnp.inf))
        return TabularQState(Table(zeros), jnp.copy(zeros), jnp.zeros((), jnp.int32), planned)

    def update(self, state: TabularQState, batch: Transition, key: PRNGKeyArray) -> tuple[TabularQState, Metrics]:
        """`Q(s, a) += n^-decay (r + gamma max Q(s', .) - Q(s, a))`, the mean over rows of the same pair."""
        values, pair = state.table.values, (batch.obs, batch.action)
        next_value = values[batch.next_obs].max(-1)
        error = td_target(batch.reward, batch.terminated, next_value, self.discount) - values[pair]
        total, count = (jnp.zeros_like(values).at[pair].add(x) for x in (error, 1.0))
        visits = state.visits + (count > 0)
        values = values + jnp.maximum(visits, 1.0) ** -self.decay * total / jnp.maximum(count, 1.0)
        return TabularQState(Table(values), visits, state.updates + 1, state.planned), {"error": jnp.abs(error).mean()}

    def policy(self, state: TabularQState) -> Policy:
        return Greedy(state.table)

    def explorer(self, state: TabularQState) -> Policy:
        progress = jnp.minimum(state.updates / state.planned, 1.0)
        return Greedy(state.table, self.epsilon_start + progress * (self.epsilon_end - self.epsilon_start))
