"""The smallest worlds, logs and learners that show what the loop does with them."""

from __future__ import annotations

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from habitus.core.experience import Step
from habitus.core.protocols import Env, Learner, Policy
from habitus.data.dataset import Dataset
from habitus.train.checkpoint import to_host
from habitus.train.run import Run

OBS = spaces.Box(-100, 100, (2,), np.float32)
ACTION = spaces.Box(-1, 1, (1,), np.float32)


class Ticks(Env):
    """Shows (steps since the start, a number drawn at the start); ends after `length` steps, reward 1 each.

    Every second episode by its number terminates, the others are truncated.
    """

    length: int = eqx.field(static=True, default=5)

    @property
    def observation_space(self):
        return OBS

    @property
    def action_space(self):
        return ACTION

    @property
    def horizon(self):
        return self.length

    def reset(self, key):
        obs = jnp.stack([0.0, jax.random.randint(key, (), 1, 90).astype(jnp.float32)])
        return obs, obs

    def step(self, state, action, key):
        after = state.at[0].add(1.0)
        over, even = after[0] >= self.length, after[1] % 2 == 0
        return after, Step(after, jnp.ones(()), over & even, over & ~even, {})


class HostTicks(gymnasium.Env):
    """As `Ticks`, in Python; the second number counts the episodes of this copy."""

    observation_space, action_space = OBS, ACTION

    def __init__(self, length: int = 5):
        self.length, self.episode, self.time = length, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return np.array([0, self.episode], np.float32), {}

    def step(self, action):
        self.time += 1
        over = self.time >= self.length
        even = self.episode % 2 == 0
        return np.array([self.time, self.episode], np.float32), 1.0, over and even, over and not even, {}


class Counting(Policy):
    """Acts by how often it has acted in this episode: action = count / 100."""

    weight: jax.Array

    def init(self):
        return jnp.zeros((), jnp.int32)

    def __call__(self, obs, carry, key):
        return jnp.full((1,), carry / 100.0) + 0.0 * self.weight.sum(), carry + 1


class Listening(Policy):
    """Acts by what it has earned in this episode: action = sum of rewards / 100."""

    def init(self):
        return jnp.zeros(())

    def rewarded(self, carry, reward):
        return carry + reward

    def __call__(self, obs, carry, key):
        return jnp.full((1,), carry / 100.0), carry


class Linear(Policy):
    """A linear function of the observation, with noise; the greatest entry where actions are discrete."""

    weight: jax.Array
    noise: float = eqx.field(static=True, default=0.0)
    discrete: bool = eqx.field(static=True, default=False)

    def __call__(self, obs, carry, key):
        out = obs @ self.weight
        out = out + self.noise * jax.random.normal(key, out.shape)
        return (jnp.argmax(out).astype(jnp.int32) if self.discrete else jnp.tanh(out)), carry


class TinyState(eqx.Module):
    weight: jax.Array
    step: jax.Array
    discrete: bool = eqx.field(static=True)


class Tiny(Learner):
    """Pulls a linear policy towards the actions of the batch, with noise in every update."""

    rate: float = 0.01
    bad_at: int = 0  # the update whose loss is not a number
    infinite_at: int = 0  # the update after which the weights are infinite while the loss is not
    counting: bool = eqx.field(static=True, default=False)  # explore by counting
    size: int = eqx.field(static=True, default=1)  # copies of the weights, to make updates or states larger
    batch_size: int = 8

    def init(self, spec, key):
        shape = (spec.obs_size, spec.action_size)
        return TinyState(jax.random.normal(key, shape), jnp.zeros((), jnp.int32), spec.discrete)

    def update(self, state, batch, key):
        step = state.step + 1
        target = batch.reward[..., None] if state.discrete else batch.action
        error = jnp.tanh(batch.obs @ state.weight) - target
        loss = jnp.where(step == self.bad_at, jnp.nan, (error**2).mean())
        noise = jax.random.normal(key, state.weight.shape)
        weight = (1 - self.rate) * state.weight + self.rate * (noise + error.mean())
        weight = jnp.where(step == self.infinite_at, jnp.inf, weight)
        metrics = {"loss": loss, "tick": batch.obs[..., 0].mean(), "first_row": batch.obs.reshape(-1)[0]}
        return TinyState(weight, step, state.discrete), metrics

    def policy(self, state):
        return Linear(state.weight, 0.0, state.discrete)

    def explorer(self, state):
        return Counting(state.weight) if self.counting else Linear(state.weight, 0.5, state.discrete)


class TinyOnPolicy(Tiny):
    """The same, from its own actions."""

    on_policy = True
    rollout_length: int = 4
    num_envs: int = 2


def small_log(rows: int = 40, seed: int = 0) -> Dataset:
    """Rows of four episodes with random actions; the first number of an observation is its row."""
    rng = np.random.default_rng(seed)
    ends = np.arange(1, rows + 1) % (rows // 4) == 0
    obs, final = (rng.normal(size=(n, 2)).astype(np.float32) for n in (rows, 4))
    obs[:, 0] = np.arange(rows)
    following = np.roll(obs, -1, 0)
    following[ends] = final
    return Dataset.from_arrays(
        obs=obs,
        next_obs=following,
        action=rng.uniform(-1, 1, (rows, 1)).astype(np.float32),
        reward=rng.normal(size=rows).astype(np.float32),
        terminated=np.zeros(rows, bool),
        truncated=ends,
        observation_space=OBS,
        action_space=ACTION,
    )


def assert_same(ours: Run, theirs: Run) -> None:
    """The same seeds, and the same bits in every leaf of every state."""
    assert list(ours.seeds) == list(theirs.seeds)
    for mine, other in zip(ours.states, theirs.states, strict=True):
        for a, b in zip(to_host(mine), to_host(other), strict=True):
            np.testing.assert_array_equal(a, b)


def weights(run: Run) -> np.ndarray:
    """The weights of every seed."""
    return np.stack([np.asarray(state.weight) for state in run.states])
