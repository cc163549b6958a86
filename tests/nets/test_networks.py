"""Dense and convolutional networks, ensembles, and the actors made of them."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError, SpaceMismatch
from habitus.core.spec import Spec
from habitus.nets import heads
from habitus.nets.encoder import ConvEncoder, OneHotEncoder, VectorEncoder, make_encoder
from habitus.nets.mlp import ACTIVATIONS, MLP, Linear, draws, orthogonal

KEY = jax.random.key(0)
REAL = Spec(spaces.Box(-1, 1, (3,)), spaces.Box(-2, 2, (2,)))
CHOICE = Spec(spaces.Box(-1, 1, (3,)), spaces.Discrete(4, start=1))
SEVERAL = Spec(spaces.Box(-1, 1, (3,)), spaces.MultiDiscrete([[2, 3], [4, 2]]))
UNBOUNDED = Spec(spaces.Box(-1, 1, (3,)), spaces.Box(-np.inf, np.inf, (2,)))


@pytest.mark.parametrize("inputs", [4, 100])
def test_the_default_initialisation_is_uniform_within_one_over_the_root(inputs):
    layer = Linear.random(inputs, 1000, KEY)
    bound = inputs**-0.5
    for part in (layer.weight, layer.bias):
        assert np.abs(part).max() <= bound
        np.testing.assert_allclose(np.std(part), bound / 3**0.5, rtol=0.1)


def test_the_orthogonal_initialisation():
    mlp = MLP(8, (32, 32), 2, KEY, "tanh", final_gain=0.01)
    for layer, gain in zip(mlp.layers, (2**0.5, 2**0.5, 0.01), strict=True):
        assert not layer.bias.any()
        np.testing.assert_allclose(np.linalg.svd(layer.weight)[1], gain, rtol=1e-4)


def test_orthogonal_matrices_are_those_of_the_decomposition():
    """Q of QR with a positive diagonal is what makes the matrices uniformly distributed."""
    shapes = [(5, 1), (3, 64), (64, 3), (256, 256)]
    keys = jax.random.split(KEY, len(shapes))
    for matrix, key, shape in zip(orthogonal(keys, shapes, [0.5] * 4), keys, shapes, strict=True):
        np.testing.assert_allclose(matrix, jax.nn.initializers.orthogonal(0.5)(key, shape), atol=2e-5)
        product = matrix.T @ matrix if shape[0] >= shape[1] else matrix @ matrix.T
        np.testing.assert_allclose(product, 0.25 * np.eye(min(shape)), atol=1e-6)


def test_arrays_that_are_drawn_at_once_are_those_drawn_one_by_one():
    shapes = [(3, 5), (7,), (1, 1)]
    keys = jax.random.split(KEY, len(shapes))
    for array, key, shape in zip(draws(jax.random.normal, keys, shapes), keys, shapes, strict=True):
        np.testing.assert_array_equal(array, jax.random.normal(key, shape))


def test_networks_side_by_side_are_made_without_lapack():
    """Its calls under `vmap` can fill XLA's threads while each waits for another."""
    program = jax.jit(jax.vmap(lambda key: MLP(8, (32, 32), 2, key, final_gain=0.01).layers[0].weight))
    assert "lapack" not in program.lower(jax.random.split(KEY, 4)).as_text().lower()


def test_a_network_is_its_layers():
    mlp = MLP(3, (5, 4), 2, KEY, "tanh")
    x = jnp.array([0.1, -2.0, 0.7])
    expected = np.asarray(x)
    for i, layer in enumerate(mlp.layers):
        expected = expected @ np.asarray(layer.weight) + np.asarray(layer.bias)
        expected = np.tanh(expected) if i < 2 else expected
    np.testing.assert_allclose(mlp(x), expected, rtol=1e-5, atol=1e-6)
    assert mlp(x).dtype == jnp.float32
    first, second = (layer.weight[:2, :2] for layer in mlp.layers[:2])
    assert not np.allclose(first, second)  # each layer draws its own


def test_networks_without_hidden_layers_are_linear():
    mlp = MLP(3, (), 2, KEY)
    np.testing.assert_allclose(mlp(jnp.ones(3)) - mlp(jnp.zeros(3)), mlp.layers[0].weight.sum(0), rtol=1e-5)


def test_an_unknown_activation_and_an_empty_layer_are_refused():
    with pytest.raises(ConfigError, match=f"one of {', '.join(ACTIVATIONS)}, but is 'swish'"):
        MLP(3, (4,), 1, KEY, "swish")
    for width in (0, -3):
        with pytest.raises(ConfigError, match=f"widths of hidden layers must be 1 or more, but are .*{width}"):
            MLP(3, (4, width), 1, KEY)


@pytest.mark.parametrize(("shape", "layers"), [((84, 84, 4), 3), ((36, 40, 3), 3), ((10, 10, 4), 2), ((5, 9, 1), 2)])
def test_images_of_any_size_become_features(shape, layers):
    encoder = ConvEncoder(shape, True, KEY)
    image = jax.random.randint(KEY, shape, 0, 256).astype(jnp.uint8)
    features = encoder(image)
    assert len(encoder.layers) == layers and features.shape == (encoder.size,) and features.dtype == jnp.float32
    assert encoder.size == {84: 64 * 7 * 7, 36: 64 * 1 * 1, 10: 32 * 3 * 3, 5: 32 * 1 * 3}[shape[0]]
    unit = ConvEncoder(shape, False, KEY)(image.astype(jnp.float32) / 255)  # integers are scaled, reals are not
    np.testing.assert_allclose(features, unit, rtol=1e-4, atol=1e-5)


