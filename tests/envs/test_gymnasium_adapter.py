"""Gymnasium's environments: as they come, and in canonical form."""

from __future__ import annotations

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError, HabitusError, MissingExtra, SpaceMismatch
from habitus.envs.adapters.gymnasium import GymnasiumEnv
from habitus.envs.host import HostCanonical
from habitus.envs.registry import canonical, make

from .worlds import Countdown, Nested

REAL = {"CartPole-v1": None, "Pendulum-v1": None, "Hopper-v5": "mujoco", "FrozenLake-v1": None, "Blackjack-v1": None}


def flat_seeds(seed, n):
    return np.random.SeedSequence(seed).generate_state(n).tolist()


class TestEnds:
    def play(self, actions, num_envs=2, **kwargs):
        world = GymnasiumEnv(Countdown, num_envs, **kwargs)
        first = world.reset(0)
        return world, first, [world.step(np.array(action)) for action in actions]

    def test_the_final_observation_survives_an_environment_that_overwrites_it(self):
        _, first, rows = self.play([[0, 1], [0, 0], [0, 1]])
        np.testing.assert_array_equal(first, [[3, 1], [3, 1]])
        step, following = rows[-1]
        np.testing.assert_array_equal(step.obs, [[0, 1], [2, 1]])
        np.testing.assert_array_equal(following, [[3, 2], [2, 1]])
        np.testing.assert_array_equal(step.terminated, [True, False])
        assert not step.truncated.any()

    def test_earlier_steps_keep_their_values(self):
        _, first, rows = self.play([[0, 0], [0, 0], [0, 0]])
        assert [float(step.obs[0, 0]) for step, _ in rows] == [2, 1, 0]
        assert float(first[0, 0]) == 3

    def test_success_is_reported_for_every_copy(self):
        _, _, rows = self.play([[0, 1], [0, 1], [0, 1]])
        np.testing.assert_array_equal(
            [step.info["success"] for step, _ in rows], [[False, False]] * 2 + [[True, False]]
        )

    def test_a_time_limit_truncates_and_is_the_horizon(self):
        world = GymnasiumEnv(lambda: gymnasium.wrappers.TimeLimit(Countdown(), 2))
        world.reset(0)
        rows = [world.step(np.array([1]))[0] for _ in range(4)]
        assert world.horizon == 2
        assert [bool(step.truncated[0]) for step in rows] == [False, True, False, True]

    def test_a_termination_at_the_limit_is_not_a_truncation(self):
        world = GymnasiumEnv(lambda: gymnasium.wrappers.TimeLimit(Countdown(), 3))
        world.reset(0)
        last = [world.step(np.array([0]))[0] for _ in range(3)][-1]
        assert last.terminated[0] and not last.truncated[0]


@pytest.mark.parametrize("name", REAL)
class TestAgainstPlainGymnasium:
    def worlds(self, name):
        if REAL[name]:
            pytest.importorskip(REAL[name])
        plain = [gymnasium.make(name) for _ in range(2)]
        return make(name, num_envs=2), plain

    def test_it_steps_as_gymnasium_does(self, name):
        ours, plain = self.worlds(name)
        obs = ours.reset(5)
        theirs = [env.reset(seed=seed)[0] for env, seed in zip(plain, flat_seeds(5, 2), strict=True)]
        plain[0].action_space.seed(0)
        for _ in range(40):
            jax.tree.map(np.testing.assert_array_equal, obs, jax.tree.map(lambda *x: np.stack(x), *theirs))
            action = [plain[0].action_space.sample() for _ in plain]
            step, obs = ours.step(np.array(action))
            for i, env in enumerate(plain):
                theirs[i], reward, terminated, truncated, _ = env.step(action[i])
                assert (step.reward[i], step.terminated[i], step.truncated[i]) == (
                    np.float32(reward),
                    terminated,
                    truncated,
                )
                if terminated or truncated:
                    theirs[i], _ = env.reset()

    def test_canonical_form_is_that_of_the_spec(self, name):
        ours, _ = self.worlds(name)
        spec, form = ours.spec, canonical(make(name, num_envs=2))
        obs, shown = ours.reset(1), form.reset(1)
        form.action_space.seed(1)
        for _ in range(10):
            np.testing.assert_allclose(shown, jax.vmap(spec.encode_obs)(obs), rtol=1e-6)
            assert shown.dtype == spec.obs_dtype and shown.shape == (2, *spec.obs_shape)
            action = np.stack([form.action_space.sample() for _ in range(2)])
            _, obs = ours.step(np.asarray(jax.vmap(spec.decode_action)(action)))
            _, shown = form.step(action)

    def test_same_seed_same_bits_and_copies_differ(self, name):
        ours, _ = self.worlds(name)
        first, again = ours.reset(3), ours.reset(3)
        jax.tree.map(np.testing.assert_array_equal, first, again)
        if name in ("CartPole-v1", "Pendulum-v1", "Hopper-v5"):
            assert (first[0] != first[1]).any()


class TestNested:
    def test_observations_are_batched_part_by_part(self):
        world = GymnasiumEnv(Nested, 3)
        world.reset(0)
        step, _ = world.step(np.array([[1, 0], [0, 1], [2, 1]]))
        np.testing.assert_array_equal(step.obs["kind"], [1, 0, 2])
        np.testing.assert_array_equal(step.obs["pair"][0], [[0.5, 0], [0, -1], [1, -1]])
        np.testing.assert_array_equal(step.obs["pair"][1], [[0, 1], [1, 1], [1, 1]])
        np.testing.assert_array_equal(step.truncated, [False, False, True])

    def test_canonical_form(self):
        world = canonical(GymnasiumEnv(Nested, 1))
        world.reset(0)
        step, following = world.step(np.array([[2, 1]]))
        np.testing.assert_array_equal(step.obs, [[0, 0, 1, 1, -1, 1, 1]])
        np.testing.assert_array_equal(following, [[1, 0, 0, 0, 0, 0, 1]])
        assert world.observation_space.shape == (7,)


