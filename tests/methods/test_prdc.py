"""PRDC: near which pair of the log the actor stays, and its limits in beta."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from habitus.core.errors import ConfigError
from habitus.data.pairs import NearestPairs
from habitus.methods.offline.prdc import PRDC
from habitus.methods.offline.td3bc import TD3BC

from .cases import HIDDEN, KEY, batch_for, box_spec, close, gradient, log_of, same

SPEC = box_spec()
ROWS = batch_for(SPEC, 200)


def over(rows, learner):
    """The first state of a learner on a log of these rows, and the rows as its networks see them."""
    state = learner.init(dataclasses.replace(SPEC, dataset=log_of(rows, SPEC)), KEY)
    return state, state.normaliser.transition(rows)


# --- limits in beta


def test_with_a_huge_beta_the_nearest_pair_of_a_logged_state_is_its_own_and_the_loss_is_that_of_td3bc():
    state, seen = over(ROWS, learner := PRDC(beta=1e4, hidden=HIDDEN))
    for seed in range(3):
        anything = jax.random.uniform(jax.random.key(seed), ROWS.action.shape, minval=-1.0, maxval=1.0)
        nearest = state.pairs.value.nearest(seen.obs, anything)
        np.testing.assert_array_equal(nearest[:, 0], np.arange(200))
    plain = TD3BC(hidden=HIDDEN)
    base, _ = over(ROWS, plain)
    assert same(base.actor, state.actor)
    ours, theirs = learner.actor_loss(state.actor, state, seen, KEY), plain.actor_loss(base.actor, base, seen, KEY)
    assert ours == theirs


def test_with_beta_zero_the_states_of_the_log_do_not_matter():
    learner = PRDC(beta=0.0, normalise=False, hidden=HIDDEN)
    shuffled = dataclasses.replace(ROWS, obs=jax.random.permutation(KEY, ROWS.obs))
    (ours, seen), (theirs, _) = over(ROWS, learner), over(shuffled, learner)
    assert learner.actor_loss(ours.actor, ours, seen, KEY) == learner.actor_loss(theirs.actor, theirs, seen, KEY)
    action = jax.vmap(ours.actor)(seen.obs)
    distance = jnp.linalg.norm(action[:, None] - ROWS.action[None], axis=-1)
    np.testing.assert_array_equal(ours.pairs.value.nearest(seen.obs, action)[:, 0], distance.argmin(1))


# --- the constraint


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0, 10.0])
def test_an_actor_that_repeats_the_log_pays_nothing(beta):
    learner = PRDC(beta=beta, hidden=HIDDEN)
    state, seen = over(ROWS, learner)
    repeated = dataclasses.replace(ROWS, action=jax.vmap(state.actor)(seen.obs))
    state, seen = over(repeated, learner)
    assert learner.actor_loss(state.actor, state, seen, KEY)[1]["cloning"] < 1e-12


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0, 10.0])
def test_the_distance_to_the_log_is_at_most_that_to_the_logged_action(beta):
    rows = batch_for(SPEC, 2_000, seed=1)
    obs, logged = np.asarray(rows.obs), np.asarray(rows.action)
    action = jax.random.uniform(KEY, logged.shape, minval=-1.0, maxval=1.0)
    index = NearestPairs(obs, logged, beta)
    nearest = np.asarray(index.nearest(rows.obs, action)[:, 0])
    ours = np.square(action - logged[nearest]).sum(1)
    whole = ours + np.square(beta * (obs - obs[nearest])).sum(1)
    theirs = np.square(action - logged).sum(1)
    assert (whole <= theirs + 1e-5).all() and (ours <= theirs + 1e-5).all()
    assert (ours < theirs - 1e-3).any()


def test_the_weight_of_the_critic_is_alpha_over_its_mean_size():
    for alpha in (2.5, 40.0):
        state, seen = over(ROWS, learner := PRDC(alpha=alpha, hidden=HIDDEN))
        loss, metrics = learner.actor_loss(state.actor, state, seen, KEY)
        q = jax.vmap(state.critic.members[0])(seen.obs, jax.vmap(state.actor)(seen.obs))
        weight = (metrics["cloning"] - loss) / q.mean()
        assert float(weight * jnp.abs(q).mean()) == pytest.approx(alpha, rel=1e-5)


def test_no_gradient_flows_through_the_weight_or_the_nearest_action():
    state, seen = over(ROWS, learner := PRDC(hidden=HIDDEN))
    action = jax.vmap(state.actor)(seen.obs)
    near = ROWS.action[state.pairs.value.nearest(seen.obs, action)[:, 0]]
    weight = 2.5 / float(jnp.abs(jax.vmap(state.critic.members[0])(seen.obs, action)).mean())

    def with_constants(actor, *_):
        a = jax.vmap(actor)(seen.obs)
        return -weight * jax.vmap(state.critic.members[0])(seen.obs, a).mean() + ((a - near) ** 2).mean(), {}

    close(gradient(learner.actor_loss, state.actor, state, seen, KEY), gradient(with_constants, state.actor))


def test_the_pull_is_the_gradient_of_the_distance_to_the_log():
    """The envelope theorem: the state is a constant of the distance."""
    obs, logged = np.asarray(ROWS.obs), np.asarray(ROWS.action)
    index, at = NearestPairs(obs, logged, 2.0), jnp.array([0.3, -0.2])
    key = ROWS.obs[:1] + 0.1

    def distance(a):
        return float((jnp.square(2.0 * (key - obs)).sum(1) + jnp.square(a - logged).sum(1)).min())

    pull = 2 * (at - logged[index.nearest(key, at[None])[0, 0]])
    step = 1e-2
    slope = [(distance(at.at[i].add(step)) - distance(at.at[i].add(-step))) / (2 * step) for i in range(2)]
    np.testing.assert_allclose(pull, slope, atol=1e-3)


def test_actor_and_targets_change_only_on_even_steps():
    state, _ = over(ROWS, learner := PRDC(hidden=HIDDEN))
    for step in range(1, 5):
        after, _ = learner.update(state, ROWS, jax.random.fold_in(KEY, step))
        for name in ("actor", "target_actor", "target_critic"):
            assert same(getattr(after, name), getattr(state, name)) == (step % 2 == 1)
        state = after


def test_several_neighbours():
    """To the mean of k pairs, or to the k-th alone as in the authors' code."""
    anchors = {}
    for mode in ("mean", "kth"):
        state, seen = over(ROWS, learner := PRDC(neighbours=3, mode=mode, hidden=HIDDEN))
        action = jax.vmap(state.actor)(seen.obs)
        anchors[mode] = learner.anchor(state, seen, action)
    points = np.concatenate([2.0 * np.asarray(seen.obs), np.asarray(ROWS.action)], 1)
    rows = cKDTree(points).query(np.concatenate([2.0 * seen.obs, action], 1), k=3)[1]
    close(anchors["mean"], ROWS.action[rows].mean(1))
    close(anchors["kth"], ROWS.action[rows[:, 2]])


