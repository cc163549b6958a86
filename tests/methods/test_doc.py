"""DoC: the information in closed form and by contrast, who climbs and who descends, promises that are kept."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError, DataError, SpaceMismatch
from habitus.core.trees import descend
from habitus.data.dataset import Dataset
from habitus.methods.offline._doc_tabular import (
    Tables,
    TabularDoC,
    conditioned_on_best,
    contrast,
    frequencies,
    information,
)
from habitus.methods.offline.doc import DoC, future, past
from habitus.nets.mlp import Linear
from habitus.nets.sequence import OBS
from habitus.train.loop import learn

from .cases import KEY, box_spec

SMALL = {
    "width": 16, "layers": 1, "heads": 2, "context": 3, "hidden": (16,), "latent_size": 4, "candidates": 8,
    "dropout": 0.0, "batch_size": 8,
}  # fmt: skip
PAYS = (0.0, 1.0)


def one_step(action, reward):
    """A log of single decisions in one state."""
    zeros = np.zeros(len(action), int)
    return Dataset.from_arrays(
        obs=zeros, next_obs=zeros, action=action, reward=reward, terminated=zeros == 0, truncated=zeros > 0,
        validate=False,
    )  # fmt: skip


def bandit(p, pulls=1000, seed=0):
    """The behaviour pulls the second arm, which pays with probability 1 - p, with probability p."""
    rng = np.random.default_rng(seed)
    action = (rng.random(pulls) < p).astype(int)
    return one_step(action, (rng.random(pulls) < np.where(action == 1, 1 - p, p)).astype(np.float32))


def counted(log, levels=PAYS):
    return jnp.asarray(frequencies(log.spec, levels)[0], jnp.float32)


def fit(learner, log, levels=PAYS, steps=1500, seeds=3):
    """Action probabilities [seeds, actions] in the first state, and what is promised there [seeds]."""

    def one(key):
        start, run = jax.random.split(key)
        state = learner.start(counted(log, levels), jnp.asarray(levels), start)
        keys = jax.random.split(run, steps)
        state, _ = jax.lax.scan(lambda s, k: (learner.update(s, None, k)[0], None), state, keys)
        return jax.nn.softmax(learner.logits(state)[0]), learner.choice(state)[1][0]

    return jax.jit(jax.vmap(one))(jax.random.split(KEY, seeds))


def earned(probs, p):
    return np.asarray(probs @ jnp.array([p, 1 - p]))


# --- the information

JOINT = jnp.array([[[0.35, 0.15], [0.1, 0.4]]])  # one state, two actions, two returns


def together(q):
    """`p(s, a, R, z)` for a posterior [actions, returns, latents]."""
    return JOINT[..., None] * jnp.asarray(q)[None]


def test_information_is_zero_where_the_latent_ignores_the_return_and_its_entropy_where_it_repeats_it():
    of_action = jnp.array([[[0.2, 0.8]] * 2, [[0.9, 0.1]] * 2])
    assert float(information(together(of_action))) == pytest.approx(0, abs=1e-6)
    entropy = sum(0.5 * -(x * np.log(x) + (1 - x) * np.log(1 - x)) for x in (0.7, 0.2))
    assert float(information(together([np.eye(2)] * 2))) == pytest.approx(entropy, rel=1e-5)
    both = jnp.array([[[0.2, 0.8], [0.6, 0.4]]] * 2)
    assert 0.01 < float(information(together(both))) < entropy


@pytest.mark.parametrize("marginal", [(0.5, 0.5), (0.1, 0.9)])
def test_the_contrast_bounds_the_information_up_to_an_offset_and_meets_it(marginal):
    rho, found = jnp.asarray(marginal), together(jnp.array([[[0.2, 0.8], [0.6, 0.4]], [[0.5, 0.5], [0.1, 0.9]]]))
    given, conditional = found / found.sum(2, keepdims=True), JOINT / JOINT.sum(2, keepdims=True)
    most = float(information(found) + (JOINT * jnp.log(conditional / rho)).sum())
    assert float(contrast(jnp.log(given / rho[:, None]), rho, found)) == pytest.approx(most, rel=1e-4)
    for seed in range(3):
        assert float(contrast(jax.random.normal(jax.random.key(seed), found.shape), rho, found)) < most


def test_known_offsets():
    alone = jnp.array([[[0.7, 0.3]]])[..., None]  # one latent: no information
    for rho, offset in (((0.5, 0.5), 0.0823), ((0.1, 0.9), 1.0325), ((0.7, 0.3), 0.0)):
        f = jnp.log(alone / jnp.asarray(rho)[:, None])
        assert float(contrast(f, jnp.asarray(rho), alone)) == pytest.approx(offset, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_ratio_climbs_the_contrast_and_the_tables_then_lose_information(seed):
    learner = TabularDoC(mode="contrastive", mi_weight=100.0, learning_rate=0.05)
    state = learner.start(JOINT, jnp.asarray(PAYS), jax.random.key(seed))
    rho, fast, slow = JOINT.sum((0, 1)), optax.adam(0.05), optax.adam(0.01)

    def climb(state, key):
        ratio, opt, _ = descend(fast, learner.ratio_loss, state.ratio, state.ratio_opt, state, JOINT, key)
        return dataclasses.replace(state, ratio=ratio, ratio_opt=opt)

    def both(state, key):
        state = repeat(climb, state, key, 5)  # step by step, the two go round and round
        tables, opt, _ = descend(slow, learner.sampled_loss, state.tables, state.tables_opt, state, JOINT, key)
        return dataclasses.replace(state, tables=tables, tables_opt=opt)

    def repeat(step, state, key, count):
        return jax.lax.scan(lambda s, k: (step(s, k), None), state, jax.random.split(key, count))[0]

    climbed = jax.jit(lambda s: repeat(climb, s, KEY, 300))(state)
    before, after = (float(contrast(s.ratio, rho, s.tables.latents(JOINT))) for s in (state, climbed))
    assert after > before + 0.2
    settled = jax.jit(lambda s: repeat(both, s, KEY, 300))(climbed)
    known = [float(information(s.tables.latents(JOINT))) for s in (state, settled)]
    assert known[1] < known[0] / 3


# --- the bandit


@pytest.mark.parametrize("p", [0.05, 0.3])
def test_it_pulls_the_better_arm_and_keeps_its_promise_where_conditioning_on_the_reward_does_not(p):
    log = bandit(p)
    probs, promise = fit(TabularDoC(), log)
    assert (earned(probs, p) >= 1 - p - 0.02).all()
    np.testing.assert_allclose(promise, earned(probs, p), atol=0.1)
    assert float(earned(conditioned_on_best(counted(log))[0], p)) < 0.6


class Reversed(TabularDoC):
    """With the sign of the information wrong."""

    def exact_loss(self, tables, state, batch, key):
        found = tables.latents(state.joint)
        return self.fit(tables, found) - self.mi_weight * information(found), {}


@pytest.mark.parametrize("broken", [TabularDoC(mi_weight=0.0), Reversed(mi_weight=1.0)], ids=["none", "reversed"])
def test_without_the_constraint_or_with_its_sign_turned_it_takes_luck_for_skill(broken):
    probs, promise = fit(broken, bandit(0.05), seeds=5)
    assert earned(probs, 0.05).mean() < 0.8 and promise.mean() > 0.95


def test_where_rewards_are_certain_the_constraint_is_free():
    action = (np.arange(200) % 4 == 0).astype(int)
    log = one_step(action, action.astype(np.float32))
    probs, promise = fit(TabularDoC(), log)
    assert (probs[:, 1] > 0.95).all() and (promise > 0.95).all()
    joint = counted(log)
    assert float(information(Tables.random(joint.shape, KEY).latents(joint))) == pytest.approx(0, abs=1e-6)
    assert conditioned_on_best(joint)[0].tolist() == [0, 1]


def test_a_sure_ten_is_better_than_a_hundred_once_in_a_hundred():
    action, reward = np.arange(1000) % 2, np.zeros(1000, np.float32)
    reward[action == 1] = 10.0
    reward[:1000:200] = 100.0  # one of a hundred first arms
    log, levels = one_step(action, reward), (0.0, 10.0, 100.0)
    probs, promise = fit(TabularDoC(), log, levels, steps=3000)
    assert (probs[:, 1] > 0.95).all() and np.allclose(promise, 10, atol=1.5)
    assert conditioned_on_best(counted(log, levels))[0].tolist() == [1, 0]  # asked for 100 it takes the risk


def test_a_latent_that_the_log_does_not_know_is_never_chosen():
    learner = TabularDoC()
    state = learner.start(JOINT, jnp.asarray(PAYS), KEY)
    posterior = state.tables.posterior.at[..., 2].set(-30.0)
    value = state.tables.value.at[:, 2].set(jnp.array([-30.0, 30.0]))  # it promises everything
    state = eqx.tree_at(lambda s: (s.tables.posterior, s.tables.value), state, (posterior, value))
    assert int(learner.choice(state)[0][0]) != 2
    assert int(TabularDoC(min_mass=0.0).choice(state)[0][0]) == 2


def test_the_contrastive_form_learns_from_batches():
    learner = TabularDoC(mode="contrastive", learning_rate=0.01)
    run = learn(learner, bandit(0.05), 4000, seeds=3, points=1)
    probs = jnp.stack([jax.nn.softmax(learner.logits(jax.tree.map(jnp.asarray, s))[0]) for s in run.states])
    assert earned(probs, 0.05).mean() > 0.8


# --- what it refuses


def test_logs_that_tables_cannot_hold_are_refused():
    log = bandit(0.3, 50)
    with pytest.raises(DataError, match=r"0.5, the return to go of row 0, is none of \(0.0, 1.0\)"):
        frequencies(one_step(np.array([0, 1]), np.float32([0.5, 1.0])).spec, PAYS)
    many = one_step(np.arange(99) % 2, np.arange(99, dtype=np.float32))
    with pytest.raises(ConfigError, match="99 different returns"):
        learn(TabularDoC(), many, 5)
    with pytest.raises(SpaceMismatch, match="looks states up"):
        frequencies(dataclasses.replace(log.spec, observation_space=box_spec().observation_space), None)
    with pytest.raises(ConfigError, match="give data"):
        frequencies(dataclasses.replace(log.spec, dataset=None), None)
    with pytest.raises(ConfigError, match="mode"):
        TabularDoC(mode="sampled")


def test_states_that_were_never_seen_get_every_action_alike():
    learner = TabularDoC(levels=PAYS)
    spec = dataclasses.replace(bandit(0.3, 50).spec, observation_space=spaces.Discrete(3))
    assert learner.logits(learner.init(spec, KEY))[1:].tolist() == [[0, 0], [0, 0]]


# --- sequences


def walks(episodes=6, length=9):
    rng, rows = np.random.default_rng(0), episodes * length
    return Dataset.from_arrays(
        obs=rng.normal(size=(rows, 3)).astype(np.float32),
        next_obs=rng.normal(size=(rows, 3)).astype(np.float32),
        action=np.arange(rows) % 2,
        reward=rng.normal(size=rows).astype(np.float32),
        terminated=np.arange(1, rows + 1) % length == 0,
        truncated=np.zeros(rows, bool),
        validate=False,
    )


WALKS = walks()
LEARNER = DoC(**SMALL)
STATE = LEARNER.init(WALKS.spec, KEY)


def test_the_past_knows_nothing_of_what_follows_and_the_latent_nothing_of_what_went_before():
    windows = WALKS.windows(LEARNER.window, np.array([0, 10]))

    def beliefs(reward):
        given = eqx.tree_at(lambda w: w.steps.reward, windows, reward)
        p = LEARNER.beliefs(STATE.prior, past(given, 1.0), KEY).mean
        return p, LEARNER.beliefs(STATE.posterior, future(given, 1.0), KEY).mean

    reward = windows.steps.reward
    before, after = beliefs(reward), beliefs(reward.at[:, 1].add(1.0))
    changed = [np.asarray(jnp.abs(a - b).max((0, 2)) > 1e-7).tolist() for a, b in zip(before, after, strict=True)]
    # the reward of the second step is known from the third step on, and in the future of the first two
    assert changed == [[False, False, True], [True, True, False]]
    np.testing.assert_allclose(past(windows, 2.0).number, np.c_[np.zeros(2), reward[:, :2] / 2])
    late = beliefs(reward.at[:, 5].add(1.0))[1]
    assert (jnp.abs(late - before[1]).max((0, 2)) > 1e-7).all()


def test_it_acts_on_the_prior_draw_that_promises_most():
    policy = LEARNER.policy(STATE).policy
    carry = policy.rewarded(policy.init(), jnp.float32(2.0))
    assert float(policy(jnp.ones(3), carry, KEY)[1][0].number[-1]) == pytest.approx(2.0 / float(STATE.reward_scale))

    steps = policy.blank.then(jnp.float32(0), jnp.ones(3))
    known = policy.decoder.sequence(steps)[-1, OBS]
    prior = jax.tree.map(lambda x: x[-1], policy.prior(steps))
    draws = jax.vmap(prior.sample)(jax.random.split(jax.random.split(KEY)[0], 8))
    promises = jax.vmap(policy.decoder.promise, (None, 0))(known, draws)
    assert len(set(np.round(promises, 7).tolist())) == 8
    # heads that act by the first number of the latent alone, above or below the best draw's
    best, at = draws[jnp.argmax(promises)], 16
    for above in (1.0, -1.0):
        weight = jnp.zeros((20, 2)).at[at, 1].set(1e6)
        bias = jnp.array([0.0, -1e6 * float(best[0]) + above * 50])
        layer = eqx.tree_at(lambda x: (x.weight, x.bias), Linear.random(20, 2, KEY), (weight, bias))
        sure = eqx.tree_at(lambda p: p.decoder.head.mlp.layers, policy, (layer,))
        assert int(sure(jnp.ones(3), policy.init(), KEY)[0]) == (above > 0)
