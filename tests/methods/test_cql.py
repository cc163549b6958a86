"""CQL: the conservative term, for real and for discrete actions."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.methods.offline.cql import CQL, DiscreteCQL
from habitus.methods.online.dqn import DQN
from habitus.methods.online.sac import SAC

from .cases import HIDDEN, KEY, batch_for, box_spec, close, gradient, linear_critics, same, tabular_spec, with_table

# --- discrete

TABULAR = tabular_spec(4, 3)


def tables(learner, seed=0):
    state = learner.init(TABULAR, KEY)
    values = np.random.default_rng(seed).normal(size=(4, 3))
    critic = eqx.tree_at(lambda c: c.net, state.critic, with_table(state.critic.net, values))
    return dataclasses.replace(state, critic=critic), values


def test_the_gradient_of_the_conservative_term_is_the_softmax_less_the_log():
    rows = batch_for(TABULAR)
    (plain, state), (learner, _) = ((m, tables(m)[0]) for m in (DQN(hidden=()), DiscreteCQL(hidden=(), alpha=0.7)))
    _, values = tables(plain)
    ours, theirs = (
        gradient(m.critic_loss, state.critic, state, rows, KEY).net.mlp.layers[0].weight for m in (learner, plain)
    )
    softmax = np.exp(values) / np.exp(values).sum(1, keepdims=True)
    expected = np.zeros((4, 3))
    for s, a in zip(np.asarray(rows.obs), np.asarray(rows.action), strict=True):
        expected[s] += (softmax[s] - np.eye(3)[a]) / rows.size
    np.testing.assert_allclose((ours - theirs) / 0.7, expected, atol=1e-5)


def test_without_weight_it_is_double_q_learning():
    rows = batch_for(TABULAR)
    (a, _), (b, _) = (m.update(m.init(TABULAR, KEY), rows, KEY) for m in (DiscreteCQL(alpha=0.0), DQN()))
    assert same(a, b)


def test_an_action_that_the_log_never_holds_gets_the_lowest_value():
    rows = batch_for(TABULAR, 128)
    rows = dataclasses.replace(rows, action=rows.action % 2, reward=jnp.ones(128))
    learner = DiscreteCQL(hidden=(), alpha=1.0, discount=0.5, learning_rate=0.05)
    state, step = learner.init(TABULAR, KEY), eqx.filter_jit(learner.update)
    for i in range(200):
        state, metrics = step(state, rows, jax.random.fold_in(KEY, i))
    values = jax.vmap(state.critic)(jnp.arange(4))
    assert (values.argmin(1) == 2).all() and (values[:, 2] < values[:, :2].min(1) - 1).all()


# --- real

SPEC = box_spec()
BATCH = batch_for(SPEC)


def started(**settings):
    learner = CQL(hidden=HIDDEN, **settings)
    return learner, learner.init(SPEC, KEY)


def gaps(learner, state, critic, rows=8):
    keys = jax.random.split(KEY, rows)
    own = jax.vmap(lambda *row: learner.conservative_gap(critic, state, *row))
    return own(BATCH.obs[:rows], BATCH.next_obs[:rows], BATCH.action[:rows], keys)


def test_the_integral_of_a_constant_is_the_volume_of_the_actions():
    """log of the integral of exp(c) over [-1, 1]^2, less c: 2 log 2, so the importance weights are right."""
    learner, state = started(samples=20_000)
    found = gaps(learner, state, linear_critics(([0.0, 0.0], 3.0), ([0.0, 0.0], -50.0)))
    np.testing.assert_allclose(found, 2 * np.log(2), atol=0.03)


def test_the_integral_of_a_linear_critic_is_known():
    learner, state = started(samples=20_000)
    slope = np.array([1.5, -0.5])
    found = gaps(learner, state, linear_critics((slope, 0.0), (slope, 0.0)))[:, 0]
    integral = np.log(2 * np.sinh(slope) / slope).sum()
    np.testing.assert_allclose(found, integral - BATCH.action[:8] @ slope, atol=0.05)


@pytest.mark.parametrize("soft", [True, False])
def test_without_weight_it_is_soft_actor_critic(soft):
    learner, state = started(alpha=0.0, soft_backup=soft)
    base = SAC(hidden=HIDDEN, soft_backup=soft)
    soft_key, _ = jax.random.split(KEY)  # the second is for the samples of the conservative term
    ours = gradient(learner.critic_loss, state.critic, state, BATCH, KEY)
    close(ours, gradient(base.critic_loss, state.critic, state, BATCH, soft_key))
    assert same(learner.actor_loss(state.actor, state, BATCH, KEY), base.actor_loss(state.actor, state, BATCH, KEY))


def test_the_loss_is_the_authors_up_to_a_factor():
    """They descend `(Q - y)^2 + 5 gap`; here it is half of that."""
    learner, state = started()
    soft_key, _ = jax.random.split(KEY)
    bellman = SAC(hidden=HIDDEN, soft_backup=False).critic_loss(state.critic, state, BATCH, soft_key)[0]
    loss, metrics = learner.critic_loss(state.critic, state, BATCH, KEY)
    close(2 * loss, 2 * bellman + 5 * 2 * metrics["gap"])  # summed over two critics


def test_the_conservative_term_raises_logged_actions_against_all_others():
    learner, state = started(samples=50)
    slopes = ([0.3, 0.2], 0.0), ([0.3, 0.2], 0.0)
    far = dataclasses.replace(BATCH, action=jnp.tile(jnp.array([0.9, -0.9]), (BATCH.size, 1)))
    keys = jax.random.split(KEY, BATCH.size)

    def gap(critic):
        own = jax.vmap(lambda *row: learner.conservative_gap(critic, state, *row))
        return own(far.obs, far.next_obs, far.action, keys).mean()

    slope = eqx.filter_grad(gap)(linear_critics(*slopes)).members[0].slope
    assert slope[0] < 0 < slope[1]  # descending it tilts Q towards the logged corner


def test_no_gradient_reaches_the_actor_that_proposes():
    learner, state = started()

    def through(actor):
        return learner.critic_loss(state.critic, dataclasses.replace(state, actor=actor), BATCH, KEY)[0]

    assert all((x == 0).all() for x in jax.tree.leaves(eqx.filter_grad(through)(state.actor)))
