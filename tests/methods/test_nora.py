"""NORA: the critic is optimistic and blind to the policy, the actor is Hedge, switches are few."""

from __future__ import annotations

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError, DataError, Diverged
from habitus.core.experience import Trajectory, Transition
from habitus.core.protocols import Policy
from habitus.core.spec import Spec
from habitus.data.dataset import Dataset
from habitus.envs.registry import canonical, make
from habitus.envs.tabular import Tabular
from habitus.envs.worlds.finite import FiniteMDP
from habitus.envs.wrappers import TimeLimit
from habitus.methods.offline.nora import NORA
from habitus.nets.regression import ActionBlocks, Lookup, Ridge
from habitus.train.collect import whole_episodes
from habitus.train.loop import learn

KEY = jax.random.key(0)
S, A, H = 4, 2, 3


def model(seed=0):
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.ones(S), (S, A))
    return Tabular(transition, rng.uniform(size=(S, A)), np.full(S, 1 / S), np.zeros(S, bool))


MODEL = model()
WORLD = canonical(TimeLimit(FiniteMDP(MODEL, H), H))


def spec(updates):
    return dataclasses.replace(WORLD.spec, updates=updates)


@cache
def played(episodes=60, bonus=0.3, step_size=2.0):
    """The states of a run after every episode, stacked, and which of them followed a switch."""
    learner = NORA(bonus=bonus, step_size=step_size)

    def one(state, key):
        batch = whole_episodes(WORLD, learner.explorer(state), 1, H, key)
        state, metrics = learner.improved(state, batch)
        return state, (state, metrics["switched"] > 0)

    first = learner.init(spec(episodes), KEY)
    run = jax.jit(lambda s: jax.lax.scan(one, s, jax.random.split(KEY, episodes))[1])
    states, switched = run(first)
    return learner, first, [jax.tree.map(lambda x, i=i: x[i], states) for i in range(episodes)], np.asarray(switched)


def probabilities(learner, state):
    return jax.vmap(lambda actor: jax.vmap(lambda s: actor(s).probs)(jnp.arange(S)))(learner.actor(state))


def exact_episodes(n):
    """Episodes in which each pair of each step occurs, with the frequencies of successors those of the model."""
    counts = np.round(MODEL.transition * n).astype(int)
    pairs = np.stack(np.unravel_index(np.repeat(np.arange(S * A * S), counts.ravel()), (S, A, S)))
    obs, action, next_obs = (np.repeat(x[:, None].astype(np.int32), H, 1) for x in pairs)
    no = np.zeros(obs.shape, bool)
    steps = Transition(obs, action, MODEL.reward[obs, action].astype(np.float32), no, no, next_obs)
    return Trajectory.of_rollout(jax.tree.map(lambda x: jnp.asarray(x).swapaxes(0, 1), steps)), counts


def begun(learner, episodes):
    """The first state, given a log."""
    return jax.jit(lambda log: learner.begin(spec(1), log))(episodes)


class Known(NORA):
    """One feature for each pair, so that regression on features is counting, but for the ridge."""

    def regression(self, spec):
        return Ridge(Lookup(jnp.eye(S * A).reshape(S, A, -1)), jnp.asarray(1e-3), S * A, S)


def test_with_enough_data_and_no_bonus_the_critic_is_the_optimal_one():
    episodes, counts = exact_episodes(5_000)
    empirical = dataclasses.replace(MODEL, transition=counts / counts.sum(-1, keepdims=True))
    counted, ridge = (begun(cls(bonus=0.0), episodes).epoch.critic.values for cls in (NORA, Known))
    np.testing.assert_allclose(counted, empirical.q_within(H), atol=5e-4)  # the optimum of this very data
    np.testing.assert_allclose(counted, MODEL.q_within(H), atol=1e-3)
    np.testing.assert_allclose(ridge, counted, atol=1e-3)


def test_between_switches_the_critic_stands_still_and_a_switch_makes_the_actor_uniform():
    learner, first, states, switched = played()
    assert 3 < switched.sum() < len(switched)
    for before, after, new in zip([first, *states], states, switched, strict=False):
        assert new or np.array_equal(before.epoch.critic.values, after.epoch.critic.values)
    reset = dataclasses.replace(states[-1], epoch=jax.jit(learner.switch)(states[-1]))
    uniform = np.full((H, S, A), 1 / A, np.float32)
    np.testing.assert_array_equal(probabilities(learner, reset), uniform)
    assert not np.allclose(probabilities(learner, states[-1]), uniform, atol=0.1)
    assert not np.array_equal(first.epoch.critic.values, states[-1].epoch.critic.values)


