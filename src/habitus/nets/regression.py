"""Optimistic regression of values for one step of an episode, on counts or on linear features.

What has been seen of each step, its *evidence*, is a count of every pair of state and action, or the
matrix `Lambda = penalty I + sum phi phi^T`. It says how far an estimate may be off, which is the bonus
of optimism (Jin et al., "Provably Efficient Reinforcement Learning with Linear Function
Approximation", 2020), and when there is so much more of it that values should be fitted anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from habitus.core.experience import Transition

Evidence = Array


class Table(eqx.Module):
    """Values looked up: one observation, an integer, to a value for each action; with leading axes, several tables."""

    values: Float[Array, "*several states actions"]

    def __call__(self, obs: Int[Array, ""]) -> Float[Array, "actions"]:
        return self.values[obs]


class ActionBlocks(eqx.Module):
    """`phi(s, a)`: in the block of its action `(x, 1) / sqrt(2)`, with `x` the observation, shortened to norm 1 if it
    is longer; zeros elsewhere."""

    actions: int = eqx.field(static=True)

    def size(self, obs_size: int) -> int:
        """Number of features."""
        return self.actions * (obs_size + 1)

    def __call__(self, obs: Float[Array, "obs"]) -> Float[Array, "actions features"]:
        x = obs / jnp.maximum(jnp.linalg.norm(obs), 1.0)
        return jnp.kron(jnp.eye(self.actions), jnp.append(x, 1.0) / jnp.sqrt(2.0))


class Lookup(eqx.Module):
    """`phi(s, a)` known for every pair of a finite world."""

    table: Float[Array, "states actions features"]

    def __call__(self, obs: Int[Array, ""]) -> Float[Array, "actions features"]:
        return self.table[obs]


class LinearCritic(eqx.Module):
    """`clip(phi^T w + bonus sqrt(phi^T Lambda^-1 phi), low, high)` for each action; with leading axes, several."""

    features: Callable[[Array], Array]
    weights: Float[Array, "*several features"]
    inverse: Float[Array, "*several features features"]
    bonus: Float[Array, "*several"]
    low: Float[Array, "*several"]
    high: Float[Array, "*several"]

    def __call__(self, obs: Array) -> Float[Array, "actions"]:
        phi = self.features(obs)
        width = jnp.sqrt(jnp.maximum(jnp.einsum("ad,de,ae->a", phi, self.inverse, phi), 0.0))
        return jnp.clip(phi @ self.weights + self.bonus * width, self.low, self.high)


class Counted(eqx.Module):
    """Means over equal pairs. What was never seen is as good as can be, or worth 0 where there is no bonus."""

    states: int = eqx.field(static=True)
    actions: int = eqx.field(static=True)

    def start(self, horizon: int) -> Float[Array, "horizon states actions"]:
        """No evidence."""
        return jnp.zeros((horizon, self.states, self.actions))

    def add(self, evidence: Evidence, steps: Transition, valid: Bool[Array, "horizon episodes"]) -> Evidence:
        """The evidence with further episodes; `steps` has leading axes [horizon, episodes]."""
        step = jnp.arange(evidence.shape[0])[:, None]
        return evidence.at[step, steps.obs, steps.action].add(valid.astype(jnp.float32))

    def doubled(self, evidence: Evidence, before: Evidence) -> Bool[Array, ""]:
        """Whether some pair was seen twice as often as before, or for the first time."""
        return (evidence >= 2 * jnp.maximum(before, 0.5)).any()

    def nothing(self) -> Table:
        """The values after the last step."""
        return Table(jnp.zeros((self.states, self.actions)))

    def fit(
        self, evidence: Evidence, steps: Transition, target: Float[Array, "episodes"],
        valid: Bool[Array, "episodes"], bonus: Any, low: Any, high: Any,
    ) -> Table:  # fmt: skip
        """`clip(mean + bonus / sqrt(n), low, high)` for each pair, from the rows of one step."""
        pair = steps.obs * self.actions + steps.action
        total = jax.ops.segment_sum(jnp.where(valid, target, 0.0), pair, self.states * self.actions)
        n = jnp.maximum(evidence, 1.0)
        unseen = jnp.where(jnp.asarray(bonus) > 0, jnp.inf, 0.0)
        width = jnp.where(evidence > 0, bonus / jnp.sqrt(n), unseen)
        return Table(jnp.clip(total.reshape(evidence.shape) / n + width, low, high))


class Ridge(eqx.Module):
    """Ridge regression on features of the pair of state and action.

    Attributes:
        features: one observation to the features of each action.
        size: number of features.
        penalty: of squared weights.
        states: how many there are, if they are integers; the critic is then a table.
    """

    features: Callable[[Array], Array]
    penalty: Float[Array, ""] | float
    size: int = eqx.field(static=True)
    states: int | None = eqx.field(static=True, default=None)

    def start(self, horizon: int) -> Float[Array, "horizon features features"]:
        """No evidence."""
        return jnp.broadcast_to(self.penalty * jnp.eye(self.size), (horizon, self.size, self.size))

    def add(self, evidence: Evidence, steps: Transition, valid: Bool[Array, "horizon episodes"]) -> Evidence:
        """The evidence with further episodes; `steps` has leading axes [horizon, episodes]."""
        phi = jax.vmap(jax.vmap(self._taken))(steps.obs, steps.action)
        return evidence + jnp.einsum("hed,hef,he->hdf", phi, phi, valid.astype(phi.dtype))

    def doubled(self, evidence: Evidence, before: Evidence) -> Bool[Array, ""]:
        """Whether some `det Lambda` is twice what it was."""
        growth = jnp.linalg.slogdet(evidence)[1] - jnp.linalg.slogdet(before)[1]
        return (growth >= jnp.log(2.0)).any()

    def nothing(self) -> Table | LinearCritic:
        """The values after the last step."""
        zero = jnp.zeros(())
        inverse = jnp.zeros((self.size, self.size))
        return self._tabulated(LinearCritic(self.features, jnp.zeros(self.size), inverse, zero, zero, zero))

    def fit(
        self, evidence: Evidence, steps: Transition, target: Float[Array, "episodes"],
        valid: Bool[Array, "episodes"], bonus: Any, low: Any, high: Any,
    ) -> Table | LinearCritic:  # fmt: skip
        """`w = Lambda^-1 sum phi target`, from the rows of one step."""
        phi = jax.vmap(self._taken)(steps.obs, steps.action)
        inverse = jnp.linalg.inv(evidence)
        weights = inverse @ (phi.T @ jnp.where(valid, target, 0.0))
        bonus, low, high = (jnp.asarray(x, jnp.float32) for x in (bonus, low, high))
        return self._tabulated(LinearCritic(self.features, weights, inverse, bonus, low, high))

    def _taken(self, obs: Array, action: Int[Array, ""]) -> Float[Array, "features"]:
        return self.features(obs)[action]

    def _tabulated(self, critic: LinearCritic) -> Table | LinearCritic:
        return critic if self.states is None else Table(jax.vmap(critic)(jnp.arange(self.states)))


Regression = Counted | Ridge
