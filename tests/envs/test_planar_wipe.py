"""`PlanarWipe`: force and servo, which cells are wiped, when the board moves; the expert and its log."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.claims.generative import _wiping
from habitus.core.errors import ConfigError, SpaceMismatch
from habitus.data.behaviours import Wipe
from habitus.data.parts import narrowed
from habitus.envs.registry import make
from habitus.envs.render import BODY, GOAL_COLOUR, render
from habitus.envs.worlds.planar_wipe import CELLS, FORCE, PIXELS, PlanarWipe, WipeState
from habitus.train.collect import run_episodes

KEY = jax.random.key(0)
STILL = PlanarWipe(jump=0.0, drift=0.0, noise=0.0)
step = jax.jit(lambda world, state, action, key: world.step(state, action, key))


def on(x, z, force=0.0, wave=(0.0, 5.0, 0.0), offset=0.0, touched=True, time=0):
    numbers = (jnp.asarray(v, jnp.float32) for v in ((x, z), force, wave, offset, 0.0))
    return WipeState(*numbers, jnp.asarray(touched), jnp.zeros(CELLS, bool), jnp.asarray(time, jnp.int32))


def act(state, x=0.0, z=0.0, world=STILL, key=KEY):
    return step(world, state, jnp.asarray([x, z], jnp.float32), key)


def test_the_servo_makes_four_fifths_of_a_move_and_force_drags_along_the_board():
    free, _ = act(on(0.0, 0.1), x=0.5, z=-1.0)
    np.testing.assert_allclose(free.position, [0.008, 0.084], atol=1e-6)
    pressed, _ = act(on(0.0, 0.1, force=2.0), x=0.5, z=5.0)
    np.testing.assert_allclose(pressed.position, [0.008 / 1.6, 0.116], atol=1e-6)


def test_force_is_that_of_a_spring_and_wipes_in_its_band_only():
    for depth, cells in ((-0.01, 0), (0.005, 0), (0.012, 2), (0.0195, 2), (0.021, 0)):
        after, out = act(on(0.0, -depth))
        assert float(after.force) == pytest.approx(50 * max(depth, 0.0), abs=1e-5)
        assert int(after.wiped.sum()) == cells and float(out.reward) == pytest.approx(cells / 80)
        assert float(out.obs[FORCE]) == pytest.approx(float(after.force), rel=0.05)
        again, out = act(after)
        assert float(out.reward) == 0 and (again.wiped == after.wiped).all()
    assert np.flatnonzero(act(on(0.0, -0.012))[0].wiped).tolist() == [39, 40]


def test_an_episode_ends_at_the_far_edge_and_succeeds_where_nine_tenths_are_wiped():
    _, out = act(on(0.395, 0.1), x=1.0)
    assert out.terminated and not out.info["success"]
    nearly = dataclasses.replace(on(0.395, 0.1), wiped=jnp.arange(CELLS) < 72)
    assert act(nearly, x=1.0)[1].info["success"] and not act(on(0.0, 0.1), x=1.0)[1].terminated


def test_the_picture_is_the_height_above_the_tool_from_behind_to_ahead():
    state = on(0.1, 0.02, wave=(0.03, 8.0, 1.0))
    obs = STILL.observe(state, KEY)
    places = 0.1 + np.linspace(-0.1, 0.2, PIXELS)
    np.testing.assert_allclose(obs[2:FORCE], 0.03 * np.sin(8 * places + 1) - 0.02, atol=1e-6)
    told = dataclasses.replace(STILL, told=True).observe(state, KEY)
    assert told.shape == (FORCE + 2,) and float(told[-1]) == pytest.approx(0.03 * 8 * np.cos(1.8), rel=1e-4)
    noisy = dataclasses.replace(STILL, noise=0.01)
    many = jax.vmap(lambda key: noisy.observe(state, key))(jax.random.split(KEY, 500))
    np.testing.assert_allclose(many[:, 2:FORCE].std(0), 0.01, rtol=0.15)


def test_the_board_jumps_up_or_down_and_back_once_it_was_touched():
    world = dataclasses.replace(STILL, jump=0.04, chance=1.0)
    found = {round(float(act(on(0.0, 0.2), world=world, key=jax.random.key(i))[0].offset), 3) for i in range(12)}
    assert found == {-0.04, 0.04}
    assert act(on(0.0, 0.2, offset=0.04), world=world)[0].offset == 0
    assert act(on(0.0, 0.2, touched=False), world=world)[0].offset == 0
    drifting = dataclasses.replace(STILL, drift=0.02)
    heights = [float(drifting.height(on(0.0, 0.0, time=t), jnp.zeros(()))) for t in (0, 10, 20, 30, 40)]
    np.testing.assert_allclose(heights, [0, 0.02, 0, -0.02, 0], atol=1e-6)


def test_the_expert_wipes_all_of_a_board_that_is_still_and_most_of_one_that_is_not():
    still, moving = (run_episodes(Wipe(), _wiping.world(is_still, told=True), 50, 5) for is_still in (True, False))
    assert still.returns.min() > 0.97 and still.success.all() and 0.85 < moving.returns.mean() < 0.97
    assert still.lengths.max() < 120 and (np.unique(still.lengths // 12).size > 1)


def test_a_log_shows_what_learners_see_and_holds_what_the_expert_wanted():
    log = _wiping.demonstrations(20)
    assert len(log.starts) == 20 and log.obs.shape[1] == FORCE + 1 and log.observation_space.shape == (FORCE + 1,)
    assert log.lengths.min() > 80 and log.returns.mean() > 0.8
    obs, action = np.asarray(log.obs), np.asarray(log.action)
    falling = (obs[:, FORCE] == 0) & (obs[:, 0] < -0.38) & (obs[:, 1] > 0.1)
    with pytest.raises(SpaceMismatch, match="first 20"):
        narrowed(log, 20)
    assert set(np.unique(action[falling].round(3)[:, 1])) == {-1.0, np.float32(-0.4)}  # two ways of coming down


def test_what_makes_no_sense_is_refused():
    for bad in (dict(jump=-1.0), dict(chance=1.5), dict(noise=-1.0), dict(limit=0)):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            PlanarWipe(**bad)
    assert make("planar-wipe", limit=60).horizon == 60


def test_the_picture_of_a_state_shows_tool_and_wiped_cells():
    world = make("planar-wipe").env
    wiped = dataclasses.replace(on(0.2, 0.1), wiped=jnp.arange(CELLS) < 40)
    picture = render(world, wiped).astype(int)
    green = (np.abs(picture - GOAL_COLOUR) < 30).all(-1)
    tool = np.argwhere((np.abs(picture - BODY) < 30).all(-1)).mean(0)
    assert green[:, : picture.shape[1] // 2].sum() > 20 * max(green[:, picture.shape[1] // 2 + 6 :].sum(), 1)
    assert tool[1] / picture.shape[1] == pytest.approx(0.7, abs=0.02)
