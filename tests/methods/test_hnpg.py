"""HNPG and the finite-horizon TRPO that it is without a log."""

from __future__ import annotations

import dataclasses
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError, DataError, SpaceMismatch
from habitus.core.experience import Sides, Trajectory, Transition
from habitus.core.spec import Spec
from habitus.core.trees import take
from habitus.data.dataset import Dataset
from habitus.methods.offline.hnpg import HNPG
from habitus.methods.online.trpo_stepwise import Fit, InTurn, Rows, StepwiseTRPO

from .cases import batch_for, box_spec, close, discrete_spec, log_of, same

KEY = jax.random.key(0)
STEPS, ENVS = 3, 16
SMALL = {"hidden": (8,), "critic_hidden": (8,), "value_epochs": 3, "value_samples": 2, "num_envs": ENVS}


def rollout(seed=0):
    """Episodes of three steps, truncated there: [time, episode]."""
    rows = batch_for(box_spec(), STEPS * ENVS, seed)
    rows = jax.tree.map(lambda x: x.reshape(STEPS, ENVS, *x.shape[1:]), rows)
    last = jnp.broadcast_to((jnp.arange(STEPS) == STEPS - 1)[:, None], (STEPS, ENVS))
    return dataclasses.replace(rows, terminated=jnp.zeros((STEPS, ENVS), bool), truncated=last)


def as_log(steps: Transition) -> Dataset:
    flat = jax.tree.map(lambda x: np.asarray(jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])), steps)
    there = box_spec()
    spaces_of = {"observation_space": there.observation_space, "action_space": there.action_space}
    return Dataset.from_arrays(**flat.columns, **spaces_of, validate=False)


def spec(log=None):
    return dataclasses.replace(box_spec(), horizon=STEPS, dataset=log)


def sides():
    steps = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rollout(1))
    time = jnp.broadcast_to(jnp.arange(STEPS), (ENVS, STEPS))
    return Sides(rollout(0), Trajectory(steps, jnp.ones((ENVS, STEPS), bool), time, steps.reward))


@cache
def updated(weight):
    """A learner, its first state, and the state and metrics after one round from the same batch."""
    learner = HNPG(offline_weight=weight, **SMALL) if weight is not None else StepwiseTRPO(**SMALL)
    state = learner.init(spec(as_log(rollout(1))), KEY)
    batch = sides() if weight is not None else sides().own
    after, metrics = eqx.filter_jit(learner.update)(state, batch, jax.random.key(3))
    return learner, state, after, metrics


# --- with and without a log


def test_without_its_log_it_is_trpo_bit_for_bit():
    _, first, ours, metrics = updated(0.0)
    _, theirs_first, theirs, _ = updated(None)
    assert same(first, theirs_first) and same(ours, theirs)
    assert not same(ours.actor, first.actor) and not same(ours.critic, first.critic) and metrics["rejected"] == 0


def test_the_log_moves_critic_and_policy_and_weighs_what_it_should():
    _, state, plain, _ = updated(None)
    ours = updated(1.0)[2]
    assert not same(ours.critic, plain.critic) and not same(ours.actor, plain.actor)
    own, logged = (take(StepwiseTRPO(**SMALL)._own(rollout(seed)), 1) for seed in (0, 1))
    critic, target = take(state.critic, 1), jnp.arange(ENVS, dtype=jnp.float32)

    def loss(weight, logged):
        batch = Fit(own, -target, logged, None if logged is None else target)
        return float(HNPG(offline_weight=weight, **SMALL).critic_loss(critic, state, batch, KEY)[0])

    q = jax.vmap(critic)(logged.obs, logged.action)
    for weight in (0.5, 1.0):
        expected = loss(1.0, None) + weight * ((q - target) ** 2).mean()
        np.testing.assert_allclose(loss(weight, logged), expected, rtol=1e-5)


@pytest.mark.parametrize("weight", [None, 1.0])
def test_each_steps_kl_is_within_one_and_a_half_of_its_bound(weight):
    learner, first, after, metrics = updated(weight)
    rows = sides().own.obs
    for step in range(STEPS):
        old, new = take(first.actor, step), take(after.actor, step)
        kl = jax.vmap(lambda o, a=old, b=new: a(o).kl(b(o)))(rows[step]).mean()
        assert 0 < float(kl) < 4 * learner.max_kl  # on the own states alone
    assert float(metrics["largest_kl"]) <= 1.5 * learner.max_kl * (1 + 1e-5)


# --- evaluation


