"""Spaces into canonical form and back."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import SpaceMismatch
from habitus.core.spec import Spec, space_from_json, space_to_json

BOX = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([3.0, 10.0], np.float32))
CHOICE = spaces.Discrete(4, start=-1)
NESTED = spaces.Dict(
    {
        "arm": spaces.Dict({"angle": spaces.Box(-1, 1, (2, 2)), "grip": CHOICE}),
        "buttons": spaces.MultiBinary(3),
        "pair": spaces.Tuple([spaces.MultiDiscrete([2, 3], start=[1, 0]), spaces.Box(-1, 1, (1,))]),
    }
)
SPACES = {
    "box": BOX,
    "half-open": spaces.Box(np.array([-np.inf, 0], np.float32), np.array([1, np.inf], np.float32)),
    "image": spaces.Box(0, 255, (6, 7, 3), np.uint8),
    "discrete": CHOICE,
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "grid of choices": spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [-2, 0]]),
    "binary": spaces.MultiBinary([2, 2]),
    "dict": NESTED,
    "tuple": spaces.Tuple([CHOICE, BOX]),
}


@pytest.mark.parametrize("name", SPACES)
def test_one_observation_has_the_canonical_shape_and_type(name):
    spec = Spec(SPACES[name], CHOICE)
    obs = spec.encode_obs(SPACES[name].sample())
    assert obs.shape == spec.obs_shape and obs.dtype == spec.obs_dtype
    assert spec.tabular or spec.image or obs.shape == (spec.obs_size,)


def test_a_vector_stays_and_an_integer_counts_from_zero():
    np.testing.assert_array_equal(Spec(BOX, CHOICE).encode_obs(np.array([1.5, 7.0])), np.float32([1.5, 7.0]))
    assert [int(Spec(CHOICE, CHOICE).encode_obs(i)) for i in (-1, 0, 2)] == [0, 1, 3]
    image = SPACES["image"].sample()
    np.testing.assert_array_equal(Spec(SPACES["image"], CHOICE).encode_obs(image), image)


def test_keys_may_have_dots_as_those_of_lerobot_have():
    keyed = spaces.Dict({"observation.state": spaces.Box(-1, 1, (2,)), "observation": spaces.Dict({"b.c": CHOICE})})
    obs = {"observation.state": np.array([0.5, -0.5], np.float32), "observation": {"b.c": 2}}
    spec = Spec(keyed, BOX)
    spec.check_obs(obs)
    whole = spec.encode_obs(obs).tolist()
    assert whole.count(0.5) == 1 and whole.count(-0.5) == 1 and whole.count(1.0) == 1
    with pytest.raises(SpaceMismatch, match="observation.b.c"):
        spec.check_obs({"observation.state": obs["observation.state"], "observation": {}})


def test_named_parts_lie_side_by_side_where_the_names_say():
    spec = Spec(NESTED, CHOICE)
    obs = {
        "arm": {"angle": np.array([[0.1, 0.2], [0.3, 0.4]], np.float32), "grip": np.int64(1)},
        "buttons": np.array([1, 0, 1], np.int8),
        "pair": (np.array([2, 2]), np.array([0.5], np.float32)),
    }
    expected = {
        "arm.angle": [0.1, 0.2, 0.3, 0.4], "arm.grip": [0, 0, 1, 0], "buttons": [1, 0, 1],
        "pair.0": [0, 1, 0, 0, 1], "pair.1": [0.5],
    }  # fmt: skip
    vector = spec.encode_obs(obs)
    assert set(spec.names) == set(expected) and vector.shape == (17,)
    for name, part in expected.items():
        np.testing.assert_allclose(vector[spec.names[name]], part, rtol=1e-6)
    spec.check_obs(obs)
    batch = jax.tree.map(lambda x: np.stack([x, x]), obs)
    np.testing.assert_array_equal(jax.vmap(spec.encode_obs)(batch)[1], vector)


@pytest.mark.parametrize("name", ["box", "discrete", "multi-discrete", "grid of choices"])
def test_an_action_comes_back_from_its_canonical_form(name):
    space = SPACES[name]
    spec = Spec(BOX, space)
    space.seed(0)
    for action in (space.sample() for _ in range(20)):
        canonical = spec.encode_action(action)
        assert canonical.shape == spec.action_shape and canonical.dtype == spec.action_dtype
        back = np.asarray(spec.decode_action(canonical))
        np.testing.assert_allclose(back, action, rtol=1e-5, atol=1e-5)
        assert back.shape == space.shape


def test_bounds_become_one():
    spec = Spec(BOX, BOX)
    np.testing.assert_allclose(spec.encode_action(BOX.low), [-1, -1])
    np.testing.assert_allclose(spec.encode_action(BOX.high), [1, 1])
    np.testing.assert_allclose(spec.decode_action(jnp.array([5.0, -5.0])), [3.0, 0.0])
    assert spec.bounded and spec.continuous and not spec.discrete


def test_unbounded_actions_stay_as_they_are():
    spec = Spec(BOX, SPACES["half-open"])
    assert spec.continuous and not spec.bounded
    np.testing.assert_array_equal(spec.decode_action(spec.encode_action(np.array([-7.0, 9.0]))), [-7.0, 9.0])


def test_sizes_of_actions():
    assert Spec(BOX, CHOICE).num_actions == Spec(BOX, CHOICE).action_size == 4
    assert Spec(BOX, SPACES["grid of choices"]).action_size == 14
    assert Spec(BOX, spaces.Box(-1, 1, (2, 3))).action_shape == (6,)


@pytest.mark.parametrize("name", SPACES)
def test_a_space_comes_back_from_json(name):
    text = json.dumps(space_to_json(SPACES[name]))
    assert space_from_json(json.loads(text)) == SPACES[name]


def test_spaces_without_a_canonical_form_are_refused():
    for observed, acted in ((spaces.Text(4), CHOICE), (BOX, spaces.MultiBinary(2)), (BOX, spaces.Dict({"a": BOX}))):
        with pytest.raises(SpaceMismatch, match="use Box, Discrete"):
            Spec(observed, acted)
    with pytest.raises(SpaceMismatch, match="a Text space cannot be saved"):
        space_to_json(spaces.Text(4))


def test_an_observation_that_does_not_fit_is_refused():
    spec = Spec(NESTED, CHOICE)
    good = NESTED.sample()
    with pytest.raises(SpaceMismatch, match="lacks 'arm.angle'"):
        spec.check_obs({k: v for k, v in good.items() if k != "arm"})
    with pytest.raises(SpaceMismatch, match=r"buttons has shape \(2,\), but one observation has \(3,\)"):
        spec.check_obs(good | {"buttons": np.zeros(2)})
    with pytest.raises(SpaceMismatch, match="map over it with jax.vmap"):
        Spec(BOX, CHOICE).check_obs(np.zeros((5, 2)))


def test_specs_of_other_spaces_do_not_match():
    spec = Spec(BOX, CHOICE)
    spec.check_same(Spec(BOX, spaces.Discrete(4, start=-1)))
    for other, field in (
        (Spec(spaces.Box(-1, 1, (3,)), CHOICE), "observation space"),
        (Spec(BOX, spaces.Discrete(3)), "action space"),
        (Spec(BOX, spaces.Discrete(4)), "action space"),  # another start
        (Spec(BOX, BOX), "action space"),
    ):
        with pytest.raises(SpaceMismatch, match=f"{field} differs: expected .* but the log has"):
            spec.check_same(other, "the log")


def test_what_a_method_requires():
    with pytest.raises(SpaceMismatch, match="DQN needs Discrete actions, but the action space is Box"):
        Spec(BOX, BOX).require("discrete", "DQN")
    with pytest.raises(SpaceMismatch, match="needs a bounded Box"):
        Spec(BOX, SPACES["half-open"]).require("bounded")
    Spec(BOX, SPACES["half-open"]).require("continuous")
