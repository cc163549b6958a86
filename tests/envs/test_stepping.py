"""Time limits, and stepping through the ends of episodes."""

from __future__ import annotations

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError
from habitus.core.experience import Step
from habitus.core.protocols import Env
from habitus.core.spec import Spec
from habitus.envs.registry import canonical, make
from habitus.envs.stepping import step_and_reset
from habitus.envs.wrappers import Canonical, ScaledReward, TimeLimit


class Noisy(Env):
    """Shows fresh noise at every step and every start; action 1 terminates."""

    @property
    def observation_space(self) -> gymnasium.Space:
        return spaces.Box(-np.inf, np.inf, (3,))

    @property
    def action_space(self) -> gymnasium.Space:
        return spaces.Discrete(2)

    def reset(self, key):
        noise = jax.random.normal(key, (3,))
        return noise, noise

    def step(self, state, action, key):
        # What worlds do with a key: use it, split it, fold numbers into it.
        parts = [key, *jax.random.split(key), *(jax.random.fold_in(key, i) for i in range(2))]
        noise = jnp.stack([jax.random.normal(part, (3,)) for part in parts])
        return noise[0], Step(noise[0], jnp.zeros(()), action == 1, jnp.array(False), {"noise": noise})


class Shifted(Env):
    """Dict observations, discrete actions from 5 on, and unequal bounds; shows the action it was given."""

    continuous: bool = eqx.field(default=False, static=True)

    @property
    def observation_space(self) -> gymnasium.Space:
        return spaces.Dict({"action": spaces.Box(-10, 20, (2,)), "kind": spaces.Discrete(3, start=1)})

    @property
    def action_space(self) -> gymnasium.Space:
        if self.continuous:
            return spaces.Box(np.array([0.0, -4.0], np.float32), np.array([10.0, 0.0], np.float32))
        return spaces.Discrete(4, start=5)

    def reset(self, key):
        return (), {"action": jnp.zeros(2), "kind": jnp.array(1)}

    def step(self, state, action, key):
        shown = {"action": jnp.broadcast_to(action, (2,)).astype(jnp.float32), "kind": jnp.array(3)}
        return (), Step(shown, jnp.zeros(()), jnp.array(False), jnp.array(False))


def test_a_termination_at_the_limit_is_not_a_truncation():
    world = TimeLimit(Noisy(), 2)
    state, _ = world.reset(jax.random.key(0))
    state, _ = world.step(state, jnp.array(0), jax.random.key(1))
    for action, flags in ((0, (False, True)), (1, (True, False))):
        _, step = world.step(state, jnp.array(action), jax.random.key(2))
        assert (bool(step.terminated), bool(step.truncated)) == flags


def test_the_clock_starts_again_with_the_episode():
    world = TimeLimit(Noisy(), 3)
    state, _ = world.reset(jax.random.key(0))
    cuts = []
    for tick in range(9):
        state, step, _ = step_and_reset(world, state, jnp.array(0), jax.random.key(tick))
        cuts.append(bool(step.truncated))
    assert cuts == [False, False, True] * 3


def test_the_shorter_of_two_limits_holds():
    assert TimeLimit(TimeLimit(Noisy(), 5), 9).horizon == 5
    assert TimeLimit(TimeLimit(Noisy(), 9), 5).horizon == 5
    with pytest.raises(ConfigError, match="above 0"):
        TimeLimit(Noisy(), 0)


def test_copies_that_end_start_afresh_and_the_others_go_on():
    keys = jax.random.split(jax.random.key(0), 4)
    state, _ = jax.vmap(Noisy().reset)(keys)
    action = jnp.array([0, 1, 0, 1])
    after, step, first = jax.vmap(lambda s, a, k: step_and_reset(Noisy(), s, a, k))(state, action, keys)
    np.testing.assert_array_equal(first[::2], step.obs[::2])
    np.testing.assert_array_equal(after, first)
    assert (np.asarray(first)[1::2] != np.asarray(step.obs)[1::2]).all()
    # A copy fares the same whether others end or not.
    alone, _, lone_first = step_and_reset(Noisy(), state[1], action[1], keys[1])
    np.testing.assert_array_equal(alone, after[1])
    np.testing.assert_array_equal(lone_first, first[1])


def test_fresh_starts_share_no_randomness_with_the_step_before():
    state, _ = Noisy().reset(jax.random.key(0))
    _, step, first = step_and_reset(Noisy(), state, jnp.array(1), jax.random.key(7))
    assert not np.isin(np.asarray(first), np.asarray(step.info["noise"])).any()


def test_it_maps_over_seeds_and_copies_and_differentiates():
    world = make("pendulum")
    keys = jax.random.split(jax.random.key(0), (2, 3))
    state, _ = jax.vmap(jax.vmap(world.reset))(keys)

    def total(torque):
        act = jnp.full((2, 3, 1), torque)
        _, step, _ = jax.vmap(jax.vmap(lambda s, a, k: step_and_reset(world, s, a, k)))(state, act, keys)
        return step.reward.sum()

    # Only the cost of the torque depends on it within one step: 6 * .001 * 2 * torque.
    np.testing.assert_allclose(jax.grad(total)(0.5), -6 * 0.001 * 2 * 0.5, rtol=1e-4)


class TestCanonical:
    def test_parts_lie_side_by_side(self):
        world = canonical(Shifted())
        _, obs = world.reset(jax.random.key(0))
        np.testing.assert_array_equal(obs, [0, 0, 1, 0, 0])
        np.testing.assert_array_equal(world.observation_space.low, [-10, -10, 0, 0, 0])
        np.testing.assert_array_equal(world.observation_space.high, [20, 20, 1, 1, 1])

    def test_discrete_actions_count_from_nought(self):
        _, step = canonical(Shifted()).step((), jnp.array(2), jax.random.key(0))
        np.testing.assert_array_equal(step.obs, [7, 7, 0, 0, 1])

    def test_real_actions_fill_the_unit_box(self):
        world = canonical(Shifted(continuous=True))
        for action, shown in (([-1.0, 1.0], [0, 0]), ([1.0, -1.0], [10, -4]), ([0.0, -3.0], [5, -4])):
            _, step = world.step((), jnp.array(action), jax.random.key(0))
            np.testing.assert_allclose(step.obs[:2], shown, atol=1e-6)

    def test_it_is_applied_once_and_keeps_the_world(self):
        world = make("pendulum")
        once = canonical(world)
        assert isinstance(once, Canonical) and canonical(once) is once and once.env is world

    @pytest.mark.parametrize("name", ["pendulum", "cartpole", "four-rooms", "bit-flip"])
    def test_its_spaces_are_their_own_canonical_form(self, name):
        spec = canonical(make(name)).spec
        again = Canonical(canonical(make(name)))
        assert isinstance(spec, Spec)
        assert again.observation_space == spec.observation_space and again.action_space == spec.action_space


def test_rewards_are_scaled_and_nothing_else():
    plain, scaled = make("pendulum"), ScaledReward(make("pendulum"), 0.1)
    state, obs = plain.reset(jax.random.key(0))
    np.testing.assert_array_equal(scaled.reset(jax.random.key(0))[1], obs)
    one, other = (w.step(state, jnp.ones(1), jax.random.key(1))[1] for w in (plain, scaled))
    np.testing.assert_allclose(other.reward, 0.1 * one.reward)
    np.testing.assert_array_equal(other.obs, one.obs)
    assert scaled.horizon == plain.horizon and scaled.action_space == plain.action_space
