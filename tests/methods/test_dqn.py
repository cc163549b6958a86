"""DQN: the double estimator, the error's shape, and how much it explores."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.methods.online.dqn import DQN

from .cases import HIDDEN, KEY, batch_for, close, discrete_spec, gradient, same, tabular_spec, with_table

SPEC = tabular_spec(4, 3)
BATCH = batch_for(SPEC)


def tables(learner, seed=0):
    """A state whose online and target networks are random tables, and the tables."""
    state = learner.init(SPEC, KEY)
    online, target = np.random.default_rng(seed).normal(size=(2, 4, 3))
    made = [eqx.tree_at(lambda c: c.net, state.critic, with_table(state.critic.net, x)) for x in (online, target)]
    return dataclasses.replace(state, critic=made[0], target_critic=made[1]), online, target


def test_the_online_network_chooses_the_action_of_the_target_and_the_target_network_values_it():
    learner = DQN(hidden=(), discount=0.9)
    state, online, target = tables(learner)
    after = np.asarray(BATCH.next_obs)
    value = target[after, online[after].argmax(1)]
    assert not np.allclose(value, target[after].max(1))  # which is what DQN without the double estimator takes
    wanted = np.asarray(BATCH.reward) + 0.9 * np.where(BATCH.terminated, 0, value)
    error = online[np.asarray(BATCH.obs), np.asarray(BATCH.action)] - wanted
    huber = np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5)
    close(learner.critic_loss(state.critic, state, BATCH, KEY)[0], huber.mean())


def test_the_gradient_of_an_error_is_at_most_one():
    learner = DQN(hidden=())
    state, *_ = tables(learner)
    huge = dataclasses.replace(BATCH, reward=1e6 * BATCH.reward)
    found = gradient(learner.critic_loss, state.critic, state, huge, KEY).net.mlp.layers[0].weight
    signs = np.zeros((4, 3))
    np.add.at(signs, (np.asarray(BATCH.obs), np.asarray(BATCH.action)), -np.sign(BATCH.reward) / BATCH.size)
    np.testing.assert_allclose(found, signs, atol=1e-6)


def test_it_solves_a_decision_process():
    """Three states in a row; action 1 goes right, others stay; the last state pays 1 and ends."""
    s, a = (x.ravel() for x in np.indices((3, 2)))
    there = np.minimum(s + a, 2)
    known = np.array([[0.729, 0.81], [0.81, 0.9], [1.0, 1.0]])
    rows = jax.tree.map(lambda x: x[:6], batch_for(tabular_spec(3, 2)))
    rows = dataclasses.replace(
        rows, obs=jnp.asarray(s, jnp.int32), action=jnp.asarray(a, jnp.int32), next_obs=jnp.asarray(there, jnp.int32),
        reward=jnp.asarray(s == 2, jnp.float32), terminated=jnp.asarray(s == 2), truncated=jnp.zeros(6, bool),
    )  # fmt: skip
    learner = DQN(hidden=(), discount=0.9, learning_rate=0.05, target_period=10)
    state, step = learner.init(tabular_spec(3, 2), KEY), eqx.filter_jit(learner.update)
    for i in range(400):
        state, _ = step(state, rows, jax.random.fold_in(KEY, i))
    np.testing.assert_allclose(jax.vmap(state.critic)(jnp.arange(3)), known, atol=0.01)
    assert [int(learner.policy(state)(jnp.int32(i), (), KEY)[0]) for i in (0, 1)] == [1, 1]


def test_the_target_network_is_copied_with_every_period_and_still_between():
    learner = DQN(hidden=(), target_period=3)
    state, *_ = tables(learner)
    for step in range(1, 8):
        after, _ = learner.update(state, BATCH, KEY)
        assert same(after.target_critic, after.critic) == (step % 3 == 0)
        assert same(after.target_critic, state.target_critic) == (step % 3 != 0)
        state = after


@pytest.mark.parametrize(("updates", "epsilon"), [(0, 1.0), (50, 0.55), (100, 0.1), (1_000, 0.1)])
def test_exploration_falls_linearly_with_the_updates(updates, epsilon):
    learner = DQN(hidden=HIDDEN, epsilon_start=1.0, epsilon_end=0.1, epsilon_updates=100)
    state = dataclasses.replace(learner.init(discrete_spec(3, 4), KEY), updates=jnp.int32(updates))
    assert float(learner.explorer(state).epsilon) == pytest.approx(epsilon)
    keys, obs = jax.random.split(KEY, 4_000), jnp.ones(3)
    actions = jax.vmap(lambda k: learner.explorer(state)(obs, (), k)[0])(keys)
    greedy = int(learner.policy(state)(obs, (), KEY)[0])
    assert np.mean(actions == greedy) == pytest.approx(1 - 0.75 * epsilon, abs=0.03)


def test_the_policy_is_greedy():
    learner = DQN(hidden=())
    state, online, _ = tables(learner)
    acts = jax.vmap(lambda s, k: learner.policy(state)(s, (), k)[0])
    for seed in range(3):
        np.testing.assert_array_equal(acts(jnp.arange(4), jax.random.split(jax.random.key(seed), 4)), online.argmax(1))
