"""BC: the likelihood of the log, for real and for discrete actions."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from habitus.core.spec import Spec
from habitus.methods.offline.bc import BC
from habitus.nets.distributions import Normal

from .cases import HIDDEN, KEY, batch_for, box_spec, close, discrete_spec, gradient, log_of, tabular_spec


def fitted(learner, spec, batch, updates):
    """The state after so many updates on one batch."""
    step = eqx.filter_jit(learner.update)
    state = learner.init(spec, KEY)
    for i in range(updates):
        state, metrics = step(state, batch, jax.random.fold_in(KEY, i))
    return state, metrics


def test_the_squared_error_of_real_actions_has_the_gradient_of_a_gaussian_likelihood():
    spec = box_spec()
    batch, learner = batch_for(spec), BC(hidden=HIDDEN)
    state = learner.init(spec, KEY)

    def likelihood(actor, *_):
        def one(obs, action):
            return Normal(actor(obs), jnp.zeros(2)).log_prob(action)

        return -jax.vmap(one)(batch.obs, batch.action).mean(), {}

    squared = gradient(learner.actor_loss, state.actor, state, batch, KEY)
    close(squared, gradient(likelihood, state.actor))  # a factor of 2 / dimensions, which is 1 here


def test_discrete_actions_are_cloned_as_often_as_they_were_taken():
    spec = tabular_spec(3, 4)
    rows = batch_for(spec, 240)
    state, metrics = fitted(BC(hidden=(), learning_rate=0.1), spec, rows, 300)
    counts = np.zeros((3, 4))
    np.add.at(counts, (np.asarray(rows.obs), np.asarray(rows.action)), 1)
    shares = counts / counts.sum(1, keepdims=True)
    found = jax.vmap(lambda s: state.actor(s).probs)(jnp.arange(3))
    np.testing.assert_allclose(found, shares, atol=5e-3)
    entropy = -(counts * np.log(shares)).sum() / counts.sum()  # the least that any clone can reach
    np.testing.assert_allclose(metrics["actor_loss"], entropy, rtol=1e-3)


def test_discrete_actions_are_sampled_and_real_ones_are_the_mean():
    for spec, spread in ((discrete_spec(), True), (box_spec(), False)):
        learner = BC(hidden=HIDDEN)
        policy = learner.policy(learner.init(spec, KEY))
        actions = jax.vmap(lambda k, p=policy: p(jnp.ones(3), (), k)[0])(jax.random.split(KEY, 50))
        assert (len(np.unique(actions, axis=0)) > 1) == spread


def test_several_discrete_actions_at_once():
    spec = Spec(spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 3]))
    rows = dataclasses.replace(
        batch_for(box_spec(2, 2), 64), action=jnp.asarray(np.random.default_rng(0).integers(0, 2, (64, 2)), jnp.int32)
    )
    rows = dataclasses.replace(rows, obs=rows.action.astype(jnp.float32))
    state, metrics = fitted(BC(hidden=HIDDEN, learning_rate=1e-2), spec, rows, 200)
    assert metrics["actor_loss"] < 0.1
    np.testing.assert_array_equal(jax.vmap(lambda o: state.actor(o).mode())(rows.obs), rows.action)


def test_units_of_the_observations_do_not_matter():
    spec = box_spec()
    rows = batch_for(spec, 64)
    states = []
    for scale, shift in ((1.0, 0.0), (300.0, -70.0)):
        given = dataclasses.replace(rows, obs=scale * rows.obs + shift, next_obs=scale * rows.next_obs + shift)
        own = dataclasses.replace(spec, dataset=log_of(given, spec))
        learner = BC(hidden=HIDDEN)
        state, _ = fitted(learner, own, given, 20)
        states.append([learner.policy(state)(o, (), KEY)[0] for o in given.obs[:5]])
    close(*states, atol=5e-3)


def test_rewards_do_not_matter():
    spec = box_spec()
    rows, learner = batch_for(spec), BC(hidden=HIDDEN)
    state = learner.init(spec, KEY)
    other = dataclasses.replace(rows, reward=rows.reward + 100, next_obs=rows.obs)
    assert learner.actor_loss(state.actor, state, rows, KEY) == learner.actor_loss(state.actor, state, other, KEY)
