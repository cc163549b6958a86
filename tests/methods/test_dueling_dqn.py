"""Dueling double DQN: its network, its returns of several steps, its bound."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.core.experience import PRIORITY, Transition, Weighted
from habitus.methods.offline.dueling_dqn import DuelingDQN, window_returns
from habitus.nets.heads import DuelingCritic
from habitus.nets.losses import pick
from habitus.train.loop import learn

from .cases import HIDDEN, KEY, batch_for, discrete_spec, log_of

SPEC = discrete_spec()


def window(rewards, terminated):
    n = len(rewards)
    obs = jnp.arange(float(n))[None, :, None]
    ends = jnp.zeros((1, n), bool).at[0, -1].set(terminated)
    return Transition(obs, jnp.zeros((1, n), int), jnp.asarray([rewards]), ends, ends & ~ends, obs + 1)


def test_a_return_sums_what_is_valid_and_bootstraps_from_what_follows():
    full = window_returns(window([1.0, 2.0, 4.0], False), jnp.ones((1, 3), bool), 0.5)
    assert (float(full.rewards[0]), float(full.bootstrap[0]), float(full.last[0, 0])) == (3.0, 0.125, 3.0)
    cut = window_returns(window([1.0, 2.0, 4.0], False), jnp.array([[True, True, False]]), 0.5)
    assert (float(cut.rewards[0]), float(cut.bootstrap[0]), float(cut.last[0, 0])) == (2.0, 0.25, 2.0)
    over = window_returns(window([1.0, 2.0, 4.0], True), jnp.ones((1, 3), bool), 0.5)
    assert (float(over.rewards[0]), float(over.bootstrap[0])) == (3.0, 0.0)


def test_advantages_have_mean_zero_around_the_value():
    critic = DuelingCritic(SPEC, HIDDEN, KEY)
    obs = jnp.ones(3)
    x = obs
    for layer, norm in critic.trunk:
        x = jax.nn.leaky_relu(norm(layer(x)))
    np.testing.assert_allclose(critic(obs).mean(), critic.value(x)[0], rtol=1e-5)


def test_values_beyond_the_bound_are_pulled_back_and_targets_clipped():
    batch = batch_for(SPEC, 16, terminated=0.0)
    rows = Weighted(batch, jnp.ones(16))
    free, held = DuelingDQN(hidden=HIDDEN), DuelingDQN(hidden=HIDDEN, value_bound=1e-3)
    state = free.init(SPEC, KEY)
    (loss, _), (bound, found) = (one.critic_loss(state.critic, state, rows, KEY) for one in (free, held))
    value = pick(jax.vmap(state.critic)(batch.obs), batch.action)
    beyond = 5.0 * jnp.maximum(jnp.abs(value) - 1e-3, 0).sum()
    np.testing.assert_allclose(bound, found["critic_loss"] + beyond, rtol=1e-5)
    assert found["critic_loss"] != loss
    np.testing.assert_allclose(found[PRIORITY], jnp.abs(value - batch.reward), atol=2e-3)


def test_weights_scale_the_loss_of_their_rows():
    learner, batch = DuelingDQN(hidden=HIDDEN), batch_for(SPEC, 8)
    state = learner.init(SPEC, KEY)
    first = jnp.zeros(8).at[0].set(1.0)
    loss, found = learner.critic_loss(state.critic, state, Weighted(batch, first), KEY)
    np.testing.assert_allclose(loss, found[PRIORITY][0] ** 2 / 8, rtol=1e-5)


def test_it_learns_from_windows_with_priorities():
    log = log_of(batch_for(SPEC, 64), SPEC)
    run = learn(DuelingDQN(hidden=HIDDEN, n_step=3, batch_size=16), log, 20, points=1)
    assert PRIORITY not in run.history and np.isfinite(run.history["critic_loss"]).all()


def test_windows_of_another_length_and_worlds_are_refused():
    learner, batch = DuelingDQN(hidden=HIDDEN, n_step=3), batch_for(SPEC, 8)
    with pytest.raises(ConfigError, match="window=3"):
        learner.update(learner.init(SPEC, KEY), batch, KEY)
    with pytest.raises(ConfigError, match="use dqn there"):
        learn(DuelingDQN(), env="cartpole", steps=2_000)
