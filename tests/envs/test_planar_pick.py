"""`PlanarPick`: what grasping, carrying and arriving mean; the expert, its modes, and its logs under noise."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.data.behaviours import PickAndPlace
from habitus.data.errands import FLAWS, FollowInstruction
from habitus.envs.noise import NoisyActions
from habitus.envs.registry import make
from habitus.envs.render import render
from habitus.envs.worlds.planar_pick import (
    OBSTACLE,
    RADIUS,
    TARGETS,
    InstructedPick,
    InstructedState,
    PickState,
    PlanarPick,
)
from habitus.train.logs import record_log

KEY = jax.random.key(0)
WORLD = PlanarPick()
DART = np.array([0.2, 0.2, 0.0], np.float32)
step = jax.jit(lambda state, action: WORLD.step(state, action, KEY))


def state_of(position, closed=False, held=-1, objects=((-0.2, -0.15), (0.2, -0.15))):
    return PickState(
        jnp.asarray(position, jnp.float32),
        jnp.asarray(closed),
        jnp.asarray(held, jnp.int32),
        jnp.asarray(objects),
        jnp.asarray(TARGETS),
    )


def act(state, x=0.0, y=0.0, grip=-1.0):
    return step(state, jnp.asarray([x, y, grip], jnp.float32))


def test_an_observation_shows_all_there_is():
    state, obs = WORLD.reset(KEY)
    assert obs.shape == (17,) and WORLD.observation_space.contains(np.asarray(obs))
    assert (jnp.abs(state.position - jnp.array([0.0, -0.4])) <= 0.08).all() and not state.closed and state.held == -1
    shown = WORLD.observe(state_of((0.1, -0.2), True, 1))
    np.testing.assert_allclose(shown[:9], [0.1, -0.2, 1, 0, 1, -0.2, -0.15, 0.2, -0.15], rtol=1e-6)
    np.testing.assert_allclose(shown[9:11], np.tanh([-0.3 / 0.08, 0.05 / 0.08]), rtol=1e-5)
    np.testing.assert_allclose(shown[15:], np.tanh([0.15 / 0.08, 0.55 / 0.08]), rtol=1e-5)


def test_a_grasp_needs_closing_from_open_near_an_object():
    near = (0.16, -0.15)
    after, _ = act(state_of(near), grip=1.0)
    assert after.held == 1 and after.closed
    assert act(state_of(near, closed=True), grip=1.0)[0].held == -1  # it was closed before
    assert act(state_of((0.14, -0.15)), grip=1.0)[0].held == -1  # too far
    assert act(state_of((0.14, -0.15)), x=0.5, grip=1.0)[0].held == 1  # it moves first
    both = state_of((0.0, -0.15), objects=((-0.04, -0.15), (0.03, -0.15)))
    assert act(both, grip=1.0)[0].held == 1  # the nearer one


def test_a_held_object_moves_along_and_is_let_go_by_opening():
    state = state_of((0.16, -0.15), True, 1)
    moved, _ = act(state, x=1.0, y=-0.5, grip=1.0)
    np.testing.assert_allclose(moved.position, [0.2, -0.17], atol=1e-6)
    np.testing.assert_allclose(moved.objects, [[-0.2, -0.15], [0.24, -0.17]], atol=1e-6)
    opened, _ = act(moved, x=1.0)
    np.testing.assert_allclose(opened.objects[1], [0.28, -0.17], atol=1e-6)
    assert opened.held == -1 and not opened.closed
    np.testing.assert_array_equal(act(opened, x=1.0)[0].objects, opened.objects)


def test_the_gripper_stays_in_the_square_and_out_of_the_disc():
    np.testing.assert_allclose(act(state_of((0.49, -0.49)), x=1.0, y=-5.0)[0].position, [0.5, -0.5], atol=1e-6)
    for start in ((0.0, -0.02), (0.02, -0.01), (0.13, 0.1)):
        state = state_of(start)
        for _ in range(3):
            state, _ = act(state, x=-start[0] * 10, y=(0.1 - start[1]) * 10)
            assert jnp.linalg.norm(state.position - jnp.asarray(OBSTACLE)) >= RADIUS - 1e-6
    inside, _ = act(state_of(OBSTACLE))
    np.testing.assert_allclose(inside.position, [0.0, 0.0], atol=1e-6)


def test_it_is_solved_when_both_lie_on_different_targets_and_none_is_held():
    swapped = (TARGETS[1], TARGETS[0])
    for objects, solved in (
        (TARGETS, True),
        (swapped, True),
        ((TARGETS[0], TARGETS[0]), False),
        (((-0.25, 0.29), TARGETS[1]), False),
    ):
        _, out = act(state_of((0.0, -0.4), objects=objects))
        assert bool(out.terminated) == bool(out.info["success"]) == solved and float(out.reward) == solved
    _, out = act(state_of(TARGETS[0], True, 0, TARGETS), grip=1.0)
    assert not out.terminated and not out.truncated


@pytest.fixture(scope="module")
def logs():
    world, expert = make("planar-pick"), PickAndPlace.of(WORLD)
    return record_log(expert, world, 100), record_log(expert, NoisyActions(world, jnp.asarray(DART)), 100)


def test_the_expert_succeeds_always_in_about_sixty_steps_with_and_without_noise(logs):
    for log, most in zip(logs, (62, 64), strict=True):
        first = log.starts % 120 == 0  # the end of the record cuts others
        assert first.sum() == 100 and np.asarray(log.terminated)[log.ends[first]].all()
        assert 58 <= log.lengths[first].mean() <= most and log.lengths[first].max() < 90


def test_a_log_under_noise_holds_what_the_expert_wanted_and_where_it_came(logs):
    clean, noisy = logs
    for log, spread in ((clean, 0.0), (noisy, 0.2)):
        obs, action, after = (np.asarray(x) for x in (log.obs, log.action, log.next_obs))
        wanted = obs[:, :2] + 0.04 * action[:, :2]
        free = (np.abs(action[:, :2]) < 0.4).all(1) & (np.linalg.norm(wanted - OBSTACLE, axis=1) > 0.15)
        error = ((after[:, :2] - wanted) / 0.04)[free]
        assert float(error.std()) == pytest.approx(spread, abs=0.02) and free.sum() > 300
        assert np.abs(action).max() <= 1 + 1e-6 and set(np.unique(action[:, 2])) == {-1.0, 1.0}


def test_the_expert_has_eight_ways_and_keeps_to_one():
    expert = PickAndPlace.of(WORLD)
    act = eqx.filter_jit(lambda obs, carry, key: expert(obs, carry, key))
    _, obs = WORLD.reset(KEY)
    ways = {tuple(np.asarray(act(obs, expert.init(), jax.random.key(i))[1]).tolist()) for i in range(60)}
    assert len(ways) == 8
    way = jnp.array([1, 0, 1], jnp.int32)
    assert (act(obs, way, KEY)[1] == way).all()
    first = [act(obs, jnp.array([i, 0, 0], jnp.int32), KEY)[0] for i in (0, 1)]
    assert first[0][0] < 0 < first[1][0]


def test_what_makes_no_sense_is_refused():
    for bad in (dict(speed=0.0), dict(reach=0.0), dict(limit=0)):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            PlanarPick(**bad)
    assert make("planar-pick", limit=240, speed=0.02).horizon == 240


def test_the_picture_shows_gripper_and_grip():
    world = make("planar-pick").env
    opened, closed = (render(world, state_of((0.3, -0.3), flag)) for flag in (False, True))
    centre = (slice(190, 194), slice(190, 194))  # x = 0.8, y = 0.8 of the picture
    assert (opened[centre] > 200).all() and closed[centre][..., 0].max() < 100


# --- with an instruction

ASKED = InstructedPick()


def instructed(thing, target, **where):
    return InstructedState(**vars(state_of(**where)), instruction=jnp.asarray([thing, target], jnp.int32))


def test_an_observation_shows_the_instruction_and_the_state_behind_it():
    state, obs = ASKED.reset(KEY)
    assert obs.shape == (21,) and ASKED.observation_space.contains(np.asarray(obs))
    np.testing.assert_array_equal(obs[:17], PlanarPick.observe(WORLD, state))
    keys = jax.random.split(KEY, 40)
    asked = {tuple(np.asarray(row).tolist()) for row in jax.vmap(ASKED.reset)(keys)[0].instruction}
    assert asked == {(0, 0), (0, 1), (1, 0), (1, 1)}
    for some in (state, instructed(1, 0, position=(0.1, 0.3), closed=True, held=1)):
        again = ASKED.state_of(ASKED.observe(some))
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all() and a.dtype == b.dtype, again, some))


def test_it_is_solved_when_the_object_that_was_asked_for_lies_on_its_target():
    for objects, asked, solved in (
        ((TARGETS[1], (0.2, -0.15)), (0, 1), True),
        ((TARGETS[1], (0.2, -0.15)), (0, 0), False),
        (((-0.2, -0.15), TARGETS[0]), (1, 0), True),
        (((-0.2, -0.15), TARGETS[0]), (0, 0), False),
    ):
        state = instructed(*asked, position=(0.0, -0.4), objects=objects)
        _, out = ASKED.step(state, jnp.asarray([0.0, 0.0, -1.0]), KEY)
        assert bool(out.terminated) == bool(out.info["success"]) == solved and float(out.reward) == solved
    held = instructed(0, 1, position=TARGETS[1], closed=True, held=0, objects=(TARGETS[1], (0.2, -0.15)))
    assert not ASKED.step(held, jnp.asarray([0.0, 0.0, 1.0]), KEY)[1].terminated


@pytest.fixture(scope="module")
def errands():
    """One episode of each of 120 copies, all of them flawed, and the flaw of each."""
    world, policy = make("planar-pick-instructed", limit=60), FollowInstruction(1.0)

    def episode(key):
        state, obs = world.reset(key)

        def advance(at, key):
            state, obs, carry, over = at
            action, carry = policy(obs, carry, key)
            state, out = world.step(state, action, key)
            return (state, out.obs, carry, over | out.terminated), (over | out.terminated, out.obs)

        start = state, obs, policy.init(), jnp.array(False)
        (*_, carry, _), (over, obs) = jax.lax.scan(advance, start, jax.random.split(key, 60))
        return carry.flaw, over, obs

    return [np.asarray(x) for x in jax.jit(jax.vmap(episode))(jax.random.split(KEY, 120))]


def test_flaws_fail_or_dawdle(errands):
    flaw, over, obs = errands
    assert sorted(set(flaw.tolist())) == [1, 2, 3]
    won = {name: over[flaw == i, -1].mean() for i, name in enumerate(FLAWS) if i}
    assert won["wrong"] == 0 and won["premature"] < 0.5 and won["detour"] > 0.95
    last = obs[flaw == FLAWS.index("wrong"), -1]
    thing, target = last[:, 17:19].argmax(1), last[:, 19:].argmax(1)
    lies = last[:, 5:9].reshape(-1, 2, 2)[np.arange(len(last)), thing]
    assert np.linalg.norm(lies - np.asarray(TARGETS)[1 - target], axis=1).max() < 0.05


def test_without_flaws_it_follows_the_instruction_under_noise():
    log = record_log(FollowInstruction(), NoisyActions(make("planar-pick-instructed"), jnp.asarray(DART)), 40)
    first = log.starts % 80 == 0
    assert np.asarray(log.terminated)[log.ends[first]].all() and 20 < log.lengths[first].mean() < 32
