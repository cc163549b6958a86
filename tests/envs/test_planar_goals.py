"""`PlanarGoals`: what a goal means; and play in it, which asks for none."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.data.behaviours import PlanarPlay
from habitus.envs.registry import make, name_of
from habitus.envs.render import render
from habitus.envs.worlds.planar_goals import GoalState, PlanarGoals
from habitus.envs.worlds.planar_pick import TARGETS, PickState
from habitus.envs.wrappers import TimeLimit
from habitus.train.logs import record_log

KEY = jax.random.key(0)
WORLD, ENDLESS = PlanarGoals(), PlanarGoals(endless=True)
STAY = jnp.asarray([0.0, 0.0, -1.0])
step = jax.jit(lambda state, action: WORLD.step(state, action, KEY))


def state_of(objects, goal, held=-1):
    hand, holding = jnp.asarray([0.0, -0.4]), jnp.asarray(held, jnp.int32)
    plane = PickState(hand, holding >= 0, holding, jnp.asarray(objects), jnp.asarray(TARGETS))
    return GoalState(plane, jnp.asarray(goal))


SWAPPED = TARGETS[::-1]


@pytest.mark.parametrize(
    "objects, goal, asked, any_target",
    [
        (TARGETS, TARGETS, (1, 1), (1, 1)),
        (SWAPPED, TARGETS, (0, 0), (1, 1)),
        (SWAPPED, SWAPPED, (1, 1), (1, 1)),
        ((TARGETS[0], TARGETS[0]), TARGETS, (1, 0), (1, 1)),
        ((TARGETS[0], (0.25, 0.29)), TARGETS, (1, 0), (1, 0)),
    ],
)
def test_it_ends_and_pays_when_both_lie_as_asked(objects, goal, asked, any_target):
    state = state_of(objects, goal)
    assert WORLD.as_asked(state).tolist() == list(map(bool, asked))
    assert WORLD.on_targets(state).tolist() == list(map(bool, any_target))
    after, out = step(state, STAY)
    assert bool(out.terminated) == all(asked) and not out.truncated
    assert float(out.reward) == float(out.info["success"]) == float(all(asked))
    assert not ENDLESS.step(state, STAY, KEY)[1].terminated
    np.testing.assert_allclose(out.obs["achieved_goal"], np.ravel(objects), atol=1e-6)
    np.testing.assert_allclose(out.obs["desired_goal"], np.ravel(goal), atol=1e-6)


def test_what_is_held_has_not_arrived():
    held = state_of(TARGETS, TARGETS, held=1)
    assert not step(held, jnp.asarray([0.0, 0.0, 1.0]))[1].terminated
    assert WORLD.as_asked(held).tolist() == WORLD.on_targets(held).tolist() == [True, False]


def test_each_of_two_goals_is_drawn_half_of_the_time_and_the_rest_is_the_plain_world():
    _, obs = jax.vmap(WORLD.reset)(jax.random.split(KEY, 400))
    straight = (obs["desired_goal"] == np.ravel(TARGETS)).all(1)
    assert (straight | (obs["desired_goal"] == np.ravel(SWAPPED)).all(1)).all() and 160 < straight.sum() < 240
    np.testing.assert_array_equal(obs["achieved_goal"], obs["observation"][:, 5:9])
    action = jnp.asarray([0.3, 1.0, 1.0])
    state = state_of(((-0.2, -0.15), (0.2, -0.15)), TARGETS)
    plane, plain = WORLD.plane.step(state.plane, action, KEY)
    after, out = step(state, action)
    np.testing.assert_allclose(out.obs["observation"], plain.obs, atol=1e-6)
    np.testing.assert_allclose(after.plane.position, plane.position, atol=1e-6)


@pytest.fixture(scope="module")
def play():
    return record_log(PlanarPlay.of(ENDLESS), TimeLimit(ENDLESS, 90), 100)


def test_play_serves_either_object_to_either_target_again_and_again(play):
    assert len(play) == 100 * 90 and not np.asarray(play.terminated).any()
    held = np.asarray(play.next_obs["observation"])[:, 3:5].reshape(100, 90, 2) > 0.5
    things = np.asarray(play.next_obs["achieved_goal"]).reshape(100, 90, 2, 2)
    there = np.linalg.norm(things[:, :, :, None] - np.asarray(TARGETS), axis=-1) < 0.035
    let_go = held[:, :-1] & ~held[:, 1:]  # [episode, step, object]
    served = let_go[..., None] & there[:, 1:]
    assert 3.5 < served.sum((1, 2, 3)).mean() < 5.0
    assert served.sum((0, 1)).min() > 40  # each of the four pairs
    assert served.any(-1).sum() > 0.95 * let_go.sum()


def test_play_knows_its_aim_until_it_is_reached_and_never_sends_a_thing_where_it_is():
    player = PlanarPlay.of(ENDLESS)
    act = jax.jit(lambda obs, carry, key: player(obs, carry, key)[1])
    fresh, lying = ENDLESS.observe(state_of(((-0.2, -0.15), (0.2, -0.15)), TARGETS)), state_of(TARGETS, TARGETS)
    keys = jax.random.split(KEY, 40)
    assert len({tuple(act(fresh, player.init(), key).tolist()) for key in keys}) == 8
    mind = jnp.array([0, 1, 1], jnp.int32)
    assert all((act(fresh, mind, key) == mind).all() for key in keys[:5])
    after = np.stack([act(ENDLESS.observe(lying), jnp.array([0, 0, 1], jnp.int32), key) for key in keys])
    assert (after[:, 0] != after[:, 1]).all() and len(np.unique(after, axis=0)) == 4


def test_it_has_a_name_a_limit_and_a_picture():
    world = make("planar-goals", speed=0.02, limit=240)
    assert world.horizon == 240 and world.env.plane.speed == 0.02 and name_of(world) == "planar-goals"
    objects = ((-0.2, -0.15), (0.2, -0.15))
    one, other = (render(WORLD, state_of(objects, goal)) for goal in (TARGETS, SWAPPED))
    assert (one != other).any()
    with pytest.raises(ConfigError, match="reach"):
        PlanarGoals(reach=0.0)
