"""Uni-O4: the clones, the trust regions and who moves them, and the switch to the world."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from habitus.core.errors import ConfigError
from habitus.core.trees import copy, descend, take, trainable
from habitus.methods.offline.uni_o4 import UniO4
from habitus.methods.online.uni_o4_online import UniO4Online
from habitus.nets.heads import SquashedHead
from habitus.nets.losses import clipped_value_loss
from habitus.train.loop import learn

from .cases import HIDDEN, KEY, batch_for, box_spec, close, gradient, log_of, same

SPEC = box_spec()
ROWS = batch_for(SPEC, 64)
SMALL = dict(hidden=HIDDEN, dynamics_hidden=HIDDEN, models=2, elites=1, gate_starts=16, gate_horizon=5, policies=3)


def start(updates=1_000, **settings):
    learner = UniO4(**SMALL | settings)
    spec = dataclasses.replace(SPEC, dataset=log_of(ROWS, SPEC), updates=updates)
    return learner, learner.init(spec, KEY)


def at(state, improved):
    """The state after so many steps of the last stage."""
    return dataclasses.replace(state, step=state.ends[1] + improved)


def each(learner, actor, i):
    return take(actor, i)


# --- the policies


def test_means_are_actions_and_spreads_are_between_their_bounds():
    big = jax.tree.map(lambda x: 50.0 * x if eqx.is_inexact_array(x) else x, SquashedHead(SPEC, HIDDEN, KEY))
    for actor in (SquashedHead(SPEC, HIDDEN, KEY), big):
        dist = jax.vmap(actor)(ROWS.obs)
        assert (jnp.abs(dist.mean) <= 1).all() and (dist.log_std >= -5).all() and (dist.log_std <= 0).all()


def test_the_heuristic_difference_is_only_a_faster_clone():
    learner, state = start(difference="heuristic", diversity=0.3)
    plain, _ = start(diversity=0.0)
    ours, base = (gradient(m.clone_loss, state.actor, state, ROWS, KEY) for m in (learner, plain))
    close(ours, jax.tree.map(lambda x: 1.3 * x, base), atol=1e-5)


def test_one_policy_is_a_plain_clone():
    learner, state = start(policies=1, diversity=0.5)
    loss, _ = learner.clone_loss(state.actor, state, ROWS, KEY)
    dist = jax.vmap(take(state.actor, 0))(ROWS.obs)
    np.testing.assert_allclose(loss, -jax.vmap(lambda d, a: d.log_prob(a))(dist, ROWS.action).mean(), rtol=1e-5)


def apart(actor, n):
    """Mean KL over all ordered pairs of policies."""
    dists = [jax.vmap(take(actor, i))(ROWS.obs) for i in range(n)]
    pairs = [(p, q) for p in dists for q in dists if p is not q]
    return float(np.mean([jax.vmap(lambda a, b: a.kl(b))(p, q).mean() for p, q in pairs]))


def test_policies_grow_apart_with_the_weight_of_diversity():
    found = []
    for weight in (0.0, 0.1, 0.5):
        learner, state = start(diversity=weight)
        adam = optax.adam(1e-3)
        step = eqx.filter_jit(
            lambda actor, opt, learner=learner, state=state, adam=adam: descend(
                adam, learner.clone_loss, actor, opt, state, ROWS, KEY
            )[:2]
        )
        actor, opt = state.actor, adam.init(trainable(state.actor))
        for _ in range(300):
            actor, opt = step(actor, opt)
        found.append(apart(actor, 3))
    assert found[0] < found[1] < found[2]


# --- the clipped objective


def test_inside_its_trust_region_the_loss_is_zero_and_its_gradient_the_policy_gradient():
    learner, state = start(policies=1)
    state = dataclasses.replace(at(state, 1), old=copy(state.actor))
    loss, _ = learner.improve_loss(state.actor, state, ROWS, KEY)
    assert abs(float(loss)) < 1e-5

    def policy_gradient(actor, *_):
        old, new = (jax.vmap(take(a, 0))(ROWS.obs) for a in (state.old, actor))
        action = jax.vmap(lambda d, k: d.sample(k))(old, jax.random.split(jax.random.split(KEY, 1)[0], 64))
        q = jax.vmap(state.critic)(ROWS.obs, action).min(-1) - jax.vmap(state.value)(ROWS.obs)
        advantage = (q - q.mean()) / (q.std() + 1e-8)
        return -(advantage * jax.vmap(lambda d, a: d.log_prob(a))(new, action)).mean(), {}

    close(
        gradient(learner.improve_loss, state.actor, state, ROWS, KEY),
        gradient(policy_gradient, state.actor),
        atol=1e-4,
    )


def test_the_trust_region_and_the_rate_shrink_as_in_the_authors_code_or_to_nothing():
    sizes = {}
    for decay in ("partial", "full"):
        learner, state = start(clip_decay=decay, improve_share=0.75, clone_share=0.2, updates=10_000 * 4 // 3)
        planned = int(state.ends[2] - state.ends[1])
        assert planned == 10_000
        # far outside the region only the clipped branch is left: its size shows how wide the region is
        far = jax.tree.map(lambda x: x + 0.3 if eqx.is_inexact_array(x) else x, state.actor)
        sizes[decay] = [
            float(learner.improve_loss(far, dataclasses.replace(at(state, n), old=state.actor), ROWS, KEY)[0])
            for n in (0, 200, 5_000, 9_999)
        ]
    first, second, third, last = sizes["partial"]
    assert first == pytest.approx(sizes["full"][0]) and second == third == last != first
    assert len(set(sizes["full"])) == 4
    learner, state = start()
    grads = jax.tree.map(jnp.ones_like, trainable(state.actor))
    improver = learner.improver(jnp.asarray(100.0))
    opt, steps = improver.init(trainable(state.actor)), []
    for _ in range(100):
        moved, opt = improver.update(grads, opt)
        steps.append(float(jnp.abs(jax.tree.leaves(moved)[0]).max()))
    assert steps[0] == pytest.approx(3e-4, rel=1e-2) and steps[-1] == pytest.approx(3e-4 / 100, rel=5e-2)


# --- the gate


def test_where_nothing_tells_policies_apart_no_trust_region_moves():
    learner, state = start()
    flat = jax.tree.map(lambda x: 0 * x if eqx.is_inexact_array(x) else x, state.critic)
    state = dataclasses.replace(at(state, 1), critic=flat)
    first, _ = learner._judge(state)
    moved = dataclasses.replace(first, actor=jax.tree.map(lambda x: x + 0.1 if eqx.is_array(x) else x, first.actor))
    second, metrics = learner._judge(moved)
    assert float(metrics["moved"]) == 0 and same(second.old, first.old)


def test_a_better_policy_moves_its_own_trust_region_and_no_other():
    learner, state = start()
    first, _ = learner._judge(at(state, 1))
    beaten = dataclasses.replace(first, best=first.best.at[1].add(1e6))  # the second one can never be better
    beaten = dataclasses.replace(beaten, best=beaten.best - 1.0 * (jnp.arange(3) != 1))
    moved = dataclasses.replace(beaten, actor=jax.tree.map(lambda x: x + 0.01 if eqx.is_array(x) else x, first.actor))
    second, _ = learner._judge(dataclasses.replace(moved, best=beaten.best - 1e3 * (jnp.arange(3) != 1)))
    for i in range(3):
        source = first.old if i == 1 else moved.actor
        assert same(take(second.old, i), take(source, i))


def test_a_value_of_one_step_is_that_of_the_critic_whatever_the_world():
    learner, state = start(gate_horizon=1)
    other = dataclasses.replace(
        state, dynamics=eqx.tree_at(lambda d: d.members.high, state.dynamics, state.dynamics.members.high + 1)
    )
    actor = take(state.actor, 0)
    seen = state.normaliser(state.starts)
    expected = jax.vmap(state.critic)(seen, jax.vmap(lambda o: actor(o).mode())(seen)).min(-1).mean()
    for now in (state, other):
        np.testing.assert_allclose(learner.model_value(now, actor), expected, rtol=1e-5)


def test_a_world_that_leaves_the_numbers_never_opens_the_gate():
    learner, state = start()
    broken = dataclasses.replace(
        state, critic=jax.tree.map(lambda x: x * jnp.nan if eqx.is_inexact_array(x) else x, state.critic)
    )
    assert float(learner.model_value(broken, take(state.actor, 0))) < -1e38


# --- stages


def test_each_stage_trains_its_own_networks():
    learner, state = start(updates=100, improve_share=0.1, clone_share=0.2)
    assert state.ends.tolist() == [70, 90, 100]
    changed = []
    for step in (0, 70, 90):
        after, _ = learner.update(dataclasses.replace(state, step=jnp.asarray(step)), ROWS, KEY)
        parts = ("critic", "value", "dynamics", "actor", "old")
        changed.append({n for n in parts if not same(getattr(after, n), getattr(state, n))})
    assert changed == [{"critic", "value", "dynamics"}, {"actor", "old"}, {"actor"}]


def test_at_the_switch_the_policy_stays_as_it_was_bit_for_bit():
    small = dict(SMALL, hidden=(16, 16), batch_size=32)
    before = learn(UniO4(**small), data="pendulum-medium", steps=60, points=1)
    online = UniO4Online(hidden=(16, 16), num_envs=2, rollout_length=8, learning_rate=1e-30, value_learning_rate=1e-30)
    after = learn(online, env="pendulum", steps=16, points=1, warm_start=before)
    assert same(after.states[0].actor, before.states[0].chosen) and same(after.states[0].critic, before.states[0].value)
    obs = jnp.asarray([0.3, -0.4, 1.0])
    ours, theirs = (r.learner.policy(r.states[0])(obs, (), KEY)[0] for r in (after, before))
    np.testing.assert_array_equal(ours, theirs)
    again = learn(online, env="pendulum", steps=16, points=1, warm_start=after)
    assert same(again.states[0].frozen, after.states[0].frozen)


def test_inside_its_clip_the_value_loss_is_the_squared_error():
    value, old = jnp.array([1.0, 2.0]), jnp.array([1.05, 1.95])
    target = jnp.array([3.0, -1.0])
    np.testing.assert_allclose(clipped_value_loss(value, old, target, 0.1), ((value - target) ** 2).mean(), rtol=1e-6)


@pytest.mark.parametrize(
    "bad", [{"clone_share": 0.0}, {"elites": 9}, {"diversity": -1.0}, {"clip": 0.0}, {"policies": 0}]
)
def test_what_makes_no_sense_is_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        UniO4(**bad)


def test_without_a_log_it_says_what_it_needs():
    with pytest.raises(ConfigError, match="log"):
        UniO4().init(SPEC, KEY)
