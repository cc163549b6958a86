"""`LaneScene`: the geometry of a bending road, what a step does, what ends an episode; the scripted driver."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.data.behaviours import LaneDriver
from habitus.envs.registry import make
from habitus.envs.render import render
from habitus.envs.worlds.lane_scene import (
    LENGTH,
    RADIUS,
    LaneScene,
    Scene,
    gap,
    observe,
    on_road,
    path,
    placed,
    scene_of,
)
from habitus.train.logs import record_log

KEY = jax.random.key(0)
WORLD = LaneScene()
step = jax.jit(lambda state, action: WORLD.step(state, action, KEY))
FAR = ((-90.0, 0.0, 0.0), (90.0, 0.0, 0.0), (180.0, 0.0, 0.0))


def scene(ego=(0.0, 0.0, 0.0, 8.0), curvature=0.0, cars=FAR):
    return Scene(*(jnp.asarray(x, jnp.float32) for x in (ego, curvature, cars)))


@pytest.mark.parametrize("curvature", [0.0, 0.015, -0.01, 1e-7])
def test_places_on_the_road_and_in_the_plane_are_each_others_inverse(curvature):
    k = jnp.float32(curvature)
    arc, offset = (x.ravel() for x in jnp.meshgrid(jnp.linspace(-60, 60, 7), jnp.linspace(-6, 6, 5)))
    x, y, heading = placed(k, arc, offset)
    back = on_road(k, x, y)
    for found, wanted in zip(back, (arc, offset, heading), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-3)
    if curvature > 1e-3:  # the middle of the road is a circle around (0, 1/k)
        np.testing.assert_allclose(np.hypot(x, y - 1 / k), 1 / k - offset, rtol=1e-4)


def test_a_path_is_euler_steps_one_after_the_other():
    controls = np.asarray(jax.random.uniform(KEY, (12, 2), minval=-1.0)) * [0.5, 5.0]
    ego = np.array([1.0, -2.0, 0.3, 6.0])
    rows = path(jnp.asarray(ego, jnp.float32), jnp.asarray(controls, jnp.float32), 0.5)
    for (w, a), row in zip(controls, rows, strict=True):
        x, y, th, v = ego
        ego = np.array([x + 0.5 * v * np.cos(th), y + 0.5 * v * np.sin(th), th + 0.5 * w, v + 0.5 * a])
        np.testing.assert_allclose(row, ego, atol=1e-4)


def test_the_gap_is_between_discs_and_is_cut():
    def at(x, y, heading=0.0, time=0.0):
        now = scene(cars=((x, y, 2.0), *FAR[:2]))
        return float(gap(now, jnp.array([[0.0, 0.0, heading, 8.0]]), jnp.array([time]))[0])

    assert at(0.0, 3.5) == pytest.approx(3.5 - 2 * RADIUS, abs=1e-5)
    assert at(10.0, 0.0) == pytest.approx(10 - LENGTH, abs=1e-4)
    assert at(10.0, 0.0, time=2.0) == pytest.approx(14 - LENGTH, abs=1e-4)  # the car drives on
    assert at(0.0, 0.0) == pytest.approx(-2 * RADIUS, abs=2e-3) and at(60.0, 0.0) == 20.0
    reach = LENGTH / 2 - RADIUS
    assert at(0.0, 5.0, np.pi / 2) == pytest.approx(np.hypot(reach, 5 - reach) - 2 * RADIUS, abs=1e-4)
    same = scene(cars=((0.0, 0.0, 0.0), *FAR[:2]))
    slope = jax.grad(lambda x: gap(same, jnp.array([[x, 0.0, 0.0, 8.0]]), jnp.zeros(1))[0])
    assert np.isfinite(slope(jnp.float32(0.0)))


def test_an_observation_shows_the_scene_from_beside_the_ego():
    first, obs = WORLD.reset(jax.random.key(3))
    shown = scene_of(obs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), shown, first)
    moved = Scene(jnp.array([20.0, 3.0, 0.4, 7.0]), jnp.float32(0.01), first.cars)
    np.testing.assert_allclose(observe(scene_of(observe(moved))), observe(moved), atol=1e-3)
    arc, offset, road = on_road(moved.curvature, moved.ego[0], moved.ego[1])
    np.testing.assert_allclose(observe(moved)[:4], [offset, 0.4 - road, 7.0, 1.0], rtol=1e-5)
    np.testing.assert_allclose(scene_of(observe(moved)).cars[:, 0], moved.cars[:, 0] - arc, rtol=1e-4)


def test_steps_seen_from_the_ego_are_the_path_seen_from_the_start():
    controls = np.asarray(jax.random.uniform(KEY, (8, 2), minval=-1.0)) * np.float32([0.1, 1.0])
    cars = ((-40.0, 3.5, 4.0), (30.0, -3.5, 5.0), (60.0, 0.0, 9.0))
    start = scene(ego=(0.0, 0.5, 0.05, 8.0), curvature=0.012, cars=cars)
    states, now = path(start.ego, jnp.asarray(controls), 0.5), start
    _, offset, road = on_road(start.curvature, states[:, 0], states[:, 1])
    for t, control in enumerate(controls):
        now, out = step(now, control)
        wanted = [offset[t], states[t, 2] - road[t], states[t, 3]]
        np.testing.assert_allclose(out.obs[:3], wanted, atol=2e-3)
        known = gap(start, states[t : t + 1], jnp.array([0.5 * (t + 1)]))
        np.testing.assert_allclose(gap(now, now.ego[None], jnp.zeros(1)), known, atol=2e-2)


def test_touching_and_leaving_the_road_end_an_episode_and_nothing_else_does():
    still = np.zeros(2, np.float32)
    free = step(scene(), still)[1]
    assert not free.terminated and not free.truncated and float(free.reward) == pytest.approx(0.8)
    hit = step(scene(cars=((6.0, 0.0, 0.0), *FAR[:2])), still)[1]
    assert hit.terminated and hit.info["collision"] and not hit.info["off_road"]
    out = step(scene(ego=(0.0, 5.2, 0.1, 8.0)), still)[1]
    assert out.terminated and out.info["off_road"] and not out.info["collision"]


def test_actions_are_cut_to_their_limits():
    _, wild = step(scene(), np.float32([9.0, -90.0]))
    np.testing.assert_allclose(wild.obs[1:3], [0.25, 5.5], atol=1e-5)


def test_lanes_are_counted_from_the_right():
    np.testing.assert_allclose(WORLD.offset(jnp.arange(3)), [-3.5, 0.0, 3.5])
    assert WORLD.lane(jnp.array([-9.0, -3.0, -1.7, 1.8, 4.0])).tolist() == [0, 0, 1, 2, 2]


def test_a_first_scene_is_clear_has_a_car_beside_and_equal_speeds_in_a_lane():
    scenes, _ = jax.vmap(WORLD.reset)(jax.random.split(KEY, 256))
    clear = jax.vmap(lambda s: gap(s, s.ego[None], jnp.zeros(1))[0])(scenes)
    assert (clear > 0.3).all() and (jnp.abs(scenes.cars[:, 1, 0]) <= 12).all()
    own = WORLD.lane(scenes.ego[:, 1])
    assert (WORLD.lane(scenes.cars[:, 1, 1]) != own).all()
    same = scenes.cars[:, 0, 1] == scenes.cars[:, 2, 1]
    assert (scenes.cars[same, 0, 2] == scenes.cars[same, 2, 2]).all() and 0.2 < same.mean() < 0.5


def test_the_driver_does_one_thing_and_hardly_ever_crashes():
    log = record_log(LaneDriver.of(WORLD), make("lane-scene"), 200)
    assert np.asarray(log.terminated).sum() <= 2
    obs = np.asarray(log.obs)[log.starts[log.lengths == 40][:, None] + np.arange(40)]
    moved = WORLD.lane(jnp.asarray(obs[:, -1, 0])) - WORLD.lane(jnp.asarray(obs[:, 0, 0]))
    assert set(np.unique(moved)) == {-1, 0, 1} and 0.2 < (np.asarray(moved) != 0).mean() < 0.6
    settled = np.abs(obs[:, -1, 0] / 3.5 - np.round(obs[:, -1, 0] / 3.5))
    assert settled.max() < 0.1 and obs[..., 2].min() >= -1e-3


def test_what_makes_no_sense_is_refused():
    for bad in (dict(dt=0.0), dict(width=2.0), dict(limit=0)):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            LaneScene(**bad)
    assert make("lane-scene", limit=12).horizon == 12


def test_the_picture_shows_the_ego_in_its_lane():
    blue = [
        np.argwhere((np.abs(render(WORLD, scene(ego=(0.0, y, 0.0, 8.0))).astype(int) - (28, 126, 214)) < 30).all(-1))
        for y in (-3.5, 3.5)
    ]
    assert blue[0][:, 0].mean() - blue[1][:, 0].mean() == pytest.approx(7 * 3, abs=1)
    assert blue[0][:, 1].mean() == pytest.approx(120, abs=1)
