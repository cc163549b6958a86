"""SAC: the soft target, the actor's divergence and the temperature."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.methods.online.sac import SAC

from .cases import HIDDEN, KEY, batch_for, box_spec, close, flat, gradient, linear_critics

SPEC = box_spec()
BATCH = batch_for(SPEC)


def started(**settings):
    learner = SAC(hidden=HIDDEN, **settings)
    return learner, learner.init(SPEC, KEY)


def next_actions(state):
    """The actions and log densities that the critic's target uses."""
    keys = jax.random.split(KEY, BATCH.size)
    return jax.vmap(lambda o, k: state.actor(o).sample_and_log_prob(k))(BATCH.next_obs, keys)


@pytest.mark.parametrize("soft", [True, False])
def test_the_target_is_the_smaller_target_critic_less_the_log_density_and_nothing_after_termination(soft):
    learner, state = started(temperature=0.3, discount=0.9, soft_backup=soft)
    state = dataclasses.replace(state, target_critic=linear_critics(([1.0, 0.0], 0.0), ([0.0, 1.0], 0.1)))
    action, log_prob = next_actions(state)
    value = jnp.minimum(action[:, 0], action[:, 1] + 0.1) - (0.3 * log_prob if soft else 0.0)
    target = BATCH.reward + 0.9 * jnp.where(BATCH.terminated, 0.0, value)
    q = jax.vmap(state.critic)(BATCH.obs, BATCH.action)
    expected = 0.5 * ((q - target[:, None]) ** 2).mean(0).sum()
    close(learner.critic_loss(state.critic, state, BATCH, KEY)[0], expected)


def test_the_log_density_of_an_action_is_that_of_the_squashed_gaussian():
    _, state = started()
    action, log_prob = next_actions(state)
    dist = jax.vmap(state.actor)(BATCH.next_obs)
    gaussian = jax.vmap(lambda d, a: d.base.log_prob(jnp.arctanh(a)))(dist, action)
    close(log_prob, gaussian - jnp.log1p(-(action**2)).sum(-1), rtol=1e-3)


def test_with_a_flat_critic_the_actor_only_raises_its_entropy():
    learner, state = started(temperature=0.5)
    flat_state = dataclasses.replace(state, critic=linear_critics(([0.0, 0.0], 7.0), ([0.0, 0.0], 3.0)))
    loss, metrics = learner.actor_loss(state.actor, flat_state, BATCH, KEY)
    close(loss, -0.5 * metrics["entropy"] - 3.0)
    _, cold = started(temperature=1e-30)
    cold = dataclasses.replace(cold, critic=linear_critics(([1.0, 2.0], 0.0), ([1.0, 2.0], 0.0)))
    keys = jax.random.split(KEY, BATCH.size)
    action = jax.vmap(lambda o, k: cold.actor(o).sample(k))(BATCH.obs, keys)
    close(learner.actor_loss(cold.actor, cold, BATCH, KEY)[0], -(action @ jnp.array([1.0, 2.0])).mean())


@pytest.mark.parametrize(("target", "expected"), [(None, -2.0), (-0.5, -0.5)])
def test_the_temperature_falls_while_the_entropy_exceeds_its_target_and_rises_below_it(target, expected):
    learner, state = started(target_entropy=target, temperature=0.3)
    for entropy in (expected - 1, expected, expected + 1):
        slope = jax.grad(lambda x, e=entropy: learner.temperature_loss(x, state, jnp.float32(e))[0])(
            state.log_temperature
        )
        np.testing.assert_allclose(slope, 0.3 * (entropy - expected), atol=1e-6)


def test_a_fixed_temperature_stays():
    learner, state = started(tune_temperature=False, temperature=0.3)
    after, metrics = learner.update(state, BATCH, KEY)
    assert after.log_temperature == state.log_temperature and metrics["temperature"] == pytest.approx(0.3)
    tuned = SAC(hidden=HIDDEN, temperature=0.3)
    assert tuned.update(state, BATCH, KEY)[0].log_temperature != state.log_temperature


def test_target_critics_follow_by_polyak_averages_of_the_new_critics():
    learner, state = started(tau=0.25)
    after, _ = learner.update(state, BATCH, KEY)
    close(flat(after.target_critic), 0.75 * flat(state.target_critic) + 0.25 * flat(after.critic))


def test_the_actor_climbs_the_smaller_of_the_critics():
    learner, state = started(temperature=1e-30)
    low, high = ([1.0, 0.0], -5.0), ([0.0, 1.0], 5.0)
    both, lower = (dataclasses.replace(state, critic=linear_critics(*pair)) for pair in ((low, high), (low, low)))
    close(*(gradient(learner.actor_loss, state.actor, s, BATCH, KEY) for s in (both, lower)))
