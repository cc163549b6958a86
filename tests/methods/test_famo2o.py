"""FamO2O: the code of a balance, the family of policies, and who learns from what in which stage."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from habitus.core.errors import ConfigError
from habitus.core.trees import descend, trainable
from habitus.data.dataset import Dataset
from habitus.methods.offline.famo2o import FamO2O, within
from habitus.methods.offline.iql import IQL
from habitus.nets.distributions import Normal
from habitus.nets.embedding import sinusoidal
from habitus.train.loop import learn

from .cases import HIDDEN, KEY, batch_for, box_spec, close, gradient, same

SPEC = box_spec()
ROWS = batch_for(SPEC, 64)


def start(**settings):
    learner = FamO2O(**dict(hidden=HIDDEN) | settings)
    return learner, learner.init(SPEC, KEY)


def test_the_code_of_a_balance_is_its_sines_and_cosines():
    beta = 3.0
    known = [f(beta / d) for d in (1, 10_000 ** (1 / 3), 10_000 ** (2 / 3)) for f in (np.sin, np.cos)]
    np.testing.assert_allclose(sinusoidal(jnp.asarray(beta), 6), known, rtol=1e-5)
    assert 10_000 ** (1 / 3) == pytest.approx(21.544, abs=1e-3)


def test_the_ends_of_the_squashed_range_are_the_ends_of_the_balances():
    assert [float(within(0.5, 8.0, jnp.array([x]))) for x in (-1.0, 0.0, 1.0)] == [0.5, 4.25, 8.0]


def test_with_one_balance_the_loss_is_that_of_iql_with_this_temperature():
    learner, state = start(low=3.0, high=3.0)
    code = sinusoidal(jnp.asarray(3.0), 6)
    plain = IQL(temperature=3.0, hidden=HIDDEN)
    loss, _ = learner.actor_loss(state.actor, state, ROWS, KEY)
    other = dataclasses.replace(state, balance=learner.init(SPEC, jax.random.key(9)).balance)
    for seen in (state, other):  # the balance policy has no effect
        assert loss == learner.actor_loss(state.actor, seen, ROWS, KEY)[0]

    def fixed(obs):  # a network with a constant further input
        mean = jnp.tanh(state.actor.mlp(jnp.concatenate([obs, code])))
        return Normal(mean, jnp.clip(state.actor.log_std, -5.0, 2.0))

    values = {name: getattr(state, name) for name in ("critic", "value", "target_critic")}
    theirs = dataclasses.replace(plain.init(SPEC, KEY), **values)
    np.testing.assert_allclose(loss, plain.actor_loss(fixed, theirs, ROWS, KEY)[0], rtol=1e-5)


def test_balance_zero_is_cloning_and_the_weight_is_capped():
    learner, state = start(low=0.0, high=0.0)
    loss, metrics = learner.actor_loss(state.actor, state, ROWS, KEY)
    np.testing.assert_allclose(loss, -metrics["log_prob"], rtol=1e-6)
    learner, state = start(low=1e6, high=1e6, max_weight=100.0)
    advantage = learner.advantage(state.value, state, ROWS)
    log_prob = jax.vmap(lambda o, a: state.actor(o, jnp.asarray(1e6)).log_prob(a))(ROWS.obs, ROWS.action)
    loss, _ = learner.actor_loss(state.actor, state, ROWS, KEY)
    np.testing.assert_allclose(loss, -(jnp.where(advantage > 0, 100.0, 0.0) * log_prob).mean(), rtol=1e-5)


def test_the_balance_step_leaves_every_other_network_untouched_and_the_reverse():
    learner, state = start()
    found = gradient(learner.balance_loss, state.balance, state, ROWS, KEY)
    assert jax.tree.structure(found) == jax.tree.structure(trainable(state.balance))
    pushed = dataclasses.replace(
        state, balance_opt=jax.tree.map(lambda x: x + 1, state.balance_opt), temperature_opt=state.temperature_opt
    )
    (ours, _), (theirs, _) = (learner.update(s, ROWS, KEY) for s in (state, pushed))
    assert not same(ours.balance, theirs.balance)
    for name in ("actor", "critic", "value", "target_critic", "log_temperature"):
        assert same(getattr(ours, name), getattr(theirs, name)), name
    pushed = dataclasses.replace(state, actor_opt=jax.tree.map(lambda x: x + 1, state.actor_opt))
    theirs, _ = learner.update(pushed, ROWS, KEY)
    assert not same(ours.actor, theirs.actor) and same(ours.balance, theirs.balance)


def test_where_actions_do_not_matter_the_balance_spreads_to_the_entropy_of_a_flat_density():
    learner, state = start(learning_rate=3e-3)
    flat = jax.tree.map(lambda x: jnp.zeros_like(x), trainable(state.target_critic))
    state = dataclasses.replace(
        state, target_critic=jax.tree.map(lambda z, x: z if z is not None else x, flat, state.target_critic)
    )

    @jax.jit
    def step(balance, opt, key):
        now = dataclasses.replace(state, balance=balance)
        return descend(optax.adam(3e-3), learner.balance_loss, balance, opt, now, ROWS, key)[:2]

    balance, opt = state.balance, state.balance_opt
    for i in range(1500):
        balance, opt = step(balance, opt, jax.random.key(i))
    normal = jax.vmap(balance)(ROWS.obs).base
    assert float(jnp.exp(normal.log_std).mean()) == pytest.approx(0.87, abs=0.08)
    draws = jax.vmap(lambda o, k: balance(o).sample(k))(ROWS.obs, jax.random.split(KEY, 64))
    middle = (learner.low + learner.high) / 2
    betas = jax.vmap(within, (None, None, 0))(learner.low, learner.high, jnp.tanh(normal.mean))
    assert float(betas.mean()) == pytest.approx(middle, rel=0.05) and float(jnp.abs(draws.mean())) < 0.3


def test_balances_are_uniform_offline_and_chosen_online_and_no_gradient_reaches_the_chooser():
    learner, state = start(low=0.0, high=1.0)
    many = batch_for(SPEC, 4096)
    offline = learner.balances(state, many, KEY)
    assert float(offline.mean()) == pytest.approx(0.5, abs=0.03) and float(offline.std()) == pytest.approx(
        12**-0.5, abs=0.02
    )
    online = dataclasses.replace(state, online=jnp.array(True))
    chosen = learner.balances(online, many, KEY)
    sampled = jax.vmap(lambda o, k: within(0.0, 1.0, online.balance(o).sample(k)))(
        many.obs, jax.random.split(KEY, 4096)
    )
    close(chosen, sampled)

    def loss(balance, *_):
        return learner.actor_loss(state.actor, dataclasses.replace(online, balance=balance), many, KEY)

    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(gradient(loss, state.balance)))


def bandit(rows=2_000):
    """One state, actions uniform in [-1, 1], which pay themselves."""
    action = np.random.default_rng(0).uniform(-1, 1, (rows, 1)).astype(np.float32)
    obs = np.random.default_rng(1).normal(size=(rows, 1)).astype(np.float32)
    return Dataset.from_arrays(
        obs=obs,
        next_obs=obs,
        action=action,
        reward=action[:, 0],
        terminated=np.ones(rows, bool),
        truncated=np.zeros(rows, bool),
        observation_space=box_spec(1, 1).observation_space,
        action_space=box_spec(1, 1).action_space,
    )


def test_the_family_goes_from_cautious_to_greedy():
    run = learn(FamO2O(low=0.0, high=6.0, hidden=(32, 32), learning_rate=1e-3), bandit(), 2_500, points=1)
    obs = jnp.zeros(1)
    means = [float(run.states[0].actor(obs, jnp.asarray(b)).mean[0]) for b in (0.0, 1.0, 3.0, 6.0)]
    assert means == sorted(means) and abs(means[0]) < 0.15 and means[-1] > 0.5


def test_the_stage_changes_as_a_run_goes_on_in_a_world():
    small = dict(hidden=HIDDEN, batch_size=32)
    before = learn(FamO2O(**small), data="pendulum-medium", steps=20, points=1)
    after = learn(
        FamO2O(**small), env="pendulum", data="pendulum-medium", mix="proportional", steps=40, points=1,
        warm_start=before, source_options={"warmup": 20, "capacity": 400},
    )  # fmt: skip
    assert not before.states[0].online and after.states[0].online
    assert not same(before.states[0].actor, after.states[0].actor)


@pytest.mark.parametrize("bad", [{"low": 6.0}, {"waves": 5}, {"low": -1.0}, {"temperature": 0.0}])
def test_what_makes_no_sense_is_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        FamO2O(**bad)
