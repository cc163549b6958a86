"""OGSRL: the world of nearest rows, the guard that freezes it, and a run from a log alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError, SpaceMismatch
from habitus.data.behaviours import Dosing
from habitus.envs.registry import make
from habitus.methods.offline.ogsrl import OGSRL
from habitus.train.logs import record_log
from habitus.train.loop import learn
from habitus.train.nearest_world import OUT, Place, nearest_world

KEY = jax.random.key(0)
LOG = record_log(Dosing.clinician(), make("icu5"), 30, meta={"horizon": 20})
SMALL = OGSRL(hidden=(8, 8), num_envs=8)


def at(obs):
    return Place(jnp.asarray(obs), jnp.zeros((), jnp.int32), jnp.array(False))


def test_a_logged_pair_is_followed_by_what_followed_it():
    world = nearest_world(LOG)
    rows = np.arange(len(LOG))
    step = jax.vmap(lambda o, a: world.step(at(o), a, KEY)[1])(jnp.asarray(LOG.obs), jnp.asarray(LOG.action))
    np.testing.assert_array_equal(step.obs, LOG.next_obs)
    np.testing.assert_array_equal(step.info["cost"], LOG.cost[rows])
    np.testing.assert_allclose(step.reward, LOG.reward)
    ends = np.isin(rows, LOG.ends[:-1])  # no row answers with the first state of the next stay
    assert not np.equal(np.asarray(step.obs)[ends], LOG.obs[rows[ends] + 1]).all(1).any()
    assert world.costs == ("SpO2", "urine") and world.horizon == 20


def test_leaving_the_support_freezes_and_costs_until_the_end():
    world = SMALL.world(LOG)
    assert world.costs[-1] == OUT
    inside = jnp.asarray(LOG.action[0])

    def one(state, t):
        state, step = world.step(state, jnp.where(t == 1, jnp.ones(2), inside), KEY)
        return state, (step, state.obs)

    obs = jnp.asarray(LOG.obs[0])
    assert not world.guard(obs, world.contract.encode_action(inside)) and not world.odd[0]
    _, (step, seen) = jax.lax.scan(one, at(obs), jnp.arange(20))
    unit = np.median(np.abs(LOG.reward)) * 2 / 15
    assert step.info["cost"][0, -1] == 0
    np.testing.assert_allclose(step.reward[1:], -25 * unit, rtol=1e-5)
    np.testing.assert_array_equal(seen[1:], np.broadcast_to(seen[0], (19, 6)))
    np.testing.assert_array_equal(step.info["cost"][1:], np.tile([0.0, 0.0, 1.0], (19, 1)))
    assert not step.terminated.any() and step.truncated.tolist() == [False] * 19 + [True]


def test_a_log_is_enough_and_leaving_its_support_becomes_rare():
    broad = dataclasses.replace(Dosing.clinician(), noise=0.4)  # or a random policy is never within its support
    log = record_log(broad, make("icu5"), 30, meta={"horizon": 20})
    run = learn(OGSRL(hidden=(16, 16)), log, steps=40 * 64 * 20, evaluate_in="icu5", evaluations=1, points=8, seeds=3)
    out = run.history[f"cost/{OUT}"].mean(1)
    assert out[-1] < 0.6 * out[0] and (run.history["recovery"][0] > 0.9).all()
    assert np.shape(run.evaluations[0]["costs"]) == (3, 10, 2)
    assert run.policies[0].spec.action_space == make("icu5").action_space


def test_without_a_guard_the_costs_of_the_log_must_be_there():
    bare = dataclasses.replace(LOG, cost=None)
    with pytest.raises(ConfigError, match="reports none"):
        learn(dataclasses.replace(SMALL, guard=False), bare, steps=160)
    assert SMALL.world(bare).costs == (OUT,)


def test_actions_without_a_distance_are_refused():
    with pytest.raises(SpaceMismatch, match="bounded Box"):
        learn(SMALL, record_log(Cart(), make("cartpole", max_episode_steps=5), 3), steps=160)


class Cart(Dosing):
    def __call__(self, obs, carry, key):
        return jnp.zeros((), jnp.int32), carry