def test_the_better_action_of_a_neighbour_is_allowed():
    """A bad action is always logged at .5, a good one nearby: TD3+BC is pulled to the bad one, PRDC is not."""
    x = np.linspace(0, 1, 101, dtype=np.float32)[:, None]
    bad = np.abs(x - 0.5) < 0.045
    index = NearestPairs(x, np.where(bad, -0.8, 0.8).astype(np.float32), beta=2.0)
    at, wanted = jnp.array([[0.5]]), jnp.array([[0.7]])
    assert index.actions[index.nearest(at, wanted)[0, 0]] == pytest.approx(0.8)
    near_states_only = NearestPairs(x, np.asarray(index.actions), beta=100.0)
    assert near_states_only.actions[near_states_only.nearest(at, wanted)[0, 0]] == pytest.approx(-0.8)


# --- the index


@pytest.mark.parametrize("beta", [2.0, 7.5, 1e4])
@pytest.mark.parametrize("k", [1, 3])
def test_tree_and_brute_force_find_the_same_pairs(beta, k):
    rng = np.random.default_rng(0)
    obs, action = (rng.normal(size=(5_000, n)).astype(np.float32) for n in (4, 2))
    keys = [jnp.asarray(rng.normal(size=(1_000, n)), jnp.float32) for n in (4, 2)]
    tree, brute = (NearestPairs(obs, action, beta, index).nearest(*keys, k) for index in ("kdtree", "brute"))
    np.testing.assert_array_equal(tree, brute)


@pytest.mark.parametrize("index", ["kdtree", "brute"])
def test_ties_go_to_the_lowest_row(index):
    corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 8), -1).reshape(-1, 8).astype(np.float32)
    rows = np.random.default_rng(0).permutation(np.repeat(np.arange(256), 3))
    points = corners[rows]
    pairs = NearestPairs(points[:, :4], points[:, 4:], 1.0, index)
    # the centre is as far from all of them; each corner only from its own repetitions
    keys = jnp.concatenate([jnp.zeros((1, 8)), corners])
    first = [0, *(np.flatnonzero(rows == corner)[0] for corner in range(256))]
    np.testing.assert_array_equal(pairs.nearest(keys[:, :4], keys[:, 4:])[:, 0], first)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="needs one: give data"):
        PRDC().init(SPEC, KEY)
    with pytest.raises(ConfigError, match="beta"):
        PRDC(beta=-1.0)
    with pytest.raises(ConfigError, match="at least one pair"):
        NearestPairs(np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32), 1.0)
