"""Planners whose answers are known in closed form, and a world whose episodes differ in length."""

from __future__ import annotations

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from habitus.core.experience import Step
from habitus.core.protocols import Env
from habitus.execution.denoising import Denoising
from habitus.execution.planner import Plan, Planner
from habitus.generative.ddpm import Schedule

KEY = jax.random.key(0)
OBS = spaces.Box(-100, 100, (2,), np.float32)
ACTION = spaces.Box(-1, 1, (1,), np.float32)


class Exact(eqx.Module):
    """The noise in data from N(mean + gain * tanh(mean observation), tau^2); a constant where tau is 0."""

    alpha_bar: jax.Array
    mean: jax.Array
    tau: float = 0.0
    gain: float = 0.0

    def __call__(self, chunk, level, window):
        kept = self.alpha_bar[level][:, None]
        mean = self.mean + self.gain * jnp.tanh(window.mean() / 10)
        share = jnp.sqrt(kept) * self.tau**2 / (kept * self.tau**2 + 1 - kept)
        clean = mean + share * (chunk - jnp.sqrt(kept) * mean)
        return (chunk - jnp.sqrt(kept) * clean) / jnp.sqrt(1 - kept)


def denoising(rows, levels, mean=0.2, tau=0.0, gain=0.0, columns=1, **settings):
    """A perfect denoiser; the observations are those of `OBS`."""
    schedule = Schedule.cosine(levels)
    return Denoising(Exact(schedule.alpha_bar, jnp.asarray(mean), tau, gain), schedule, rows, columns, (2,), **settings)


class Ramp(Planner):
    """Row i is (first number of the newest observation, i, sum of the first numbers in the window)."""

    length: int = eqx.field(static=True, default=8)

    @property
    def shape(self):
        return self.length, 3

    def blank(self):
        return jnp.zeros(2)

    def __call__(self, window, key, start=None):
        newest, total = window[-1, 0], window[:, 0].sum()
        rows = jnp.arange(self.length, dtype=jnp.float32)
        chunk = jnp.stack([jnp.full_like(rows, newest), rows, jnp.full_like(rows, total)], 1)
        return Plan(chunk, jnp.ones((), jnp.int32))


class Draw(Planner):
    """Noise, whatever it sees."""

    length: int = eqx.field(static=True, default=4)

    @property
    def shape(self):
        return self.length, 1

    def blank(self):
        return jnp.zeros(2)

    def __call__(self, window, key, start=None):
        return Plan(jax.random.normal(key, self.shape), jnp.ones((), jnp.int32))


def length_of(number):
    """Steps of an episode, by its number."""
    return 3 + number % 5


class Uneven(Env):
    """Shows (steps since the start, the number of the episode), is paid the action, and ends after 3 to 7 steps."""

    @property
    def observation_space(self):
        return OBS

    @property
    def action_space(self):
        return ACTION

    def reset(self, key):
        obs = jnp.stack([0.0, jax.random.randint(key, (), 1, 90).astype(jnp.float32)])
        return obs, obs

    def step(self, state, action, key):
        after = state.at[0].add(1.0)
        over = after[0] >= length_of(after[1])
        return after, Step(after, action[0], over, jnp.zeros_like(over), {})


class HostUneven(gymnasium.Env):
    """As `Uneven`, in Python; the episodes of a copy are numbered from its seed on."""

    observation_space, action_space = OBS, ACTION

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number, self.time = int(self.np_random.integers(1, 90)), 0
        return np.array([0, self.number], np.float32), {}

    def step(self, action):
        self.time += 1
        over = self.time >= length_of(self.number)
        return np.array([self.time, self.number], np.float32), float(action[0]), over, False, {}


def walk(policy, steps, obs=None, key=KEY, carry=None):
    """Actions [steps, ...] and the carries after each step, of a policy that is shown (step, 0)."""
    act = eqx.filter_jit(lambda p, *inputs: p(*inputs))
    carry, actions, carries = policy.init() if carry is None else carry, [], []
    for t in range(steps):
        seen = jnp.asarray([float(t), 0.0]) if obs is None else jnp.asarray(obs[t])
        action, carry = act(policy, seen, carry, jax.random.fold_in(key, t))
        actions.append(np.asarray(action))
        carries.append(carry)
    return np.stack(actions), carries
