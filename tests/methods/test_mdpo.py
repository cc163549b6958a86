"""MDPO: what one iteration solves, on-policy and off-policy, and its limits."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from habitus.core.errors import ConfigError, SpaceMismatch
from habitus.core.trees import descend, trainable
from habitus.methods.online.mdpo import MDPO, MDPOOffPolicy
from habitus.methods.online.sac import SAC
from habitus.nets.distributions import Normal
from habitus.nets.losses import Round, prepare_round

from .cases import (
    HIDDEN,
    KEY,
    SPECS,
    batch_for,
    box_spec,
    close,
    every_kind,
    flat,
    gradient,
    linear_critics,
    same,
    tabular_spec,
    with_table,
)  # fmt: skip


def rollout(spec, time=16, envs=4):
    """A roll-out [time, env]."""
    rows = batch_for(spec, time * envs)
    return jax.tree.map(lambda x: x.reshape(time, envs, *x.shape[1:]), rows)


def ready(kind, **settings):
    """A learner, its first state, and a roll-out made ready."""
    learner = MDPO(hidden=HIDDEN, anneal=False, **settings)
    state = learner.init(SPECS[kind], KEY)
    return learner, state, prepare_round(state.actor, state.critic, rollout(SPECS[kind]), 0.99, 0.95)


def moved(actor, size=0.1):
    """The actor with its parameters disturbed."""
    leaves, tree = jax.tree.flatten(actor)
    noise = [size * jax.random.normal(jax.random.fold_in(KEY, i), x.shape) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(tree, [x + d for x, d in zip(leaves, noise, strict=True)])


# --- on-policy, at the policy that collected


@every_kind
def test_at_the_policy_that_collected_the_kl_is_zero_and_the_gradient_is_the_policy_gradient(kind):
    learner, state, batch = ready(kind, step_size=1e-2)

    def policy_gradient(actor, *_):
        log_prob = jax.vmap(lambda o, a: actor(o).log_prob(a))(batch.obs, batch.action)
        return -(log_prob * batch.advantage).mean(), {}

    assert abs(learner.actor_loss(state.actor, state, batch, KEY)[1]["kl"]) < 1e-7
    close(
        gradient(learner.actor_loss, state.actor, state, batch, KEY), gradient(policy_gradient, state.actor), atol=1e-5
    )


def test_one_inner_step_does_not_depend_on_the_step_size():
    """Bit for bit: the penalty's gradient is zero where the policies agree, which is why several steps are needed."""
    actors = []
    for step_size in (0.05, 1.0, 50.0):
        learner = MDPO(hidden=HIDDEN, inner_steps=1, anneal=False, step_size=step_size)
        after, _ = learner.update(learner.init(SPECS["real"], KEY), rollout(SPECS["real"]), KEY)
        actors.append(after.actor)
    assert same(actors[0], actors[1]) and same(actors[0], actors[2])


@every_kind
def test_several_inner_steps_do_depend_on_it_and_a_small_one_holds_the_policy_back(kind):
    kl = []
    for step_size in (1e-2, 1.0, 1e6):
        learner = MDPO(hidden=HIDDEN, inner_steps=20, anneal=False, step_size=step_size, learning_rate=3e-3)
        _, metrics = learner.update(learner.init(SPECS[kind], KEY), rollout(SPECS[kind]), KEY)
        kl.append(float(metrics["kl"]))
    assert kl[0] < 0.1 * kl[1] and kl[1] < kl[2]


