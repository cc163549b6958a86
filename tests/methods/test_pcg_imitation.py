"""Imitation beside PPO: what it changes, what it leaves alone, and where what it imitates comes from."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError, SpaceMismatch
from habitus.core.experience import Transition
from habitus.core.trees import Shared
from habitus.data.dataset import Dataset
from habitus.methods.offline.bc import BC
from habitus.methods.offline.pcg_imitation import PCGImitation
from habitus.methods.online.ppo import PPO
from habitus.nets.heads import DeterministicActor
from habitus.train.loop import learn
from habitus.train.ranking import Ranking, Watch

from .cases import HIDDEN, KEY, box_spec, discrete_spec, same

HORIZON, ENVS = 6, 4
PLAIN = discrete_spec()
BOTH = dict(num_envs=ENVS, hidden=HIDDEN, epochs=2, minibatch_size=16, learning_rate=1e-3, entropy=0.01)
SMALL = BOTH | dict(capacity=64, bc_batch_size=16, bc_updates=3)


def demonstrations(rows=24, action=1):
    """Episodes of three steps that pay 1 at the end, always the same action."""
    obs = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    ends = np.arange(rows) % 3 == 2
    return Dataset.from_arrays(
        obs=obs, action=np.full(rows, action), reward=ends.astype(np.float32), terminated=ends,
        truncated=np.zeros(rows, bool), next_obs=np.roll(obs, -1, 0), observation_space=PLAIN.observation_space,
        action_space=PLAIN.action_space, validate=False,
    )  # fmt: skip


def spec(log=None):
    return dataclasses.replace(PLAIN, horizon=HORIZON, dataset=None if log is None else log.canonical())


def rollout(seed=0, time=8, pays=0.0):
    rng = np.random.default_rng(seed)
    shape = (time, ENVS)
    obs, after = (jnp.asarray(rng.normal(size=(*shape, 3)), jnp.float32) for _ in range(2))
    ends = jnp.asarray(np.arange(time)[:, None] % 4 == 3) & jnp.ones(shape, bool)
    action = jnp.asarray(rng.integers(0, 3, shape), jnp.int32)
    return Transition(obs, action, pays * ends.astype(jnp.float32), ends, jnp.zeros(shape, bool), after)


@eqx.filter_jit
def step(learner, state, batch, key):
    return learner.update(state, batch, key)


def test_without_clone_and_cloning_steps_it_is_ppo_bit_for_bit():
    ours, theirs = PCGImitation(**SMALL | {"bc_updates": 0}), PPO(**BOTH)
    a, b = ours.init(spec(demonstrations()), KEY), theirs.init(spec(), KEY)
    for seed in range(2):
        (a, _), (b, _) = step(ours, a, rollout(seed), KEY), step(theirs, b, rollout(seed), KEY)
    assert a.memory is None
    for name in ("actor", "critic", "actor_opt", "critic_opt"):
        assert same(getattr(a, name), getattr(b, name)), name


def test_cloning_leaves_the_critic_alone_and_descends_with_the_actors_own_moments():
    ours, theirs = PCGImitation(**SMALL), PPO(**BOTH)
    a, b = ours.init(spec(demonstrations()), KEY), theirs.init(spec(), KEY)
    (a, found), (b, _) = step(ours, a, rollout(), KEY), step(theirs, b, rollout(), KEY)
    assert same(a.critic, b.critic) and same(a.critic_opt, b.critic_opt) and not same(a.actor, b.actor)
    steps = [int(s.actor_opt[1][0].count) for s in (a, b)]
    assert steps[0] == steps[1] + SMALL["bc_updates"] and float(found["cloning_loss"]) > 0


def test_one_state_is_cloned_in_two_hundred_steps_and_the_entropy_falls():
    log = demonstrations(3)
    obs = np.broadcast_to(log.obs[:1], log.obs.shape).copy()
    log = dataclasses.replace(log, obs=obs, next_obs=obs)
    learner = PCGImitation(**SMALL | {"bc_updates": 200, "learning_rate": 1e-2, "buffer": "fixed"})
    state = learner.init(spec(log), KEY)
    after, _ = eqx.filter_jit(learner.imitate)(state, KEY)
    before, now = (s.actor(jnp.asarray(obs[0])) for s in (state, after))
    assert -float(now.log_prob(jnp.asarray(1))) < 0.05 < float(before.entropy()) - float(now.entropy())


def test_a_live_buffer_without_demonstrations_is_rapid_and_begins_with_own_episodes():
    learner = PCGImitation(**SMALL)
    rapid = learner.init(spec(), KEY)
    empty = Ranking.empty(spec(demonstrations()), SMALL["capacity"])
    emptied = learner.init(spec(demonstrations()), KEY)
    emptied = eqx.tree_at(
        lambda s: (s.memory.ranking, s.memory.watch), emptied, (empty, Watch.start(empty, ENVS, HORIZON))
    )
    assert int(rapid.memory.ranking.size) == 0
    a, found = step(learner, rapid, rollout(pays=1.0), KEY)
    b, _ = step(learner, emptied, rollout(pays=1.0), KEY)
    assert same(a, b) and int(a.memory.ranking.size) == 8 * ENVS
    assert float(found["remembered_return"]) == pytest.approx(1.0)
    nothing, _ = step(learner, rapid, dataclasses.replace(rollout(), terminated=jnp.zeros((8, ENVS), bool)), KEY)
    assert int(nothing.actor_opt[1][0].count) == 2 * 8 * ENVS // 16  # nothing has ended, so nothing is cloned


def test_a_buffer_with_room_left_is_no_divergence():
    learner = PCGImitation(num_envs=2, rollout_length=32, minibatch_size=32, hidden=HIDDEN, bc_batch_size=8)
    run = learn(learner, env="bit-flip", steps=128, points=1)
    state = run.states[0]
    assert 0 < state.memory.ranking.size < learner.capacity and np.isfinite(run.history["cloning_loss"]).all()


def test_a_fixed_buffer_stays_and_a_live_one_is_taken_over_by_better_episodes():
    log = demonstrations()
    fixed, live = (PCGImitation(**SMALL | {"buffer": kind, "capacity": 24}) for kind in ("fixed", "live"))
    a, b = fixed.init(spec(log), KEY), live.init(spec(log), KEY)
    assert isinstance(a.memory, Shared) and int(a.memory.value.size) == int(b.memory.ranking.size) == 24
    after, _ = step(fixed, a, rollout(pays=5.0), KEY)
    assert same(after.memory, a.memory)
    worse, _ = step(live, b, rollout(pays=0.5), KEY)
    assert set(worse.memory.ranking.rows.ret.tolist()) == {1.0}
    better, _ = step(live, b, rollout(pays=5.0), KEY)
    assert set(better.memory.ranking.rows.ret.tolist()) == {5.0}


def test_a_clone_hands_over_policy_moments_and_normaliser_and_the_critic_starts_afresh():
    log = demonstrations()
    clone = BC(hidden=HIDDEN)
    earlier, _ = clone.update(clone.init(spec(log), KEY), log.canonical().transitions(slice(0, 16)), KEY)
    learner = PCGImitation(**SMALL)
    fresh = learner.init(spec(log), jax.random.key(3))
    state = learner.adopt(fresh, earlier)
    assert same(state.actor, earlier.actor) and same(state.actor_opt[1], earlier.actor_opt)
    assert same(state.critic, fresh.critic) and same(state.normaliser, earlier.normaliser)
    obs = jnp.asarray(log.obs[0])
    assert same(learner.policy(state)(obs, (), KEY)[0], clone.policy(earlier)(obs, (), KEY)[0])
    after, _ = step(learner, state, rollout(), KEY)
    assert not same(after.actor, state.actor) and learner.adopt(fresh, after) is after
    with pytest.raises(ConfigError, match="normalise_obs"):
        PCGImitation(**SMALL | {"normalise_obs": True}).adopt(fresh, earlier)
    with pytest.raises(SpaceMismatch, match="deterministic"):
        learner.adopt(fresh, dataclasses.replace(earlier, actor=DeterministicActor(box_spec(), HIDDEN, KEY)))


def test_bad_input_is_one_sentence():
    with pytest.raises(ConfigError, match="give data="):
        PCGImitation(**SMALL | {"buffer": "fixed"}).init(spec(), KEY)
    with pytest.raises(ConfigError, match="no greatest length"):
        PCGImitation(**SMALL).init(PLAIN, KEY)
    with pytest.raises(ConfigError, match="'live' or 'fixed'"):
        PCGImitation(buffer="none")
    learner = PCGImitation(**SMALL | {"num_envs": ENVS + 1})
    with pytest.raises(ConfigError, match=f"num_envs={ENVS}"):
        learner.update(learner.init(spec(), KEY), rollout(), KEY)
