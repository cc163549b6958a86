"""Discrete BCQ: which actions are allowed, and its limits in the threshold."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.methods.offline.bcq import BCQ
from habitus.methods.online.dqn import DQN

from .cases import HIDDEN, KEY, batch_for, close, discrete_spec, same, tabular_spec, with_table

SPEC = tabular_spec(5, 4)
BATCH = batch_for(SPEC, 64)


def tables(learner):
    """A state whose critic, target critic and clone are random tables, and the tables."""
    state = learner.init(SPEC, KEY)
    values = np.random.default_rng(0).normal(size=(3, 5, 4))
    names = ("critic", "target_critic", "clone")
    made = {
        name: eqx.tree_at(lambda c: c.net, getattr(state, name), with_table(getattr(state, name).net, table))
        for name, table in zip(names, values, strict=True)
    }
    return dataclasses.replace(state, **made), *values


def acts(learner, state):
    policy = learner.policy(state)
    return np.asarray(jax.vmap(lambda s: policy(s, (), KEY)[0])(jnp.arange(5)))


def likelihoods(logits):
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_a_threshold_of_zero_is_double_q_learning():
    ours, plain = BCQ(hidden=(), threshold=0.0), DQN(hidden=())
    state, *_ = tables(ours)
    losses = (m.critic_loss(state.critic, state, BATCH, KEY)[0] for m in (ours, plain))
    assert same(*losses)
    np.testing.assert_array_equal(acts(ours, state), acts(plain, state))


def test_a_threshold_of_one_is_the_mode_of_the_clone():
    learner = BCQ(hidden=(), threshold=1.0)
    state, _, _, logits = tables(learner)
    np.testing.assert_array_equal(acts(learner, state), logits.argmax(1))


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.8])
def test_only_likely_actions_compete_when_acting_and_in_the_target(threshold):
    learner = BCQ(hidden=(), threshold=threshold, discount=0.9)
    state, online, target, logits = tables(learner)
    likely = likelihoods(logits)
    masked = np.where(likely / likely.max(1, keepdims=True) >= threshold, online, -np.inf)
    np.testing.assert_array_equal(acts(learner, state), masked.argmax(1))
    after = np.asarray(BATCH.next_obs)
    value = target[after, masked[after].argmax(1)]
    wanted = np.asarray(BATCH.reward) + 0.9 * np.where(BATCH.terminated, 0, value)
    error = online[np.asarray(BATCH.obs), np.asarray(BATCH.action)] - wanted
    huber = np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5)
    close(learner.critic_loss(state.critic, state, BATCH, KEY)[0], huber.mean())
    assert not np.array_equal(masked.argmax(1), online.argmax(1))


def test_the_clone_learns_how_often_actions_were_taken():
    learner = BCQ(hidden=(), logit_penalty=0.0, learning_rate=0.05)
    state, step = learner.init(SPEC, KEY), eqx.filter_jit(learner.update)
    for i in range(400):
        state, _ = step(state, BATCH, jax.random.fold_in(KEY, i))
    counts = np.zeros((5, 4))
    np.add.at(counts, (np.asarray(BATCH.obs), np.asarray(BATCH.action)), 1)
    found = likelihoods(np.asarray(jax.vmap(state.clone)(jnp.arange(5))))
    np.testing.assert_allclose(found, counts / counts.sum(1, keepdims=True), atol=0.01)


def test_the_penalty_is_on_the_mean_squared_logit():
    states = [tables(BCQ(hidden=(), logit_penalty=w)) for w in (0.0, 0.5)]
    losses = [
        BCQ(hidden=(), logit_penalty=w).clone_loss(s[0].clone, s[0], BATCH, KEY)[0]
        for w, s in zip((0.0, 0.5), states, strict=True)
    ]
    logits = states[0][3][np.asarray(BATCH.obs)]
    close(losses[1] - losses[0], 0.5 * (logits**2).mean(), rtol=1e-4)


def test_an_unlikely_action_is_never_taken_however_high_its_value():
    spec = discrete_spec(3, 3)
    rows = batch_for(spec, 128)
    rows = dataclasses.replace(rows, action=rows.action % 2)
    learner = BCQ(hidden=HIDDEN, learning_rate=1e-2)
    state, step = learner.init(spec, KEY), eqx.filter_jit(learner.update)
    for i in range(100):
        state, _ = step(state, rows, jax.random.fold_in(KEY, i))
    bias = state.critic.net.mlp.layers[-1].bias
    lured = eqx.tree_at(lambda s: s.critic.net.mlp.layers[-1].bias, state, bias + jnp.array([0.0, 0.0, 1e3]))
    policy = learner.policy(lured)
    actions = jax.vmap(lambda o: policy(o, (), KEY)[0])(rows.obs)
    assert set(np.unique(actions)) <= {0, 1}


def test_critic_and_clone_step_from_the_same_state():
    """The target of an update uses the clone as it was before it, as with one optimiser over both."""
    learner, plain = BCQ(hidden=()), DQN(hidden=())
    state, *_ = tables(learner)
    frozen = BCQ(hidden=(), logit_penalty=10.0)
    assert same(learner.update(state, BATCH, KEY)[0].critic, frozen.update(state, BATCH, KEY)[0].critic)
    assert not same(learner.update(state, BATCH, KEY)[0].critic, plain.update(state, BATCH, KEY)[0].critic)
