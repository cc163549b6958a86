"""TD3+BC: the target of TD3, and an actor's loss that scales with neither rewards nor critics."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.methods.offline.td3bc import TD3BC

from .cases import HIDDEN, KEY, batch_for, box_spec, close, flat, gradient, linear_critics, log_of, same

SPEC = box_spec()
BATCH = batch_for(SPEC)


def started(**settings):
    learner = TD3BC(hidden=HIDDEN, **settings)
    return learner, learner.init(SPEC, KEY)


def test_the_target_is_the_smaller_target_critic_at_the_target_action_and_nothing_after_termination():
    learner, state = started(noise=0.0, discount=0.9)
    state = dataclasses.replace(state, target_critic=linear_critics(([1.0, 0.0], 0.0), ([0.0, 1.0], 0.5)))
    action = jax.vmap(state.target_actor)(BATCH.next_obs)
    value = jnp.minimum(action[:, 0], action[:, 1] + 0.5)
    target = BATCH.reward + 0.9 * jnp.where(BATCH.terminated, 0.0, value)
    q = jax.vmap(state.critic)(BATCH.obs, BATCH.action)
    expected = ((q - target[:, None]) ** 2).mean(0).sum()
    close(learner.critic_loss(state.critic, state, BATCH, KEY)[0], expected)


def test_the_noise_of_the_target_action_is_clipped_and_the_action_stays_in_bounds():
    learner, state = started(noise=1e6, noise_clip=0.5, discount=1.0)
    state = dataclasses.replace(state, target_critic=linear_critics(([1.0, 10.0], 0.0), ([1.0, 10.0], 0.0)))
    noise = 0.5 * jnp.sign(jax.random.normal(KEY, BATCH.action.shape))
    action = jnp.clip(jax.vmap(state.target_actor)(BATCH.next_obs) + noise, -1, 1)
    value = action @ jnp.array([1.0, 10.0])
    target = BATCH.reward + jnp.where(BATCH.terminated, 0.0, value)
    q = jax.vmap(state.critic)(BATCH.obs, BATCH.action)
    close(learner.critic_loss(state.critic, state, BATCH, KEY)[0], ((q - target[:, None]) ** 2).mean(0).sum())


def test_the_actor_does_not_notice_the_scale_of_the_critic():
    learner, state = started()
    first = state.critic.members[0].mlp.layers[-1]
    scaled = dataclasses.replace(
        state, critic=jax.tree.map(lambda x: 100 * x if x is first.weight or x is first.bias else x, state.critic)
    )
    ours, theirs = (gradient(learner.actor_loss, state.actor, s, BATCH, KEY) for s in (state, scaled))
    close(ours, theirs, rtol=1e-4)


def test_with_a_large_alpha_the_actor_climbs_the_critic_and_with_a_small_one_it_clones():
    _, state = started()

    def climbing(actor, *_):
        return -jax.vmap(state.critic.members[0])(BATCH.obs, jax.vmap(actor)(BATCH.obs)).mean(), {}

    def cloning(actor, *_):
        return ((jax.vmap(actor)(BATCH.obs) - BATCH.action) ** 2).mean(), {}

    for alpha, loss in ((1e6, climbing), (1e-6, cloning)):
        ours = flat(gradient(TD3BC(hidden=HIDDEN, alpha=alpha).actor_loss, state.actor, state, BATCH, KEY))
        theirs = flat(gradient(loss, state.actor))
        assert ours @ theirs / jnp.linalg.norm(ours) / jnp.linalg.norm(theirs) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("delay", [1, 3])
def test_actor_and_targets_move_only_with_every_delayed_update(delay):
    learner, state = started(actor_delay=delay)
    for step in range(1, 7):
        after, _ = learner.update(state, BATCH, jax.random.fold_in(KEY, step))
        for name in ("actor", "target_actor", "target_critic"):
            assert same(getattr(after, name), getattr(state, name)) == (step % delay != 0)
        assert not same(after.critic, state.critic)
        state = after


def test_targets_follow_by_polyak_averages():
    learner, state = started(actor_delay=1, tau=0.25)
    after, _ = learner.update(state, BATCH, KEY)
    close(flat(after.target_critic), 0.75 * flat(state.target_critic) + 0.25 * flat(after.critic))
    close(flat(after.target_actor), 0.75 * flat(state.target_actor) + 0.25 * flat(after.actor))


def test_observations_are_standardised_by_the_log_and_the_policy_does_it_too():
    shifted = dataclasses.replace(BATCH, obs=1000 * BATCH.obs + 50, next_obs=1000 * BATCH.next_obs + 50)
    spec = dataclasses.replace(SPEC, dataset=log_of(shifted, SPEC))
    learner = TD3BC(hidden=HIDDEN)
    state = learner.init(spec, KEY)
    seen = state.normaliser.transition(shifted)
    np.testing.assert_allclose(seen.obs.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(seen.obs.std(0), 1, rtol=1e-4)
    action, _ = learner.policy(state)(shifted.obs[0], (), KEY)
    close(action, state.actor(seen.obs[0]), rtol=1e-3)
