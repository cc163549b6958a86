"""A2PR: which action the actor is pulled to, when it is let go, and what the auto-encoder learns from."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.core.returns import td_target
from habitus.data.dataset import Dataset
from habitus.methods.offline.a2pr import A2PR
from habitus.methods.offline.td3bc import TD3BC
from habitus.nets.distributions import Normal
from habitus.nets.vae import standard_kl
from habitus.train.loop import learn

from .cases import HIDDEN, KEY, batch_for, box_spec, close, gradient

SPEC = box_spec()
ROWS = batch_for(SPEC, 64)
SMALL = dict(hidden=HIDDEN, critic_hidden=HIDDEN, vae_hidden=HIDDEN)


class Constant:
    """A value that is the same in every state."""

    def __init__(self, value):
        self.value = value

    def __call__(self, obs):
        return jnp.asarray(self.value)


class Echo:
    """An auto-encoder that proposes whatever `actions` [batch] it was given, in order of the batch."""

    def __init__(self, actions):
        self.actions = actions

    def __call__(self, obs, action, key):
        return self.actions[jnp.argmin(jnp.abs(ROWS.obs - obs).sum(1))]


def start(value=None, vae=None, **settings):
    """A learner and its first state, with parts replaced."""
    learner = A2PR(**SMALL | settings)
    state = learner.init(SPEC, KEY)
    # an Equinox module takes any callable here: the losses only call them
    if value is not None:
        object.__setattr__(state, "value", Constant(value))
    if vae is not None:
        object.__setattr__(state, "vae", vae)
    return learner, state


def pull(learner, state):
    action = jax.vmap(state.actor)(ROWS.obs)
    return action, *learner.regulariser(state, ROWS, action, KEY)


# --- the auto-encoder


def test_where_no_action_is_good_only_the_kl_moves_the_auto_encoder():
    learner, state = start(value=jnp.inf)
    loss, metrics = learner.vae_loss(state.vae, state, ROWS, KEY)
    posterior = jax.vmap(state.vae.encode)(ROWS.obs, ROWS.action)
    assert float(metrics["good"]) == 0
    np.testing.assert_allclose(loss, 0.5 * jax.vmap(standard_kl)(posterior).mean(), rtol=1e-6)
    found = gradient(learner.vae_loss, state.vae, state, ROWS, KEY)
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(found.decoder))
    assert any(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(found.encoder))


def test_only_good_actions_are_rebuilt():
    learner, state = start(kl_weight=0.0)
    good = np.asarray(learner.advantage(state, ROWS, ROWS.action) > 0)
    assert 0 < good.sum() < 64
    changed = dataclasses.replace(ROWS, action=jnp.where(good[:, None], ROWS.action, 0.5))
    still = np.asarray(learner.advantage(state, changed, changed.action) > 0)
    kept = good | ~still  # rows whose action was replaced by another that is not good either
    rows = jax.tree.map(lambda x: x[kept], (ROWS, changed))
    a, b = (gradient(learner.vae_loss, state.vae, state, r, KEY) for r in rows)
    close(a.decoder, b.decoder)


def test_the_kl_is_a_mean_over_latent_dimensions():
    assert float(standard_kl(Normal(jnp.zeros(4), jnp.zeros(4)))) == 0
    assert float(standard_kl(Normal(jnp.ones(4), jnp.zeros(4)))) == pytest.approx(0.5)


# --- the pull


def test_the_gate_is_shut_where_nothing_beats_the_value_and_open_where_everything_does():
    for value, share in ((jnp.inf, 0.0), (-jnp.inf, 1.0)):
        learner, state = start(value=value, vae=Echo(ROWS.action), reg_weight=0.7)
        action, loss, metrics = pull(learner, state)
        assert float(metrics["gate"]) == share
        np.testing.assert_allclose(loss, share * 0.7 * ((action - ROWS.action) ** 2).mean(), rtol=1e-6)
    learner, state = start(value=jnp.inf)
    q = jax.vmap(state.critic.members[0])(ROWS.obs, jax.vmap(state.actor)(ROWS.obs))
    loss, _ = learner.actor_loss(state.actor, state, ROWS, KEY)
    np.testing.assert_allclose(loss, -2.5 * q.mean() / jnp.abs(q).mean(), rtol=1e-5)


def test_an_auto_encoder_that_repeats_the_log_leaves_gated_cloning_and_an_open_gate_td3bc():
    learner, state = start(vae=Echo(ROWS.action), reg_weight=1.0)
    action, loss, metrics = pull(learner, state)
    gate = learner.advantage(state, ROWS, ROWS.action) >= 0
    assert 0 < float(gate.mean()) < 1
    np.testing.assert_allclose(loss, (gate[:, None] * (action - ROWS.action) ** 2).mean(), rtol=1e-6)
    learner, state = start(value=-jnp.inf, vae=Echo(ROWS.action), reg_weight=1.0)
    ours, _ = learner.actor_loss(state.actor, state, ROWS, KEY)
    theirs, _ = TD3BC(hidden=HIDDEN).actor_loss(state.actor, state, ROWS, KEY)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_the_better_of_both_actions_attracts_and_a_tie_goes_to_the_generated_one():
    other = -ROWS.action
    learner, state = start(value=0.0, vae=Echo(other), reg_weight=1.0)
    q_other, q_logged = (jax.vmap(state.critic.members[0])(ROWS.obs, a) for a in (other, ROWS.action))
    anchor = jnp.where((q_other >= q_logged)[:, None], other, ROWS.action)
    action, loss, metrics = pull(learner, state)
    gate = (q_other >= 0) | (q_logged > 0)
    assert 0 < float(metrics["generated"]) < 1
    np.testing.assert_allclose(loss, (gate[:, None] * (action - anchor) ** 2).mean(), rtol=1e-5)
    tied = start(vae=Echo(ROWS.action))
    assert float(pull(*tied)[2]["generated"]) == 1


def test_the_gradient_reaches_the_actor_through_the_generated_action_unless_it_is_detached():
    found = {}
    for detach in (False, True):
        learner, state = start(detach_target=detach, value=-1e9)
        found[detach] = jax.tree.leaves(gradient(learner.actor_loss, state.actor, state, ROWS, KEY))
    assert any(not np.allclose(a, b, atol=1e-7) for a, b in zip(found[False], found[True], strict=True))


# --- the value


def test_the_target_of_the_value_is_at_most_that_of_the_critics():
    learner, state = start()
    state = dataclasses.replace(state, target_critic=learner.init(SPEC, jax.random.key(7)).critic)
    action = learner.next_action(state, ROWS, KEY)
    q = {n: jax.vmap(getattr(state, n))(ROWS.next_obs, action).min(-1) for n in ("critic", "target_critic")}
    td3 = td_target(ROWS.reward, ROWS.terminated, q["target_critic"], 0.99)
    target = td_target(ROWS.reward, ROWS.terminated, jnp.minimum(*q.values()), 0.99)
    assert (target <= td3).all() and (target < td3).any()
    seen, _ = learner.value_loss(state.value, state, ROWS, KEY)
    np.testing.assert_allclose(seen, ((jax.vmap(state.value)(ROWS.obs) - target) ** 2).mean(), rtol=1e-5)


def test_auto_encoder_and_actor_see_the_value_from_before_its_step():
    learner, state = start(actor_delay=1)
    pushed = dataclasses.replace(state, value_opt=jax.tree.map(lambda x: x + 1, state.value_opt))
    (ours, _), (theirs, _) = (learner.update(s, ROWS, KEY) for s in (state, pushed))
    assert not np.allclose(*(jax.tree.leaves(s.value)[0] for s in (ours, theirs)))
    close(ours.vae, theirs.vae)
    close(ours.actor, theirs.actor)


# --- what it is for


def bandit(rows=1000):
    """One state; one action in five is +0.5 and pays 1, the others are -0.5 and pay nothing."""
    good = np.arange(rows) % 5 == 0
    return Dataset.from_arrays(
        obs=np.zeros((rows, 1), np.float32),
        next_obs=np.zeros((rows, 1), np.float32),
        action=np.where(good, 0.5, -0.5).astype(np.float32)[:, None],
        reward=good.astype(np.float32),
        terminated=np.ones(rows, bool),
        truncated=np.zeros(rows, bool),
        observation_space=box_spec(1, 1).observation_space,
        action_space=box_spec(1, 1).action_space,
    )


def test_on_a_mostly_poor_log_it_finds_the_good_action_where_cloning_stays_with_the_poor_one():
    log, found = bandit(), {}
    wide = dict(hidden=(64, 64))
    ours = A2PR(alpha=0.1, reg_weight=1.0, critic_hidden=(64, 64), vae_hidden=(64, 64), **wide)
    for name, learner in {"a2pr": ours, "td3bc": TD3BC(alpha=0.1, **wide)}.items():
        run = learn(learner, log, 3_000, seeds=2, points=1)
        obs = jnp.zeros(1)
        found[name] = [float(s.actor(obs)[0]) for s in run.states]
        if name == "a2pr":
            for state in run.states:
                assert float(state.value(obs)) == pytest.approx(0.2, abs=0.05)
                draws = jax.vmap(state.vae, (None, None, 0))(obs, state.actor(obs), jax.random.split(KEY, 100))
                assert float(draws.mean()) == pytest.approx(0.5, abs=0.03) and float(draws.std()) < 0.05
    assert min(found["a2pr"]) > 0.4 and max(found["td3bc"]) < 0


@pytest.mark.parametrize("bad", [{"reg_weight": -1.0}, {"vae_weight": -0.1}, {"kl_weight": -0.1}])
def test_what_makes_no_sense_is_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        A2PR(**bad)