def test_the_policy_is_the_recursion_of_multiplicative_weights():
    learner, first, states, switched = played()
    policy, largest = np.full((H, S, A), 1 / A), 0
    for state, new in zip(states, switched, strict=True):
        policy = np.full((H, S, A), 1 / A) if new else policy
        policy = policy * np.exp(learner.step_size / learner.span(H) * np.asarray(state.epoch.critic.values, float))
        policy /= policy.sum(-1, keepdims=True)
        np.testing.assert_allclose(probabilities(learner, state), policy, atol=1e-6)
        largest = max(largest, float(policy.max()))
    assert largest > 0.55


def test_the_critic_does_not_depend_on_the_policy():
    learner, _, states, _ = played()
    other = dataclasses.replace(states[-1].epoch, weight=jnp.asarray(-50.0))
    moved = dataclasses.replace(states[-1], epoch=other)
    assert not np.allclose(probabilities(learner, moved), probabilities(learner, states[-1]), atol=0.1)
    np.testing.assert_array_equal(learner.fit(moved).values, learner.fit(states[-1]).values)


def test_the_critic_is_optimistic_and_within_bounds():
    episodes, delta, seeds = 8_000, 0.05, 20
    # Hoeffding on the optimal values, over every pair, step and count
    bonus = np.sqrt(np.log(2 * S * A * H * episodes / delta) / 2)
    learner = NORA(bonus=float(bonus))
    start = learner.init(spec(episodes), KEY)

    def one(key):
        batch = whole_episodes(WORLD, learner.explorer(start), episodes, H, key)
        return learner.begin(spec(1), batch).epoch.critic.values

    values = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, seeds)))
    q, left = MODEL.q_within(H), np.arange(H, 0, -1)[:, None, None]
    assert (values >= 0).all() and (values <= left).all()
    optimistic = (values[:, 0].max(-1) >= q[0].max(-1) - 1e-6).all(-1)
    assert optimistic.mean() >= 1 - delta
    assert (values[:, 0].max(-1) < left[0, 0]).any(), "all is clipped at the top, so this says nothing"


def test_what_was_never_seen_is_as_good_as_can_be_unless_there_is_no_optimism():
    left = np.broadcast_to(np.arange(H, 0, -1)[:, None, None], (H, S, A))
    np.testing.assert_array_equal(NORA().init(spec(1), KEY).epoch.critic.values, left)
    np.testing.assert_array_equal(NORA(max_return=1.5).init(spec(1), KEY).epoch.critic.values, np.minimum(left, 1.5))
    assert not np.asarray(NORA(bonus=0.0).init(spec(1), KEY).epoch.critic.values).any()


def test_switches_are_logarithmic():
    _, _, states, switched = played()
    assert switched.sum() <= S * A * H * np.ceil(np.log2(len(switched) + 1))
    counts = np.asarray(states[-1].evidence)
    assert switched.sum() <= (np.floor(np.log2(np.maximum(counts, 0.5))) + 1).sum()
    assert counts.sum() == H * len(switched)


def test_more_data_never_raises_a_bonus():
    episodes, _ = exact_episodes(40)
    few = jax.tree.map(lambda x: x[::7], episodes)
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), few)
    ridge = Ridge(ActionBlocks(A), jnp.asarray(1.0), ActionBlocks(A).size(S))

    @jax.jit
    def width(episodes):
        steps = dataclasses.replace(episodes.steps, obs=jax.nn.one_hot(episodes.steps.obs, S))
        rows = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (steps, episodes.valid))
        evidence = ridge.add(ridge.start(H), *rows)
        phi = jax.vmap(ridge.features)(jnp.eye(S)).reshape(-1, ridge.size)
        return jnp.sqrt(jnp.einsum("nd,hde,ne->hn", phi, jnp.linalg.inv(evidence), phi))

    assert (width(twice) <= width(few) + 1e-6).all() and (width(twice) < width(few)).any()
    counts = [begun(NORA(), t).evidence for t in (few, twice)]
    np.testing.assert_array_equal(counts[1], 2 * counts[0])


def test_features_are_bounded_and_the_determinant_decides_on_linear_ones():
    blocks = ActionBlocks(3)
    for obs in (jnp.array([3.0, -4.0]), jnp.array([0.1, 0.2]), jnp.zeros(2)):
        phi = blocks(obs)
        assert phi.shape == (3, blocks.size(2)) and float(jnp.linalg.norm(phi, axis=1).max()) <= 1 + 1e-6
    ridge = Ridge(blocks, jnp.asarray(1.0), 2)
    before = jnp.eye(2)[None]
    assert not ridge.doubled(before * jnp.array([1.99, 1.0]), before)
    assert ridge.doubled(before * jnp.array([2.01, 1.0]), before)