def test_returns_and_advantages_end_with_the_episode_and_what_follows_is_left_out():
    steps = rollout()
    steps = dataclasses.replace(steps, terminated=steps.terminated.at[0, 0].set(True))
    learner = StepwiseTRPO(**SMALL)
    own = learner._own(steps)
    np.testing.assert_array_equal(own.weight[:, 0], [1, 0, 0])
    np.testing.assert_array_equal(own.weight[:, 1], [1, 1, 1])
    np.testing.assert_allclose(own.returns(1.0)[0, 0], steps.reward[0, 0])
    discounted = steps.reward[:, 1] @ jnp.array([1.0, 0.5, 0.25])
    np.testing.assert_allclose(own.returns(0.5)[0, 1], discounted, rtol=1e-5)
    changed = jax.tree.map(lambda x: x.at[1:, 0].set(jnp.flip(x[1:, 1], 0)), own)
    changed = dataclasses.replace(changed, weight=own.weight, over=own.over)
    state = learner.init(spec(), KEY)
    close(learner.evaluate(state, own, None, KEY)[0], learner.evaluate(state, changed, None, KEY)[0], atol=1e-4)


def test_fitted_q_on_plenty_of_logged_rows_is_the_value_of_the_policy():
    """A chain of two steps with one-hot observations, whose Q is solved backwards by hand."""
    rows = 512
    world = Spec(spaces.Box(0, 1, (4,)), spaces.Box(-1, 1, (1,)), 2)
    rng = np.random.default_rng(0)
    code = jnp.asarray(rng.integers(0, 2, (2, rows)))
    after = jnp.concatenate([code[1:], code[:1]])  # where one goes does not depend on what one does
    obs = jax.nn.one_hot(code + 2 * jnp.arange(2)[:, None], 4)
    following = jax.nn.one_hot(after + 2, 4)
    reward = code + 1.0 + 2.0 * jnp.arange(2)[:, None]  # 1 or 2, then 3 or 4
    action = jnp.asarray(rng.uniform(-1, 1, (2, rows, 1)), jnp.float32)
    steps = Transition(obs, action, reward, jnp.zeros((2, rows), bool), jnp.zeros((2, rows), bool), following)
    logged = Rows.of(steps, jnp.ones((2, rows), bool))
    nothing = dataclasses.replace(logged, weight=jnp.zeros_like(logged.weight))

    learner = HNPG(hidden=(8,), critic_hidden=(16,), value_epochs=2_500, value_learning_rate=3e-3)
    state = StepwiseTRPO(**SMALL | {"critic_hidden": (16,)}).init(world, KEY)
    critic, _ = eqx.filter_jit(learner.evaluate)(state, nothing, logged, KEY)
    first, last = (jax.vmap(take(critic, i))(obs[i], jnp.zeros_like(action[i])) for i in (0, 1))
    np.testing.assert_allclose(last, reward[1], atol=0.02)
    # the mean over successors, which are equally likely up to the sampling of the log
    chosen = code[0] == 0
    expected = jnp.where(chosen, 1 + reward[1][chosen].mean(), 2 + reward[1][~chosen].mean())
    np.testing.assert_allclose(first, expected, atol=0.02)


def test_the_logs_states_are_paired_with_actions_of_the_policy():
    learner, state, _, _ = updated(1.0)
    steps = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), sides().logged.steps)
    logged = Rows.of(steps, jnp.ones((STEPS, ENVS), bool))
    own = learner._own(sides().own)
    ready = learner.advantages(state, own, logged, KEY)
    other = learner.advantages(state, own, dataclasses.replace(logged, action=-logged.action), KEY)
    close(ready, other, atol=0, rtol=0)
    assert ready.advantage.shape == (STEPS, 2 * ENVS) and not np.allclose(ready.action[:, ENVS:], logged.action)


# --- acting


def test_each_step_acts_with_its_own_network():
    state = updated(None)[1]
    policy = InTurn(state.actor, sample=False)
    obs, carry = jnp.ones(3), policy.init()
    for step in (0, 1, 2, 2):
        action, carry = policy(obs, carry, KEY)
        np.testing.assert_allclose(action, take(state.actor, step)(obs).mean, atol=1e-6)


# --- what it needs


def test_logs_that_do_not_fit_are_refused():
    whole = as_log(rollout(1))
    cut = whole.subset(rows=np.setdiff1d(np.arange(len(whole)), [7]))
    with pytest.raises(DataError, match="horizon is 3"):
        HNPG(**SMALL).init(spec(cut), KEY)
    with pytest.raises(DataError, match="horizon is 3"):
        HNPG(**SMALL).init(spec(whole.subset(rows=slice(0, 2))), KEY)
    ended = log_of(batch_for(box_spec(), 8, terminated=1.0), box_spec())
    with pytest.raises(DataError, match="gets to step 1 of 3"):
        HNPG(**SMALL).init(spec(ended), KEY)
    with pytest.raises(ConfigError, match="needs a horizon"):
        HNPG(**SMALL).init(box_spec(), KEY)
    with pytest.raises(ConfigError, match="a log too"):
        HNPG(**SMALL).init(spec(), KEY)
    with pytest.raises(SpaceMismatch, match="needs Box"):
        HNPG(**SMALL).init(discrete_spec(), KEY)


@pytest.mark.parametrize("bad", [{"offline_weight": -1.0}, {"value_samples": 0}, {"max_kl": 0.0}, {"damping": -1.0}])
def test_what_makes_no_sense_is_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        HNPG(**bad)
