"""Pictures of the built-in worlds."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import SpaceMismatch
from habitus.envs.registry import canonical, make, names
from habitus.envs.render import BODY, HEIGHT, WIDTH, render


def centroid(picture: np.ndarray) -> np.ndarray:
    """Mean (x, y) of the pixels in the colour of the body, as shares of the picture."""
    rows, columns = np.nonzero((np.abs(picture.astype(int) - BODY) < 30).all(-1))
    return np.array([columns.mean() / WIDTH, rows.mean() / HEIGHT])


@pytest.mark.parametrize("name", names())
def test_a_picture_shows_the_state(name):
    world = make(name)
    pictures = []
    for seed in range(2):
        state, _ = world.reset(jax.random.key(seed))
        actions = world.action_space
        actions.seed(seed)
        for tick in range(3 + seed):
            state, _ = world.step(state, jnp.asarray(actions.sample()), jax.random.key(tick))
        pictures.append(render(world, state))
        np.testing.assert_array_equal(pictures[-1], render(canonical(world), state))
    for picture in pictures:
        assert picture.shape == (HEIGHT, WIDTH, 3) and picture.dtype == np.uint8
    assert (pictures[0] != pictures[1]).any()


def test_things_are_where_they_should_be():
    pendulum = make("pendulum").env
    up, left = (centroid(render(pendulum, np.array([angle, 0.0]))) for angle in (0.0, np.pi / 2))
    assert up[1] < 0.4 and abs(up[0] - 0.5) < 0.02
    assert left[0] < 0.4 and abs(left[1] - 0.5) < 0.02
    right = centroid(render(make("cartpole").env, np.array([0.0, 0.0, 0.5, 0.0])))
    assert right[0] > 0.55
    maze = centroid(render(make("pointmaze").env, np.array([3.5, 1.5, 0, 0, 1.5, 1.5])))
    np.testing.assert_allclose(maze, [0.7, 0.3], atol=0.01)
    cell = centroid(render(make("four-rooms").env, np.array([8 * 2 + 5, 0])))
    np.testing.assert_allclose(cell, [5.5 / 8, 2.5 / 8], atol=0.01)


def test_a_state_outside_the_picture_is_drawn_as_far_as_it_goes():
    far = render(make("cartpole").env, np.array([1e4, 0.0, 0.0, 0.0]))
    assert far.shape == (HEIGHT, WIDTH, 3)


def test_what_cannot_be_drawn():
    world = make("gymnax:CartPole-v1")
    with pytest.raises(SpaceMismatch, match="no drawing of GymnaxEnv"):
        render(world, world.reset(jax.random.key(0))[0])


def test_a_film_takes_less_time_to_draw_than_to_watch():
    world = make("pointmaze")
    state, _ = world.reset(jax.random.key(0))
    best = min(timed(lambda: render(world, state)) for _ in range(20))
    assert best < 0.01


def timed(do) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start
