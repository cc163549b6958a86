"""What every compiled world promises, whoever wrote it."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import SpaceMismatch
from habitus.envs.stepping import step_and_reset

from .worlds import pure_worlds

WORLDS = pure_worlds()
COPIES, STEPS = 4, 40
every_world = pytest.mark.parametrize("name", WORLDS)


def parts(space, obs):
    """The simple spaces of an observation, with what belongs to each."""
    if not isinstance(space, spaces.Dict):
        return [(space, obs)]
    assert set(obs) == set(space.spaces)
    return [(space[name], obs[name]) for name in space.spaces]


def flat(obs):
    """Observations [STEPS, COPIES, ...] as one array, whatever their structure."""
    return np.concatenate([np.asarray(x).reshape(STEPS, COPIES, -1) for x in jax.tree.leaves(obs)], -1)


def random_actions(world, seed, *shape):
    space = world.action_space
    space.seed(seed)
    samples = [jnp.asarray(space.sample()) for _ in range(np.prod(shape))]
    return jnp.stack(samples).reshape(*shape, *space.shape)


@cache
def roll(name, seed, repeat=0):
    """Steps through ends of episodes: (obs, action, step, next first obs), each [STEPS, COPIES, ...]."""
    world = WORLDS[name]
    start_key, run_key = jax.random.split(jax.random.key(seed))
    actions = random_actions(world, seed, STEPS, COPIES)

    def one(at, now):
        state, obs = at
        action, keys = now
        state, step, first = jax.vmap(lambda s, a, k: step_and_reset(world, s, a, k))(state, action, keys)
        return (state, first), (obs, action, step, first)

    @jax.jit
    def run():
        start = jax.vmap(world.reset)(jax.random.split(start_key, COPIES))
        return jax.lax.scan(one, start, (actions, jax.random.split(run_key, (STEPS, COPIES))))[1]

    return run()


@every_world
def test_observations_lie_in_their_space(name):
    obs, _, step, first = roll(name, 0)
    for whole in (obs, step.obs, first):
        for space, shown in parts(WORLDS[name].observation_space, whole):
            wanted = jax.dtypes.canonicalize_dtype(space.dtype)
            assert shown.dtype == wanted and shown.shape == (STEPS, COPIES, *space.shape)
            for row in np.asarray(shown, space.dtype).reshape(-1, *space.shape):
                assert space.contains(row), f"{row} is not in {space}"


@every_world
def test_steps_have_the_declared_types(name):
    _, _, step, _ = roll(name, 0)
    assert step.reward.dtype == jnp.float32
    assert step.terminated.dtype == step.truncated.dtype == jnp.bool_
    assert step.reward.shape == step.terminated.shape == step.truncated.shape == (STEPS, COPIES)
    assert np.isfinite(step.reward).all()
    world = WORLDS[name]
    _, one = jax.eval_shape(
        world.step, world.reset(jax.random.key(0))[0], world.action_space.sample(), jax.random.key(1)
    )
    assert not one.reward.weak_type


@every_world
def test_episodes_end_by_the_horizon_and_for_one_reason(name):
    _, _, step, _ = roll(name, 0)
    assert WORLDS[name].horizon == 11
    assert not (step.terminated & step.truncated).any()
    assert step.truncated.any(), "the limit was never met"
    for done, cut in zip(np.transpose(step.terminated | step.truncated), np.transpose(step.truncated), strict=True):
        ends = np.flatnonzero(done)
        lengths = np.diff(ends, prepend=-1)
        assert (lengths <= 11).all() and (lengths[cut[ends]] == 11).all()


@every_world
def test_the_final_observation_is_kept_and_the_next_one_is_fresh(name):
    obs, action, step, first = roll(name, 0)
    done = np.asarray(step.terminated | step.truncated)
    obs, after, first = map(flat, (obs, step.obs, first))
    np.testing.assert_array_equal(first[~done], after[~done])
    np.testing.assert_array_equal(obs[1:], first[:-1])
    # Starting afresh differs from going on, in some copy at least (a few worlds start where they can also end).
    assert (first[done] != after[done]).any()


@every_world
def test_same_seed_same_bits_and_one_copy_equals_many(name):
    jax.tree.map(np.testing.assert_array_equal, roll(name, 0), roll(name, 0, repeat=1))
    world = WORLDS[name]
    keys = jax.random.split(jax.random.key(2), COPIES)
    state, _ = jax.vmap(world.reset)(keys)
    action = random_actions(world, 1, COPIES)
    _, many, _ = jax.vmap(lambda s, a, k: step_and_reset(world, s, a, k))(state, action, keys)
    alone, _ = world.reset(keys[1])
    _, one, _ = step_and_reset(world, alone, action[1], keys[1])
    for alone, among in zip(jax.tree.leaves(one.obs), jax.tree.leaves(many.obs), strict=True):
        np.testing.assert_allclose(alone, among[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one.reward, many.reward[1], rtol=1e-5, atol=1e-6)


@every_world
def test_a_wrong_action_is_named(name):
    world = WORLDS[name]
    state, _ = world.reset(jax.random.key(0))
    good = world.action_space.sample()
    with pytest.raises(SpaceMismatch, match="shape"):
        world.step(state, np.stack([good, good]), jax.random.key(1))
    if isinstance(world.action_space, spaces.Discrete):
        with pytest.raises(SpaceMismatch, match="integers"):
            world.step(state, np.float32(0.0), jax.random.key(1))
    else:
        with pytest.raises(SpaceMismatch, match="real numbers"):
            world.step(state, np.ones(world.action_space.shape, np.int32), jax.random.key(1))


@every_world
def test_a_step_compiles_once_whatever_the_state(name):
    world = WORLDS[name]
    step = jax.jit(lambda *given: world.step(*given))  # worlds with arrays cannot be hashed
    state, _ = world.reset(jax.random.key(0))
    for tick in range(3):
        state, _ = step(state, jnp.asarray(world.action_space.sample()), jax.random.key(tick))
    assert step._cache_size() == 1
