"""IQL: expectile values, and cloning weighted by the advantage."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.methods.offline.iql import IQL
from habitus.nets.heads import ActionValue, Ensemble

from .cases import (
    HIDDEN,
    KEY,
    SPECS,
    batch_for,
    close,
    every_kind,
    flat,
    gradient,
    linear_critics,
    same,
    tabular_spec,
    with_table,
)  # fmt: skip


def started(kind="real", **settings):
    learner = IQL(hidden=HIDDEN, **settings)
    return learner, learner.init(SPECS[kind], KEY), batch_for(SPECS[kind])


def one_state(values, **settings):
    """A learner in a world of one state, whose target critics are `values` [actions], and each action once."""
    n = len(values)
    spec, learner = tabular_spec(1, n), IQL(hidden=(), **settings)
    state = learner.init(spec, KEY)
    table = state.target_critic.members[0].critic
    table = eqx.tree_at(lambda c: c.net, table, with_table(table.net, np.asarray(values)[None]))
    critics = Ensemble(lambda _: ActionValue(table), 2, KEY)
    batch = dataclasses.replace(batch_for(spec, n), obs=jnp.zeros(n, jnp.int32), action=jnp.arange(n, dtype=jnp.int32))
    return learner, dataclasses.replace(state, target_critic=critics), batch


def valued(state, value):
    """The state with V constant."""
    net = with_table(state.value.net, [[value]])
    return dataclasses.replace(state, value=eqx.tree_at(lambda v: v.net, state.value, net))


def expectile_of(values, tau):
    """By bisection of `tau E(q - e)+ = (1 - tau) E(e - q)+`."""
    low, high = min(values), max(values)
    for _ in range(100):
        e = (low + high) / 2
        above, below = np.maximum(np.subtract(values, e), 0).sum(), np.maximum(np.subtract(e, values), 0).sum()
        low, high = (e, high) if tau * above > (1 - tau) * below else (low, e)
    return e


@pytest.mark.parametrize(("tau", "known"), [(0.5, 5 / 3), (0.7, None), (0.9, None), (0.9999, 4.0), (0.0001, 0.0)])
def test_the_value_is_the_expectile_of_the_critic_over_logged_actions(tau, known):
    """The mean at tau = .5, the best logged action as tau goes to 1, the worst as it goes to 0."""
    values = [0.0, 1.0, 4.0]
    learner, state, batch = one_state(values, expectile=tau)
    expectile = expectile_of(values, tau)
    if known is not None:
        assert expectile == pytest.approx(known, abs=0.01)

    def slope(value):
        given = valued(state, value)
        return float(flat(gradient(learner.value_loss, given.value, given, batch, KEY))[0])

    assert abs(slope(expectile)) < 1e-5 and slope(expectile - 0.1) < 0 < slope(expectile + 0.1)


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_actions_are_cloned_with_weights_exponential_in_the_advantage(temperature):
    values = [0.0, 1.0, -0.5]
    learner, state, batch = one_state(values, temperature=temperature)
    state = valued(state, 0.25)
    weight = np.exp(temperature * (np.array(values) - 0.25))
    log_prob = jax.vmap(lambda o, a: state.actor(o).log_prob(a))(batch.obs, batch.action)
    close(learner.actor_loss(state.actor, state, batch, KEY)[0], -(weight * log_prob).mean())


def test_the_optimal_clone_is_the_behaviour_tilted_by_the_advantage():
    """From uniform behaviour, `pi(a) ~ exp(beta A(a))`."""
    learner, state, batch = one_state([0.0, 1.0, -0.5], temperature=2.0, learning_rate=0.05)
    state = valued(state, 0.25)

    def one(actor, _):
        slope = gradient(learner.actor_loss, actor, state, batch, KEY)
        return jax.tree.map(lambda x, g: x - 0.1 * g, actor, slope), None

    actor = jax.lax.scan(one, state.actor, length=500)[0]
    expected = np.exp(2 * np.array([0.0, 1.0, -0.5]))
    np.testing.assert_allclose(actor(jnp.int32(0)).probs, expected / expected.sum(), atol=1e-3)


def test_weights_are_clipped():
    learner, state, batch = one_state([1e4, 1e4, 1e4])
    state = valued(state, 0.0)
    log_prob = jax.vmap(lambda o, a: state.actor(o).log_prob(a))(batch.obs, batch.action)
    close(learner.actor_loss(state.actor, state, batch, KEY)[0], -100 * log_prob.mean())


@every_kind
def test_the_critic_learns_from_the_value_of_the_next_state_and_nothing_after_termination(kind):
    learner, state, batch = started(kind, discount=0.9)
    target = batch.reward + 0.9 * jnp.where(batch.terminated, 0.0, jax.vmap(state.value)(batch.next_obs))
    q = jax.vmap(state.critic)(batch.obs, batch.action)
    close(learner.critic_loss(state.critic, state, batch, KEY)[0], ((q - target[:, None]) ** 2).mean(0).sum())


@every_kind
def test_no_action_outside_the_log_is_ever_valued(kind):
    """The values do not depend on the actor, whatever it does."""
    learner, state, batch = started(kind)
    other = dataclasses.replace(state, actor=jax.tree.map(lambda x: x + 1.0, state.actor))
    ours, theirs = (learner.update(s, batch, KEY)[0] for s in (state, other))
    for name in ("critic", "target_critic", "value"):
        assert same(getattr(ours, name), getattr(theirs, name))


def test_the_value_uses_the_smaller_target_critic():
    learner, state, batch = started(expectile=0.5)
    for critics, smaller in (((0.0, 9.0), 0.0), ((9.0, 2.0), 2.0)):
        given = dataclasses.replace(state, target_critic=linear_critics(*(([0.0, 0.0], c) for c in critics)))
        expected = 0.5 * ((smaller - jax.vmap(state.value)(batch.obs)) ** 2).mean()
        close(learner.value_loss(state.value, given, batch, KEY)[0], expected)


def test_logged_actions_at_the_bounds_have_a_finite_likelihood():
    learner, state, batch = started()
    edge = dataclasses.replace(batch, action=jnp.sign(batch.action))
    found = gradient(learner.actor_loss, state.actor, state, edge, KEY)
    assert np.isfinite(flat(found)).all() and (flat(found) != 0).any()
    mean = jax.vmap(lambda o: learner.policy(state)(o, (), KEY)[0])(100 * batch.obs)
    assert (np.abs(mean) <= 1).all()