def test_an_image_too_small_to_convolve_is_refused():
    with pytest.raises(SpaceMismatch, match="4 by 9, but must be at least 5 by 5"):
        ConvEncoder((4, 9, 3), True, KEY)


def test_encoders_fit_the_observations():
    assert isinstance(make_encoder(REAL, KEY), VectorEncoder)
    table = make_encoder(Spec(spaces.Discrete(5), spaces.Discrete(2)), KEY)
    assert isinstance(table, OneHotEncoder)
    np.testing.assert_array_equal(table(jnp.int32(3)), np.eye(5)[3])
    assert isinstance(make_encoder(Spec(spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(2)), KEY), ConvEncoder)


def test_members_of_an_ensemble_start_apart():
    twins = heads.twin_critic(REAL, (8,), KEY)
    obs, action = jnp.ones(3), jnp.ones(2)
    both = twins(obs, action)
    assert both.shape == (2,) and both[0] != both[1]
    np.testing.assert_array_equal(both, [member(obs, action) for member in twins.members])


def test_actions_have_the_shape_and_bounds_of_the_space():
    obs = 10 * jnp.ones(3)
    action = heads.DeterministicActor(REAL, (8,), KEY)(obs)
    assert action.shape == (2,) and (np.abs(action) <= 1).all()
    squashed = heads.TanhGaussianActor(REAL, (8,), KEY)(obs).sample(KEY)
    assert squashed.shape == (2,) and (np.abs(squashed) <= 1).all()
    assert heads.StochasticActor(UNBOUNDED, (8,), KEY)(obs).sample(KEY).shape == (2,)
    assert heads.StochasticActor(CHOICE, (8,), KEY)(obs).probs.shape == (4,)
    sample = heads.StochasticActor(SEVERAL, (8,), KEY)(obs).sample(KEY)
    assert sample.shape == (4,) and (np.asarray(sample) < [2, 3, 4, 2]).all()


def test_the_spread_of_a_squashed_gaussian_stays_in_its_range():
    actor = heads.TanhGaussianActor(REAL, (8,), KEY, log_std_range=(-3.0, 1.0))
    log_std = jax.vmap(lambda o: actor(o).base.log_std)(1e3 * jax.random.normal(KEY, (50, 3)))
    assert log_std.min() == -3.0 and log_std.max() == 1.0


def test_a_fresh_policy_gradient_actor_is_nearly_uniform():
    probs = heads.StochasticActor(CHOICE, (8,), KEY)(jnp.ones(3)).probs
    np.testing.assert_allclose(probs, 0.25, atol=0.02)


@pytest.mark.parametrize(
    ("make", "spec"),
    [
        (heads.Critic, CHOICE), (heads.DiscreteCritic, REAL), (heads.DeterministicActor, CHOICE),
        (heads.DeterministicActor, UNBOUNDED), (heads.TanhGaussianActor, UNBOUNDED),
        (heads.BoundedGaussianActor, UNBOUNDED),
    ],
)  # fmt: skip
def test_a_head_refuses_actions_that_it_cannot_give(make, spec):
    with pytest.raises(SpaceMismatch, match="but the action space is"):
        make(spec, (8,), KEY)


@pytest.mark.parametrize("make", [heads.Value, heads.DiscreteCritic, heads.StochasticActor])
def test_modules_are_clean_trees(make):
    net = make(dataclasses.replace(CHOICE), (8,), KEY)
    assert all(eqx.is_array(leaf) for leaf in jax.tree.leaves(net))


def test_actions_that_the_observation_rules_out_have_no_probability_and_leave_the_entropy_finite():
    shown = spaces.Dict({"action_mask": spaces.MultiBinary(4), "sight": spaces.Box(-1, 1, (2,))})
    spec = Spec(shown, spaces.Discrete(4))
    actor = heads.StochasticActor(spec, (8,), KEY)
    dist = actor(spec.encode_obs({"action_mask": jnp.array([0, 1, 0, 1]), "sight": jnp.ones(2)}))
    assert dist.probs[0] == dist.probs[2] == 0 and dist.probs.sum() == pytest.approx(1)
    draws = jax.vmap(dist.sample)(jax.random.split(KEY, 200))
    assert set(draws.tolist()) == {1, 3} and int(dist.mode()) in (1, 3)
    grads = jax.grad(lambda logits: type(dist)(logits).entropy())(dist.logits)
    assert np.isfinite(dist.entropy()) and np.isfinite(grads).all()
    assert 0 < float(dist.entropy()) <= np.log(2) + 1e-6


def test_a_mask_of_another_size_is_refused():
    shown = spaces.Dict({"action_mask": spaces.MultiBinary(3), "sight": spaces.Box(-1, 1, (2,))})
    with pytest.raises(SpaceMismatch, match="3 entries, but there are 4 actions"):
        heads.StochasticActor(Spec(shown, spaces.Discrete(4)), (8,), KEY)