def test_with_one_state_and_one_step_it_is_hedge():
    values, rounds = np.array([0.2, 0.9, 0.5, 0.0]), 200
    eta = np.sqrt(8 * np.log(4) / rounds)
    learner = NORA(step_size=eta)
    bandit = Tabular(np.ones((1, 4, 1)), values[None], np.ones(1), np.zeros(1, bool))
    world = canonical(TimeLimit(FiniteMDP(bandit, 1), 1))
    state = learner.init(dataclasses.replace(world.spec, updates=1), KEY)
    epoch = dataclasses.replace(
        state.epoch, critic=type(state.epoch.critic)(jnp.asarray(values, jnp.float32)[None, None])
    )
    regret = 0.0
    for _ in range(rounds):
        state = dataclasses.replace(state, epoch=epoch)
        probs = np.asarray(jax.vmap(lambda actor: actor(jnp.int32(0)).probs)(learner.actor(state))[0])
        regret += values.max() - probs @ values
        epoch = learner.improve(state, epoch)
    assert 0 < regret <= np.sqrt(rounds * np.log(4) / 2)


# --- with a log, and through `learn`


def logged(length=H, reward=0.5, rows=12):
    index = np.arange(rows)
    return Dataset.from_arrays(
        obs=index % S, action=index % A, reward=np.full(rows, reward, np.float32), next_obs=(index + 1) % S,
        terminated=np.zeros(rows, bool), truncated=(index + 1) % length == 0,
        observation_space=spaces.Discrete(S), action_space=spaces.Discrete(A),
    )  # fmt: skip


def test_a_log_is_part_of_the_evidence_and_of_the_first_critic():
    run = learn(NORA(), TimeLimit(FiniteMDP(MODEL, H), H), data=logged(), steps=H * 5, points=1)
    state = run.states[0]
    assert np.asarray(state.evidence).sum() == 12 + H * 5
    first = NORA().init(dataclasses.replace(spec(5), dataset=logged()), KEY)
    assert np.asarray(first.evidence).sum() == 12 and first.stored == 4 and first.room == 5
    assert not np.array_equal(first.epoch.critic.values, NORA().init(spec(5), KEY).epoch.critic.values)
    more = learn(NORA(), TimeLimit(FiniteMDP(MODEL, H), H), steps=H * 4, warm_start=run, points=1).states[0]
    assert np.asarray(more.evidence).sum() == 12 + H * 9 and np.asarray(more.valid).sum() == 12 + H * 9


@pytest.mark.parametrize(
    ("log", "match"), [(logged(length=6), "up to 6 steps"), (logged(reward=1.5), r"rewards of .* \[1.5, 1.5\]")]
)
def test_a_log_that_does_not_fit_is_refused(log, match):
    with pytest.raises(DataError, match=match):
        learn(NORA(), TimeLimit(FiniteMDP(MODEL, H), H), data=log, steps=H)


def test_a_world_without_end_or_with_other_rewards_is_refused():
    with pytest.raises(ConfigError, match="max_episode_steps"):
        learn(NORA(), FiniteMDP(MODEL, H), steps=10)
    with pytest.raises(ConfigError, match="longest episode"):
        NORA().init(Spec(spaces.Discrete(2), spaces.Discrete(2)), KEY)
    with pytest.raises(Diverged, match="reward_in_range"):
        learn(NORA(max_reward=0.01), TimeLimit(FiniteMDP(MODEL, H), H), steps=H * 5, points=1)
    learner, _, states, _ = played()
    one = jax.jit(lambda s: learner.improved(s, whole_episodes(WORLD, learner.explorer(s), 1, H, KEY))[1])
    metrics = one(states[-1])
    assert not np.isfinite(metrics["room"]), "sixty episodes were planned, and sixty are over"


def test_episodes_that_end_early_are_padded_and_count_once():
    world = canonical(make("four-rooms", max_episode_steps=30))
    batch = jax.jit(lambda key: whole_episodes(world, Random(), 8, 30, key))(KEY)
    assert batch.valid.shape == (8, 30) and batch.valid[:, 0].all()
    ended = np.asarray(batch.steps.done & batch.valid)
    assert (ended.sum(1) == 1).all()
    for row, end in zip(np.asarray(batch.valid), ended.argmax(1), strict=True):
        assert row[: end + 1].all() and not row[end + 1 :].any()


class Random(Policy):
    """Acts without looking."""

    def __call__(self, obs, carry, key):
        return jax.random.randint(key, (), 0, 4), carry


def test_a_world_in_python_gives_whole_episodes_too():
    run = learn(NORA(max_return=1.0), env="FrozenLake-v1", steps=100 * 6, points=2)
    assert np.isfinite(run.history["episode/return"]).all() and run.history["episode/finished"].sum() == 6
    assert np.asarray(run.states[0].evidence)[0].sum() == 6
