"""A world learned from a log: an ensemble of dynamics models that can be stepped like any other world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.errors import DataError
from habitus.core.experience import Step, Transition
from habitus.core.protocols import Env, require
from habitus.core.trees import descend, take, trainable
from habitus.data.dataset import Dataset
from habitus.envs.terminations import Termination, termination_of
from habitus.nets.dynamics import DynamicsEnsemble, GaussianDynamics


class LearnedWorld(Env):
    """Dynamics learned from a log, in canonical spaces. Each step is drawn from a random elite member.

    Episodes start in a logged first state, and end where `termination` says or the time is up.
    Predictions are cut back to the range of the log, a tenth wider, so that errors do not run away.
    """

    model: DynamicsEnsemble
    elites: Int[Array, "elites"]
    starts: Float[Array, "starts obs"]
    length: int = eqx.field(static=True)
    termination: Termination = eqx.field(static=True)
    low: Float[Array, "obs_and_reward"]
    high: Float[Array, "obs_and_reward"]

    @property
    def observation_space(self) -> gymnasium.Space:
        return spaces.Box(-np.inf, np.inf, (self.starts.shape[1],), np.float32)

    @property
    def action_space(self) -> gymnasium.Space:
        return spaces.Box(-1.0, 1.0, (self.model.members.mlp.layers[0].weight.shape[-2] - self.starts.shape[1],))

    @property
    def horizon(self) -> int:
        return self.length

    def reset(self, key: PRNGKeyArray) -> tuple[Any, Float[Array, "obs"]]:
        obs = self.starts[jax.random.randint(key, (), 0, self.starts.shape[0])]
        return (obs, jnp.zeros((), jnp.int32)), obs

    def step(self, state: Any, action: Float[Array, "actions"], key: PRNGKeyArray) -> tuple[Any, Step]:
        (obs, time), (which_key, draw_key) = state, jax.random.split(key)
        member = self.elites[jax.random.randint(which_key, (), 0, self.elites.shape[0])]
        after, reward = self.model.sample(obs, jnp.clip(action, -1, 1), member, draw_key)
        after = jnp.clip(after, self.low[:-1], self.high[:-1])
        terminated = self.termination(obs, action, after)
        truncated = (time + 1 >= self.length) & ~terminated
        return (after, time + 1), Step(after, jnp.clip(reward, self.low[-1], self.high[-1]), terminated, truncated)


def fit_world(
    log: Dataset,
    key: PRNGKeyArray,
    *,
    members: int = 5,
    elites: int = 3,
    hidden: Sequence[int] = (128, 128),
    steps: int = 5_000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    holdout: float = 0.1,
    horizon: int | None = None,
    termination: Callable[[Array, Array, Array], Bool[Array, ""]] | None = None,
) -> tuple[LearnedWorld, Float[np.ndarray, "members"]]:
    """Learns the dynamics of a log of real observations and actions.

    Args:
        members, elites: models learned, and how many of the best on held-out rows are used.
        steps: updates of every member, each on its own resample of `batch_size` rows.
        holdout: share of the rows that judge the members.
        horizon: longest episode of the world; by default that of the log's world, or its longest episode.
        termination: whether `(s, a, s')` ends an episode; by default that of the task the log names,
            and for other tasks no step ends one.

    Returns:
        the world, and the mean squared error of each member on held-out rows, in units of the log's spread.

    Raises:
        ConfigError: if a number is out of its domain.
        DataError: if the log is too small to hold rows out.
        SpaceMismatch: if observations or actions are not real vectors.
    """
    require(0 < elites <= members, f"elites must be from 1 to members={members}, but is {elites}.")
    require(0 < holdout < 1, f"holdout is a share of the rows, in (0, 1), but is {holdout}.")
    held = int(holdout * len(log))
    if held < 1:
        raise DataError(f"{log.name} has {len(log)} rows, of which {holdout:g} is none to hold out; log more.")
    model_key, order_key, fit_key = jax.random.split(key, 3)
    rows = jax.tree.map(jnp.asarray, log.canonical().transitions(slice(None)))
    model = DynamicsEnsemble(log.spec, hidden, members, model_key)
    order = jax.random.permutation(order_key, len(log))
    model, error = _fit(model, rows, order[held:], order[:held], fit_key, steps, batch_size, learning_rate)
    length = horizon or log.meta.get("horizon") or int(log.lengths.max())
    starts = jnp.asarray(np.asarray(log.canonical().obs)[log.starts], jnp.float32)
    ends = termination or termination_of(str(log.meta.get("task", "")))
    seen = jnp.concatenate([rows.obs, rows.reward[:, None]], axis=1)
    low, high = seen.min(0), seen.max(0)
    margin = 0.1 * (high - low)
    best = jnp.argsort(error)[:elites]
    return LearnedWorld(model, best, starts, int(length), ends, low - margin, high + margin), np.asarray(error)


@eqx.filter_jit
def _fit(
    model: DynamicsEnsemble,
    rows: Transition,
    train: Int[Array, "train"],
    held: Int[Array, "held"],
    key: PRNGKeyArray,
    steps: int,
    batch_size: int,
    learning_rate: float,
) -> tuple[DynamicsEnsemble, Float[Array, "members"]]:
    adam = optax.adam(learning_rate)
    arrays, static = eqx.partition(model.members, eqx.is_array)

    def loss(members: GaussianDynamics, batch: Transition, key: PRNGKeyArray) -> tuple[Array, dict[str, Array]]:
        return eqx.tree_at(lambda m: m.members, model, members).loss(batch, key)[0], {}

    def one(carry: Any, key: PRNGKeyArray) -> tuple[Any, None]:
        pick_key, loss_key = jax.random.split(key)
        batch = take(rows, train[jax.random.randint(pick_key, (batch_size,), 0, train.shape[0])])
        members, opt, _ = descend(adam, loss, eqx.combine(carry[0], static), carry[1], batch, loss_key)
        return (eqx.filter(members, eqx.is_array), opt), None

    (arrays, _), _ = jax.lax.scan(one, (arrays, adam.init(trainable(model.members))), jax.random.split(key, steps))
    model = eqx.tree_at(lambda m: m.members, model, eqx.combine(arrays, static))
    judged = take(rows, held)
    found = jax.vmap(model.each)(judged.obs, judged.action).mean
    return model, ((found - model.target(judged)[:, None]) ** 2).mean((0, 2))