@every_kind
def test_without_a_penalty_an_iteration_is_so_many_steps_on_the_surrogate(kind):
    learner = MDPO(hidden=HIDDEN, inner_steps=5, anneal=False, step_size=1e12)
    state = learner.init(SPECS[kind], KEY)
    batch = prepare_round(state.actor, state.critic, rollout(SPECS[kind]), 0.99, 0.95)
    advantage = (batch.advantage - batch.advantage.mean()) / batch.advantage.std()

    def surrogate(actor):
        log_prob = jax.vmap(lambda o, a: actor(o).log_prob(a))(batch.obs, batch.action)
        return -(jnp.exp(log_prob - batch.log_prob) * advantage).mean(), {}

    actor, opt = state.actor, state.actor_opt
    for _ in range(5):
        actor, opt, _ = descend(learner.actor_optimizer, surrogate, actor, opt)
    after, _ = learner.update(state, rollout(SPECS[kind]), KEY)
    close(after.actor, actor, rtol=1e-4, atol=1e-5)


def test_the_step_size_falls_linearly_over_the_planned_iterations_to_a_floor():
    learner = MDPO(hidden=HIDDEN, step_size=2.0)
    state = learner.init(dataclasses.replace(SPECS["real"], updates=10), KEY)
    steps = [float(learner.step(dataclasses.replace(state, rounds=jnp.int32(k)))) for k in range(12)]
    np.testing.assert_allclose(steps, [2 * max(1 - k / 10, 1e-3) for k in range(12)], rtol=1e-5)
    after, _ = learner.update(state, rollout(SPECS["real"]), KEY)
    assert after.rounds == 1
    assert float(learner.step(learner.init(SPECS["real"], KEY))) == 2.0  # nothing is planned: constant


# --- on-policy, what the inner problem is


def enumerated(policy, advantage):
    """Every pair (s, a) once, so weighted that means over rows are expectations under `policy` [states, actions]."""
    states, actions = policy.shape
    s, a = (jnp.asarray(x.ravel(), jnp.int32) for x in np.indices(policy.shape))
    weighted = jnp.asarray(policy * advantage * actions, jnp.float32)[s, a]
    zeros = jnp.zeros(states * actions)
    return Round(s, a, jnp.log(jnp.asarray(policy, jnp.float32))[s, a], weighted, zeros, zeros)


