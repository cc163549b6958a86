"""The built-in worlds that Gymnasium has no counterpart of, and what all built-in ones share."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.envs.registry import BUILT_IN, make
from habitus.envs.worlds.bit_flip import BitFlip
from habitus.envs.worlds.four_rooms import GOAL, SIZE, STARTS, SUCCESSORS, WALLS, FourRooms
from habitus.envs.worlds.pointmaze import MARGIN, U_MAZE, PointMaze

KEY = jax.random.key(0)


def physics():
    """Every (name, number) of the built-in worlds that is a leaf."""
    for name, (kind, _) in BUILT_IN.items():
        for field in dataclasses.fields(kind):
            if isinstance(field.default, float) and not field.metadata.get("static", False):
                yield name, field.name


@pytest.mark.parametrize(("name", "parameter"), list(physics()))
def test_physics_can_be_mapped_over(name, parameter):
    world = make(name).env
    usual = getattr(world, parameter)
    state, _ = world.reset(KEY)
    action = jnp.asarray(world.action_space.sample())
    values = jnp.array([usual, 1.01 * usual + 1e-3])

    def step_with(value):
        changed = eqx.tree_at(lambda w: getattr(w, parameter), world, value)
        return changed.step(state, action, KEY)[1]

    step = jax.vmap(step_with)(values)
    _, alone = world.step(state, action, KEY)
    for found, expected in zip(jax.tree.leaves(step.obs), jax.tree.leaves(alone.obs), strict=True):
        np.testing.assert_allclose(found[0], expected, atol=1e-5)


class TestPointMaze:
    world = PointMaze()

    def step(self, state, action):
        return self.world.step(jnp.asarray(state, jnp.float32), jnp.asarray(action, jnp.float32), KEY)[1]

    def test_it_is_a_damped_double_integrator_where_nothing_is_near(self):
        step = self.step([3.5, 2.5, 1.0, -0.5, 1.5, 1.5], [0.5, 1.0])
        velocity = 0.95 * np.array([1.0, -0.5]) + 0.1 * np.array([0.5, 1.0])
        np.testing.assert_allclose(step.obs[2:4], velocity, rtol=1e-6)
        np.testing.assert_allclose(step.obs[:2], [3.5, 2.5] + 0.1 * velocity, rtol=1e-6)
        np.testing.assert_array_equal(step.obs[4:], [1.5, 1.5])

    def test_a_push_beyond_the_bounds_is_clipped(self):
        strong, full = (self.step([3.5, 2.5, 0, 0, 1.5, 1.5], [a, 0]) for a in (9.0, 1.0))
        np.testing.assert_array_equal(strong.obs, full.obs)

    def test_a_wall_stops_what_runs_into_it_and_nothing_else(self):
        step = self.step([1.05, 3.5, -2.0, 0.5, 1.5, 1.5], [0.0, 0.0])
        np.testing.assert_allclose(step.obs[:4], [1 + MARGIN, 3.5 + 0.1 * 0.475, 0.0, 0.475], rtol=1e-5)

    def test_no_walk_enters_a_wall(self):
        def one(state, key):
            state, _ = self.world.step(state, jax.random.uniform(key, (2,), minval=-3.0, maxval=3.0).round(), key)
            return state, state

        starts = jax.vmap(self.world.reset)(jax.random.split(KEY, 64))[0]
        keys = jax.random.split(jax.random.key(1), (64, 1500))
        states = np.asarray(jax.vmap(lambda s, k: jax.lax.scan(one, s, k)[1])(starts, keys))
        column, row = states[..., 0].astype(int), states[..., 1].astype(int)
        assert not self.world.walls[row, column].any()
        assert {(r, c) for r, c in zip(row.ravel(), column.ravel(), strict=True)} >= {(3, 1), (3, 3), (2, 3), (1, 1)}

    def test_the_guide_leads_to_the_goal_which_pays_and_ends_nothing(self):
        world, guide = make("pointmaze"), jnp.asarray(self.world.guide())

        def one(state, _):
            position, velocity, goal = state.state[:2], state.state[2:4], state.state[4:]
            cell = position.astype(jnp.int32)
            there = jnp.all(cell == jnp.floor(goal))
            target = jnp.where(there, goal, guide[cell[1], cell[0]])
            state, step = world.step(state, jnp.clip(4 * (target - position) - 3 * velocity, -1, 1), KEY)
            return state, step

        _, step = jax.lax.scan(one, world.reset(KEY)[0], length=200)
        assert step.reward.sum() > 80
        np.testing.assert_array_equal(step.info["success"], step.reward == 1.0)
        assert not step.terminated.any() and step.truncated[-1] and not step.truncated[:-1].any()

    def test_the_reward_is_for_being_within_the_radius(self):
        inside, outside = (self.step([1.5 + d, 1.5, 0, 0, 1.5, 1.5], [0, 0]) for d in (0.29, 0.31))
        assert (inside.reward, outside.reward) == (1.0, 0.0)

    @pytest.mark.parametrize(
        "layout", [("###", "#S#", "###"), ("####", "#SG#"), ("####", "#SG.", "####"), ("####", "#SG#", "#####")]
    )
    def test_a_maze_that_leaks_or_lacks_something_is_refused(self, layout):
        with pytest.raises(ConfigError, match="wall all round"):
            PointMaze(layout=layout)

    def test_physics_that_jump_through_walls_are_refused(self):
        with pytest.raises(ConfigError, match="cross a cell"):
            PointMaze(dt=1.0)

    def test_another_layout(self):
        world = PointMaze(layout=("#####", "#S.G#", "#####"))
        assert world.observation_space.contains(np.asarray(world.reset(KEY)[1]))
        assert U_MAZE == PointMaze().layout


class TestFourRooms:
    world = FourRooms()
    goal = GOAL[0] * SIZE + GOAL[1]

    def step(self, cell, action, time=0):
        return self.world.step(jnp.array([cell, time]), jnp.asarray(action), KEY)[1]

    def test_the_plan(self):
        assert WALLS.sum() == 11 and len(STARTS) == 64 - 11 - 1
        assert not WALLS[4, 1] and not WALLS[4, 6] and not WALLS[1, 4] and not WALLS[6, 4] and WALLS[4, 4]

    @pytest.mark.parametrize(
        ("cell", "action", "after"),
        [(0, 0, 0), (0, 1, 1), (0, 2, 8), (0, 3, 0), (3, 1, 3), (11, 1, 12), (12, 1, 13), (25, 2, 33), (24, 2, 24)],
    )
    def test_moves_walls_and_doors(self, cell, action, after):
        assert self.step(cell, action).obs == after

    def test_every_cell_is_reached_from_every_cell(self):
        reached = {self.goal}
        for _ in range(64):
            reached |= {cell for cell in [*STARTS, self.goal] if set(SUCCESSORS[cell].tolist()) & reached}
        assert len(reached) == 53

    @pytest.mark.parametrize("time", [0, 20, 39])
    def test_the_goal_pays_less_the_later_it_is_reached(self, time):
        step = self.step(self.goal - 1, 1, time)
        assert step.terminated and step.info["success"]
        np.testing.assert_allclose(step.reward, 1 - 0.9 * (time + 1) / 40, rtol=1e-6)
        assert self.step(0, 0, time).reward == 0.0

    def test_starts_are_uniform_over_free_cells(self):
        cells = np.asarray(jax.vmap(lambda key: self.world.reset(key)[1])(jax.random.split(KEY, 5200)))
        counts = np.bincount(cells, minlength=64)
        assert set(np.flatnonzero(counts)) == set(STARTS.tolist())
        assert 50 < counts[STARTS].min() and counts[STARTS].max() < 160


class TestBitFlip:
    def test_no_episode_starts_solved(self):
        obs = jax.vmap(lambda key: BitFlip(bits=1).reset(key)[1])(jax.random.split(KEY, 100))
        assert (obs[:, 0] != obs[:, 1]).all() and len(np.unique(obs[:, 0])) == 2

    def test_flipping_what_differs_solves_it(self):
        world = BitFlip(bits=6)
        state = jnp.array([0, 1, 0, 1, 1, 1, 1, 1, 0, 1, 0, 1], jnp.float32)
        rewards = []
        for bit in (0, 4):
            state, step = world.step(state, jnp.asarray(bit), KEY)
            rewards.append(float(step.reward))
        assert rewards == [-1.0, 0.0] and step.terminated and step.info["success"]

    def test_the_limit_follows_the_number_of_bits(self):
        assert make("bit-flip", bits=5).horizon == 5
        with pytest.raises(ConfigError, match="bits must be above 0"):
            BitFlip(bits=0)


def test_a_world_is_a_clean_tree():
    for name in BUILT_IN:
        leaves = jax.tree.leaves(eqx.filter(make(name), lambda _: True))
        assert all(isinstance(leaf, float | jax.Array) for leaf in leaves)
