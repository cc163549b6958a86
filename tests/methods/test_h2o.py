"""H2O: what the discriminators know of the dynamics, and what the values make of it."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from habitus.core.errors import ConfigError
from habitus.core.experience import Sides
from habitus.core.trees import descend, take, trainable
from habitus.methods.offline.h2o import H2O
from habitus.methods.online.sac import SAC
from habitus.train.loop import learn

from .cases import HIDDEN, KEY, batch_for, box_spec, close, gradient, log_of, same

SPEC = box_spec()
REAL, OWN = batch_for(SPEC, 64), batch_for(SPEC, 64, seed=1)
BATCH = Sides(OWN, REAL)


def start(**settings):
    learner = H2O(**dict(hidden=HIDDEN) | settings)
    return learner, learner.init(dataclasses.replace(SPEC, dataset=log_of(REAL, SPEC)), KEY)


def trained(state, learner, batch, steps):
    """Discriminators after so many steps on one batch with fresh noise."""
    adam = optax.adam(1e-3)

    @eqx.filter_jit
    def step(nets, opt, key):
        return descend(adam, learner.discriminator_loss, nets, opt, state, batch, key)

    nets, opt, losses = state.discriminators, adam.init(trainable(state.discriminators)), []
    for i in range(steps):
        nets, opt, metrics = step(nets, opt, jax.random.key(i))
        losses.append(float(metrics["discriminator_loss"]))
    return dataclasses.replace(state, discriminators=nets), losses


# --- discriminators


def test_the_log_ratio_is_that_of_bayes_rule_and_bounded():
    learner, state = start()
    inputs = (state.scale(OWN.obs), OWN.action, state.scale(OWN.next_obs))
    pair, added = jax.vmap(state.discriminators)(*inputs)
    p, q = jax.nn.log_softmax(pair + added), jax.nn.log_softmax(pair)
    long = -p[:, 0] + p[:, 1] + q[:, 0] - q[:, 1]
    seen = learner.log_ratio(state, OWN.obs, OWN.action, OWN.next_obs)
    np.testing.assert_allclose(seen, long, atol=1e-5)
    big = eqx.tree_at(
        lambda s: s.discriminators, state,
        jax.tree.map(lambda x: 100 * x if eqx.is_inexact_array(x) else x, state.discriminators),
    )  # fmt: skip
    weight = jnp.exp(-learner.log_ratio(big, OWN.obs, OWN.action, OWN.next_obs))
    assert (weight >= np.exp(-4.001)).all() and (weight <= np.exp(4.001)).all() and float(weight.max()) > 10


def test_where_both_sides_are_the_same_nothing_can_be_told():
    learner, state = start()
    state, losses = trained(state, learner, Sides(REAL, REAL), 300)
    assert np.mean(losses[-50:]) == pytest.approx(4 * np.log(2), abs=0.05)
    assert float(jnp.abs(learner.log_ratio(state, REAL.obs, REAL.action, REAL.next_obs)).mean()) < 0.3
    flat = dataclasses.replace(
        state, discriminators=jax.tree.map(lambda x: 0 * x if eqx.is_inexact_array(x) else x, state.discriminators)
    )
    np.testing.assert_allclose(learner.gap(flat, OWN, KEY), 1 / 64, rtol=1e-5)


def test_of_two_gaussians_one_apart_the_ratio_is_their_divergence():
    rng, n = np.random.default_rng(0), 4096
    spec = box_spec(1, 1)
    rows = batch_for(spec, n)
    real, own = (
        dataclasses.replace(rows, next_obs=jnp.asarray(rng.normal(m, 1, (n, 1)), jnp.float32)) for m in (0.0, 1.0)
    )
    learner = H2O(hidden=(32, 32))
    state = learner.init(dataclasses.replace(spec, dataset=log_of(real, spec)), KEY)
    state, _ = trained(state, learner, Sides(own, real), 400)
    seen = float(learner.log_ratio(state, own.obs, own.action, own.next_obs).mean())
    assert seen == pytest.approx(0.5, abs=0.15)


# --- values


def test_the_shares_of_the_gap_sum_to_one_and_bound_the_push():
    learner, state = start()
    omega = learner.gap(state, OWN, KEY)
    assert float(omega.sum()) == pytest.approx(1.0, abs=1e-5) and (omega > 0).all()
    q = jax.vmap(state.critic)(OWN.obs, OWN.action)
    real = jax.vmap(state.critic)(REAL.obs, REAL.action).mean(0)
    push = jax.scipy.special.logsumexp(q + jnp.log(omega)[:, None], axis=0) - real
    assert (push >= q.min(0) - real - 1e-5).all() and (push <= q.max(0) - real + 1e-5).all()
    assert float(learner.critic_loss(state.critic, state, BATCH, KEY)[1]["push"]) != 0


def test_with_one_action_value_and_no_gap_the_push_is_the_plain_difference():
    learner, state = start()
    flat = dataclasses.replace(
        state, discriminators=jax.tree.map(lambda x: 0 * x if eqx.is_inexact_array(x) else x, state.discriminators)
    )
    q = jax.vmap(state.critic)(OWN.obs, OWN.action)
    real = jax.vmap(state.critic)(REAL.obs, REAL.action).mean(0)
    plain = (jax.scipy.special.logsumexp(q, axis=0) - np.log(64) - real).mean()
    np.testing.assert_allclose(learner.critic_loss(state.critic, flat, BATCH, KEY)[1]["push"], plain, rtol=1e-4)


def test_a_constant_added_to_the_values_changes_neither_the_push_nor_its_gradient():
    learner, state = start(penalty=1.0)

    def shifted(by):
        move = lambda c: [m.mlp.layers[-1].bias for m in c.members]  # noqa: E731
        return eqx.tree_at(move, state.critic, [b + by for b in move(state.critic)])

    def push(critic, *_):
        loss, metrics = learner.critic_loss(critic, state, BATCH, KEY)
        return metrics["push"], {}

    a, b = (push(shifted(by))[0] for by in (0.0, 3.0))
    np.testing.assert_allclose(a, b, atol=1e-4)
    ours = gradient(push, shifted(0.0)).members[0].mlp.layers[-1]
    theirs = gradient(push, shifted(3.0)).members[0].mlp.layers[-1]
    close(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(ours.bias, 0.0, atol=1e-5)


def test_without_weights_and_penalty_the_critics_gradient_is_that_of_sac_on_both_sides():
    learner, state = start(penalty=0.0, min_weight=1.0, discount=0.0)
    plain = SAC(hidden=HIDDEN, soft_backup=False, discount=0.0)
    ours = gradient(learner.critic_loss, state.critic, state, BATCH, KEY)
    theirs = gradient(plain.critic_loss, state.critic, state, BATCH.union, KEY)
    # two means of half the rows each, and no half before the square
    close(ours, jax.tree.map(lambda x: 4 * x, theirs), atol=1e-5)


def test_actor_and_temperature_learn_from_the_union_as_in_sac():
    learner, state = start()
    _, _, actor_key = jax.random.split(KEY, 3)
    after, _ = learner.update(state, BATCH, KEY)
    half = Sides(*(take(rows, slice(0, 32)) for rows in (OWN, REAL)))
    between = dataclasses.replace(state, critic=after.critic)
    theirs, _ = SAC(hidden=HIDDEN).improve_actor(between, half.union, actor_key)
    assert same(after.actor, theirs.actor) and after.log_temperature == theirs.log_temperature


def test_no_gradient_flows_through_weights_and_gap():
    learner, state = start(penalty=1.0)

    def loss(nets, *_):
        return learner.critic_loss(state.critic, dataclasses.replace(state, discriminators=nets), BATCH, KEY)

    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(gradient(loss, state.discriminators)))


# --- what it needs


def test_it_needs_a_world_and_a_log():
    with pytest.raises(ConfigError, match="both env"):
        learn(H2O(), data="pendulum-medium", steps=10)
    with pytest.raises(ConfigError, match="both env"):
        learn(H2O(), env="pendulum", steps=2_000)
    with pytest.raises(ConfigError, match="keep a log apart"):
        learn(H2O(), env="pendulum", data="pendulum-medium", mix="proportional", steps=2_000)


@pytest.mark.parametrize("bad", [{"penalty": -1.0}, {"gap_samples": 0}, {"gap_noise": -1.0}, {"batch_size": 2}])
def test_what_makes_no_sense_is_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        H2O(**bad)