def solved(learner, state, batch, steps=400, rate=0.05):
    """The policy [states, actions] that minimises the actor's loss."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @eqx.filter_jit
    def minimise(actor):
        def step(carry, _):
            actor, opt, _ = descend(optimizer, learner.actor_loss, *carry, state, batch, KEY)
            return (actor, opt), None

        return jax.lax.scan(step, (actor, optimizer.init(trainable(actor))), length=steps)[0][0]

    actor = minimise(state.actor)
    return np.asarray(jax.vmap(lambda obs: actor(obs).probs)(jnp.unique(batch.obs)))


def tabular(policy, **settings):
    """A learner without hidden layers whose first actor is `policy` [states, actions]."""
    learner = MDPO(hidden=(), anneal=False, **settings)
    state = learner.init(tabular_spec(*policy.shape), KEY)
    actor = eqx.tree_at(lambda a: a.net, state.actor, with_table(state.actor.net, np.log(policy)))
    return learner, dataclasses.replace(state, actor=actor)


@pytest.mark.parametrize(
    ("step_size", "expected"), [(0.5, [0.5065, 0.3072, 0.1863]), (1e-3, [1 / 3, 1 / 3, 1 / 3]), (2.0, None)]
)
def test_the_inner_problem_is_solved_by_the_exponential_of_the_advantage(step_size, expected):
    """One state, A = (1, 0, -1), from the uniform policy; hardly a step for a small t."""
    uniform, advantage = np.full((1, 3), 1 / 3), np.array([[1.0, 0.0, -1.0]])
    learner, state = tabular(uniform, step_size=step_size)
    found = solved(learner, state, enumerated(uniform, advantage))[0]
    closed = np.exp(step_size * advantage[0]) / np.exp(step_size * advantage[0]).sum()
    np.testing.assert_allclose(found, closed, atol=1e-3)
    if expected:
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("step_size", [0.3, 3.0])
def test_every_iteration_improves_the_value_of_every_state(step_size):
    """A random decision process with exact advantages."""
    rng = np.random.default_rng(0)
    transition, reward = rng.dirichlet(np.full(5, 0.3), (5, 3)), rng.uniform(size=(5, 3))
    policy, previous = np.full((5, 3), 1 / 3), np.full(5, -np.inf)
    for _ in range(5):
        chain = np.einsum("sa,sat->st", policy, transition)
        value = np.linalg.solve(np.eye(5) - 0.9 * chain, (policy * reward).sum(1))
        assert (value >= previous - 1e-3).all()
        advantage = reward + 0.9 * transition @ value - value[:, None]
        closed = policy * np.exp(step_size * advantage)
        closed /= closed.sum(1, keepdims=True)
        learner, state = tabular(policy, step_size=step_size)
        found = solved(learner, state, enumerated(policy, advantage), rate=0.2)
        np.testing.assert_allclose(found, closed, atol=0.02)
        policy, previous = found, value


def test_the_divergence_is_of_the_new_policy_from_the_old_one_and_not_the_reverse():
    """KL(N(0, 1) || N(1, 2^2)) = .4431, its reverse 1.3069."""
    one, two = (Normal(jnp.array([m]), jnp.log(jnp.array([s]))) for m, s in ((0.0, 1.0), (1.0, 2.0)))
    assert float(one.kl(two)) == pytest.approx(0.4431, abs=1e-4) and float(two.kl(one)) == pytest.approx(
        1.3069, abs=1e-4
    )
    learner = MDPO(hidden=(), anneal=False)
    state = learner.init(box_spec(1, 1), KEY)

    def acting(mean, std):
        constant = eqx.tree_at(lambda a: a.net.mlp.layers[0].weight, state.actor, jnp.zeros((1, 1)))
        constant = eqx.tree_at(lambda a: a.net.mlp.layers[0].bias, constant, jnp.array([mean]))
        return eqx.tree_at(lambda a: a.log_std, constant, jnp.log(jnp.array([std])))

    batch = Round(jnp.zeros((4, 1)), jnp.zeros((4, 1)), *[jnp.zeros(4)] * 4)
    for new, old, known in (((0.0, 1.0), (1.0, 2.0), 0.4431), ((1.0, 2.0), (0.0, 1.0), 1.3069)):
        given = dataclasses.replace(state, actor=acting(*old))
        assert float(learner.actor_loss(acting(*new), given, batch, KEY)[1]["kl"]) == pytest.approx(known, abs=1e-4)


def test_the_tsallis_divergence_becomes_the_kl_and_vanishes_where_the_policies_agree():
    uniform = np.full((1, 3), 1 / 3)
    batch, new = enumerated(uniform, np.zeros((1, 3))), np.array([[0.6, 0.3, 0.1]])
    kl = (new * np.log(new / uniform)).sum()
    for q, expected in ((1.0, kl), (1.001, kl), (0.999, kl)):
        learner, state = tabular(uniform, tsallis_q=q)
        for policy, divergence in ((new, expected), (uniform, 0.0)):
            actor = tabular(policy)[1].actor
            assert float(learner.actor_loss(actor, state, batch, KEY)[1]["kl"]) == pytest.approx(divergence, abs=2e-3)


# --- off-policy

BATCH = batch_for(SPECS["real"])


def off(**settings):
    learner = MDPOOffPolicy(hidden=HIDDEN, **settings)
    return learner, learner.init(SPECS["real"], KEY)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_without_kl_the_actors_gradient_is_that_of_soft_actor_critic(temperature):
    learner, state = off(kl_weight=0.0, temperature=temperature, regularisation=0.0, actor_q="min")
    soft = SAC(hidden=HIDDEN, temperature=temperature)
    base = dataclasses.replace(soft.init(SPECS["real"], KEY), actor=moved(state.actor), critic=state.critic)
    state = dataclasses.replace(state, actor=base.actor)
    ours, theirs = (
        gradient(method.actor_loss, given.actor, given, BATCH, KEY)
        for method, given in ((learner, state), (soft, base))
    )
    close(ours, theirs, rtol=1e-6, atol=1e-8)
    values = (m.critic_loss(s.critic, s, BATCH, KEY)[0] for m, s in ((learner, state), (soft, base)))
    close(*values)


def test_at_the_old_policy_plain_mirror_descent_has_the_value_of_the_critic():
    learner, state = off(temperature=0.0, kl_weight=3.0, regularisation=0.0)
    keys = jax.random.split(KEY, BATCH.size)
    action = jax.vmap(lambda o, k: state.actor(o).sample(k))(BATCH.obs, keys)
    q = jax.vmap(lambda o, a: state.critic(o, a)[0])(BATCH.obs, action)
    close(learner.actor_loss(state.actor, state, BATCH, KEY)[0], -q.mean())


def test_at_the_old_policy_the_gradient_of_the_kl_is_zero_in_expectation_and_away_from_it_is_not():
    learner, state = off(temperature=0.0, kl_weight=1.0, regularisation=0.0)
    flat_critic = linear_critics(([0.0, 0.0], 0.0), ([0.0, 0.0], 0.0))  # so that the KL is all there is
    one_row = jax.tree.map(lambda x: x[:1], BATCH)

    def samples(actor):
        given = dataclasses.replace(state, critic=flat_critic)
        own = jax.jit(jax.vmap(lambda k: flat(gradient(learner.actor_loss, actor, given, one_row, k))))
        return np.asarray(own(jax.random.split(KEY, 20_000)))

    def largest_z(gradients):
        error = gradients.std(0) / np.sqrt(len(gradients))
        return np.abs(gradients.mean(0)[error > 1e-6] / error[error > 1e-6]).max()

    assert largest_z(samples(state.actor)) < 5
    assert largest_z(samples(moved(state.actor, 0.2))) > 20


def test_the_old_policy_is_renewed_at_the_first_update_and_every_period():
    learner, state = off(copy_period=3)
    state = dataclasses.replace(state, old_actor=moved(state.old_actor))
    for step in range(7):
        after, _ = learner.update(state, BATCH, jax.random.fold_in(KEY, step))
        renewed = same(after.old_actor, state.actor)
        assert renewed == (step % 3 == 0) and same(after.old_actor, state.old_actor) == (not renewed)
        state = after


def test_a_large_kl_weight_holds_the_actor_to_the_old_policy():
    distance = []
    for kl_weight in (0.0, 1.0, 100.0):
        learner, state = off(kl_weight=kl_weight, learning_rate=5e-4)
        step = eqx.filter_jit(learner.update)
        for i in range(150):
            state, metrics = step(state, BATCH, jax.random.fold_in(KEY, i))
        distance.append(float(metrics["kl"]))
    assert distance[0] > 3 * distance[1] > 6 * distance[2]


def test_the_actor_climbs_the_first_critic_unless_told_otherwise():
    _, state = off()
    pessimist = dataclasses.replace(state, critic=linear_critics(([1.0, 0.0], 0.0), ([0.0, 1.0], -100.0)))
    losses = {q: off(actor_q=q)[0].actor_loss(state.actor, pessimist, BATCH, KEY)[0] for q in ("first", "min")}
    assert losses["min"] - losses["first"] > 90


def test_critics_do_not_see_the_kl():
    _, state = off()
    state = dataclasses.replace(state, old_actor=moved(state.actor))
    losses = [off(kl_weight=w)[0].critic_loss(state.critic, state, BATCH, KEY)[0] for w in (0.0, 0.8, 50.0)]
    assert losses[0] == losses[1] == losses[2]


def test_what_makes_no_sense_is_refused():
    for settings in ({"step_size": 0.0}, {"inner_steps": 0}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            MDPO(**settings)
    for settings in ({"temperature": -0.1}, {"kl_weight": -0.1}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            MDPOOffPolicy(**settings)
    with pytest.raises(SpaceMismatch, match="on-policy"):
        MDPOOffPolicy().init(SPECS["discrete"], KEY)