class Echo(gymnasium.Env):
    """Remembers the actions it was given; integers and images as observations on demand."""

    def __init__(self, action_space, observation_space=None):
        self.action_space = action_space
        self.observation_space = observation_space or spaces.Discrete(3, start=4)
        self.seen = []

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        self.seen.append(action)
        return self.observation_space.sample(), 0.0, False, False, {}


class TestCanonicalActions:
    def given(self, action_space, action):
        env = Echo(action_space)
        world = canonical(make(env))
        world.reset(0)
        world.step(np.array([action]))
        return env.seen[-1]

    def test_real_actions_fill_the_bounds_and_are_clipped(self):
        box = spaces.Box(np.array([0, -4], np.float32), np.array([10, 0], np.float32))
        for action, wanted in (([-1.0, 1.0], [0, 0]), ([0.5, -7.0], [7.5, -4])):
            given = self.given(box, action)
            np.testing.assert_allclose(given, wanted)
            assert box.contains(given)

    def test_unbounded_actions_pass(self):
        np.testing.assert_allclose(self.given(spaces.Box(-np.inf, np.inf, (2, 1)), [3.0, -9.0]), [[3], [-9]])

    def test_integers_count_from_the_first(self):
        space = spaces.Discrete(3, start=7)
        assert self.given(space, 2) == 9 and space.contains(self.given(space, 0))

    def test_several_integers_keep_their_shape(self):
        space = spaces.MultiDiscrete([[2, 3], [4, 5]])
        given = self.given(space, [1, 2, 3, 4])
        np.testing.assert_array_equal(given, [[1, 2], [3, 4]])
        assert space.contains(given)

    def test_integer_observations_count_from_nought(self):
        world = canonical(make(Echo(spaces.Discrete(2))))
        assert 0 <= world.reset(0)[0] < 3 and world.reset(0).dtype == np.int32

    def test_images_stay_as_they_are(self):
        image = spaces.Box(0, 255, (4, 5, 3), np.uint8)
        obs = canonical(make(Echo(spaces.Discrete(2), image))).reset(0)
        assert obs.shape == (1, 4, 5, 3) and obs.dtype == np.uint8


class TestRefusals:
    @pytest.mark.parametrize("form", [make, lambda *a, **k: canonical(make(*a, **k))])
    @pytest.mark.parametrize(
        ("name", "action", "says"),
        [
            ("CartPole-v1", np.zeros(3, int), r"shape \(3,\)"),
            ("CartPole-v1", np.zeros(2), "integers"),
            ("Pendulum-v1", np.zeros(2), r"\(2, 1\)"),
            ("Pendulum-v1", np.zeros((2, 1), int), "real numbers"),
        ],
    )
    def test_a_wrong_action_is_named(self, form, name, action, says):
        world = form(name, num_envs=2)
        world.reset(0)
        with pytest.raises(SpaceMismatch, match=says):
            world.step(action)

    def test_one_environment_cannot_be_several(self):
        with pytest.raises(ConfigError, match="give its id or a function"):
            make(Countdown(), num_envs=2)
        one = Countdown()
        with pytest.raises(ConfigError, match="same environment each time"):
            make(lambda: one, num_envs=2)

    def test_what_is_no_world_is_refused(self):
        with pytest.raises(SpaceMismatch, match="returned a int"):
            make(lambda: 3)
        with pytest.raises(TypeError, match="int"):  # the type checker's, where it is on, or SpaceMismatch
            make(3)
        with pytest.raises(ConfigError, match="num_envs"):
            make("CartPole-v1", num_envs=0)

    def test_parameters_it_does_not_have(self):
        with pytest.raises(ConfigError, match="weight"):
            make("CartPole-v1", weight=3)
        with pytest.raises(ConfigError, match="weight can only be given with an id"):
            make(Countdown, weight=3)

    def test_spaces_without_a_canonical_form_are_refused_at_once(self):
        with pytest.raises(SpaceMismatch, match="canonical form"):
            make(Echo(spaces.Discrete(2), spaces.Text(3)))
        with pytest.raises(SpaceMismatch, match="action space"):
            make(Echo(spaces.MultiBinary(2)))

    def test_observations_that_are_not_what_was_declared(self):
        env = Echo(spaces.Discrete(2), spaces.Box(-1, 1, (2,)))
        world = make(env)
        env.reset = lambda **_: (np.zeros(3), {})
        with pytest.raises(SpaceMismatch, match=r"shape \(3,\)"):
            world.reset(0)

    @pytest.mark.parametrize(
        ("missing", "kind", "says"),
        [
            ('MuJoCo is not installed, run `pip install "gymnasium[mujoco]"`', MissingExtra, r"habitus\[mujoco\]"),
            ("Box2D is not installed", HabitusError, "Box2D is not installed"),
        ],
    )
    def test_a_missing_dependency(self, monkeypatch, missing, kind, says):
        def fail(*_, **__):
            raise gymnasium.error.DependencyNotInstalled(missing)

        monkeypatch.setattr(gymnasium, "make", fail)
        with pytest.raises(kind, match=says):
            make("Hopper-v5")


def test_closing_closes_every_copy():
    closed = []

    class Closing(Countdown):
        def close(self):
            closed.append(self)

    canonical(make(Closing, num_envs=3)).close()
    assert len(closed) == 3


def test_canonical_form_is_applied_once():
    world = make(Countdown)
    once = canonical(world)
    assert isinstance(once, HostCanonical) and once.env is world and canonical(once) is once
