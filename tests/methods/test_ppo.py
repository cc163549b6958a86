"""PPO: the clipped surrogate, and how many steps are taken on it."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from habitus.core.returns import standardise
from habitus.methods.online.ppo import PPO
from habitus.nets.losses import prepare_round

from .cases import HIDDEN, KEY, batch_for, box_spec, close, discrete_spec, flat, gradient

SPECS = {"real": box_spec(), "discrete": discrete_spec()}
every_kind = pytest.mark.parametrize("kind", SPECS)


def rollout(spec, time=16, envs=4, seed=0):
    rows = batch_for(spec, time * envs, seed)
    return jax.tree.map(lambda x: x.reshape(time, envs, *x.shape[1:]), rows)


def started(kind="real", **settings):
    """A learner, its first state, and a roll-out made ready."""
    learner = PPO(hidden=HIDDEN, **settings)
    state = learner.init(SPECS[kind], KEY)
    return learner, state, prepare_round(state.actor, state.critic, rollout(SPECS[kind]), 0.99, 0.95)


def log_probs(actor, batch):
    return jax.vmap(lambda o, a: actor(o).log_prob(a))(batch.obs, batch.action)


@every_kind
def test_at_the_policy_that_collected_the_gradient_is_the_policy_gradient(kind):
    learner, state, batch = started(kind)

    def policy_gradient(actor, *_):
        return -(log_probs(actor, batch) * standardise(batch.advantage)).mean(), {}

    close(
        gradient(learner.actor_loss, state.actor, state, batch, KEY), gradient(policy_gradient, state.actor), atol=1e-5
    )


@pytest.mark.parametrize(
    ("ratio", "sign", "held"), [(1.5, 1, True), (0.5, -1, True), (1.5, -1, False), (0.5, 1, False)]
)
def test_no_gradient_comes_from_a_ratio_that_has_already_moved_too_far_the_right_way(ratio, sign, held):
    learner, state, batch = started()
    rows = 8
    current = log_probs(state.actor, batch)[:rows]
    moving = jnp.where(jnp.arange(rows) == 0, ratio, 1.0)  # the other rows only make the advantages standard
    advantage = jnp.where(jnp.arange(rows) == 0, float(sign), -sign / (rows - 1))
    batch = jax.tree.map(lambda x: x[:rows], batch)
    batch = dataclasses.replace(batch, log_prob=current - jnp.log(moving), advantage=advantage)

    def of_the_others(actor, *_):
        steps = jnp.exp(log_probs(actor, batch) - batch.log_prob) * standardise(advantage)
        return -jnp.where(jnp.arange(rows) == 0, 0.0, steps).mean(), {}

    found, others = gradient(learner.actor_loss, state.actor, state, batch, KEY), gradient(of_the_others, state.actor)
    assert np.allclose(flat(found), flat(others), atol=1e-6) == held


def test_the_surrogate_is_a_lower_bound_of_the_unclipped_one():
    learner, state, batch = started()
    batch = dataclasses.replace(batch, log_prob=batch.log_prob + 0.5 * jax.random.normal(KEY, batch.log_prob.shape))
    free = PPO(hidden=HIDDEN, clip=1e6)
    clipped, plain = (m.actor_loss(state.actor, state, batch, KEY)[0] for m in (learner, free))
    assert clipped > plain + 1e-3


@every_kind
def test_the_entropy_bonus_is_its_weight_times_the_mean_entropy(kind):
    learner, state, batch = started(kind)
    weighted = PPO(hidden=HIDDEN, entropy=0.1)
    plain, bonus = (m.actor_loss(state.actor, state, batch, KEY)[0] for m in (learner, weighted))
    entropy = jax.vmap(lambda o: state.actor(o).entropy())(batch.obs).mean()
    close(plain - bonus, 0.1 * entropy)


def steps_taken(opt_state):
    return [int(x.count) for x in jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
            if isinstance(x, optax.ScaleByAdamState)]  # fmt: skip


def test_an_update_takes_a_step_for_every_whole_minibatch_of_every_epoch():
    learner = PPO(hidden=HIDDEN, epochs=3, minibatch_size=24)
    after, _ = learner.update(learner.init(SPECS["real"], KEY), rollout(SPECS["real"]), KEY)
    assert steps_taken(after.actor_opt) == steps_taken(after.critic_opt) == [3 * (64 // 24)]


def test_advantages_and_targets_are_those_of_the_policy_that_collected_throughout():
    """One epoch of one minibatch is one step on the loss at the start, whatever the order of the rows."""
    learner, state, batch = started(epochs=1, minibatch_size=64, max_grad_norm=1e9)
    after, metrics = learner.update(state, rollout(SPECS["real"]), KEY)
    gain = optax.chain(optax.clip_by_global_norm(1e9), optax.adam(3e-4, eps=1e-5))
    for name, loss in (("actor", learner.actor_loss), ("critic", learner.critic_loss)):
        network = getattr(state, name)
        found = gradient(loss, network, state, batch, KEY)
        updates, _ = gain.update(found, gain.init(eqx.filter(network, eqx.is_inexact_array)))
        close(getattr(after, name), eqx.apply_updates(network, updates), rtol=1e-4, atol=2e-5)
    assert abs(float(metrics["kl"])) < 1e-6


def test_observations_are_normalised_by_what_was_seen_before_and_the_policy_does_it_too():
    learner = PPO(hidden=HIDDEN, normalise_obs=True)
    state = learner.init(SPECS["real"], KEY)
    rows = rollout(SPECS["real"])
    rows = dataclasses.replace(rows, obs=5 * rows.obs + 3)
    after, _ = learner.update(state, rows, KEY)
    seen = rows.obs.reshape(-1, 3)
    np.testing.assert_allclose(after.moments.mean, seen.mean(0), rtol=1e-3)
    np.testing.assert_allclose(after.moments.var, seen.var(0), rtol=1e-3)
    plain = PPO(hidden=HIDDEN)
    same_start = plain.init(SPECS["real"], KEY)
    moved, _ = plain.update(same_start, rows, KEY)
    close(after.actor, moved.actor, rtol=1e-3, atol=1e-5)  # nothing had been seen before: as without
    action, _ = learner.policy(after)(rows.obs[0, 0], (), KEY)
    close(action, after.actor((rows.obs[0, 0] - after.moments.mean) / jnp.sqrt(after.moments.var)).mode(), rtol=1e-3)
