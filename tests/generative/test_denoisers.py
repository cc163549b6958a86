"""Networks that are told a noise level and what to condition on: shapes, what sees what, and what is refused."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError, SpaceMismatch
from habitus.generative.denoisers import Conv, LevelCode, ResidualMLP
from habitus.generative.edm import Denoiser
from habitus.generative.gpt import DenoisingTransformer
from habitus.generative.unet import ConditionalUNet, Doubled, FilmBlock
from habitus.nets.embedding import sinusoidal

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (8, 3))
LEVEL = jnp.asarray(4)


def test_a_convolution_with_stride_is_that_of_jax():
    conv = Conv(3, 5, 3, KEY, stride=2)
    kernel = conv.dense.weight.reshape(3, 3, 5)
    theirs = jax.lax.conv_general_dilated(X[None], kernel, (2,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC"))[0]
    np.testing.assert_allclose(conv(X), theirs + conv.dense.bias, atol=1e-5)


def test_a_transposed_convolution_adds_each_row_where_it_should():
    layer = Doubled(3, 2, KEY)
    kernel = [layer.odd[:3], layer.even[:3], layer.odd[3:], layer.even[3:]]  # x[i] w[k] goes to y[2 i + k - 1]
    known = np.tile(np.asarray(layer.bias), (16, 1))
    for i in range(8):
        for k in range(4):
            if 0 <= 2 * i + k - 1 < 16:
                known[2 * i + k - 1] += X[i] @ kernel[k]
    np.testing.assert_allclose(layer(X), known, atol=1e-5)


def test_the_scale_and_shift_stand_between_the_blocks():
    block = FilmBlock(3, 8, 5, 4, KEY)
    condition = jax.random.normal(KEY, (4,))
    scale, shift = jnp.split(jax.nn.mish(condition) @ block.film.weight + block.film.bias, 2)
    known = block.second(scale * block.first(X) + shift) + X @ block.past.weight + block.past.bias
    np.testing.assert_allclose(eqx.filter_jit(block)(X, condition), known, atol=1e-4)


def test_the_u_net_of_policies_sees_level_and_condition():
    net = ConditionalUNet(3, 5, KEY, channels=(8, 16, 16), embedding=8)
    call = jax.jit(lambda x, k, c: net(x, k, c))
    condition = jax.random.normal(KEY, (5,))
    found = call(X, LEVEL, condition)
    assert found.shape == X.shape and len(net.up) == 2
    assert not np.allclose(found, call(X, LEVEL + 3, condition)) and not np.allclose(found, call(X, LEVEL, -condition))
    with pytest.raises(SpaceMismatch, match="a multiple of 4; choose another length"):
        net(X[:6], LEVEL, condition)
    with pytest.raises(SpaceMismatch, match="given 5 numbers besides, but gets 4"):
        net(X, LEVEL, condition[:4])
    with pytest.raises(SpaceMismatch, match="levels of 1 numbers, but is given 8"):
        net(X, jnp.arange(8), condition)


def test_a_level_for_each_step_is_heard_one_by_one():
    net = ConditionalUNet(3, 0, KEY, channels=(8, 8), embedding=8, levels=8)
    call = jax.jit(lambda k: net(X, k))
    levels = jnp.arange(8)
    assert call(levels).shape == X.shape
    for i in (0, 7):
        assert not np.allclose(call(levels), call(levels.at[i].add(5)))
    mlp = ResidualMLP((8, 3), 16, 1, KEY, condition=6, levels=8, waves=16)
    assert mlp.enter.weight.shape == (24 + 16 + 6, 16) and mlp.code.first.weight.shape == (128, 16)
    seen = jnp.ones((2, 3))
    assert mlp(X, levels, seen).shape == X.shape
    assert not np.allclose(mlp(X, levels, seen), mlp(X, levels.at[7].add(5), seen))
    np.testing.assert_array_equal(mlp(X, levels, seen), mlp(X, levels, seen[0], seen[1]))


def test_the_code_of_one_level_is_its_waves_and_two_layers():
    code = LevelCode(16, KEY)
    waves = sinusoidal(jnp.asarray(0.3), 4)
    known = jax.nn.silu(code.second(jax.nn.silu(code.first(waves))))
    np.testing.assert_array_equal(code(jnp.asarray(0.3)), known)


@pytest.fixture(scope="module")
def gpt():
    return DenoisingTransformer(4, 3, KEY, observed=3, predicted=5, goals=2, width=8, layers=2, heads=2)


def test_actions_see_what_was_before_them_and_nothing_later(gpt):
    x, obs, goal = X[:5], jax.random.normal(KEY, (3, 4)), jax.random.normal(jax.random.key(1), (2, 4))
    call = jax.jit(lambda x, level, obs, goal: gpt(x, level, obs, goal))
    found, level = call(x, jnp.asarray(0.5), obs, goal), jnp.asarray(0.5)

    def changed(*given):
        return (np.abs(call(*given) - found).max(1) > 1e-6).tolist()

    assert found.shape == x.shape
    assert changed(x, level + 1, obs, goal) == [True] * 5
    assert changed(x, level, obs, goal.at[1].add(1)) == [True] * 5
    for i in range(3):  # an observation comes before the action of its step
        assert changed(x, level, obs.at[i].add(1), goal) == [j >= i for j in range(5)]
    for i in range(5):
        assert changed(x.at[i].add(1), level, obs, goal) == [j >= i for j in range(5)]


def test_a_transformer_is_a_network_of_the_denoiser(gpt):
    denoiser = Denoiser(gpt, 0.5)
    obs, goal = jnp.ones((3, 4)), jnp.zeros((2, 4))
    assert denoiser(X[:5], jnp.asarray(1.0), obs, goal).shape == (5, 3)
    noise = jax.random.normal(KEY, (5, 3))
    assert denoiser.loss(X[:5], jnp.asarray(0.3), noise, obs, goal, None).shape == ()
    wet = DenoisingTransformer(4, 3, KEY, observed=1, predicted=1, width=8, layers=1, heads=2, dropout=0.5)
    runs = [wet(X[:1], jnp.asarray(0.3), obs[:1], None, key) for key in (None, KEY, jax.random.key(1))]
    assert not np.allclose(runs[0], runs[1]) and not np.allclose(runs[1], runs[2])


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: ConditionalUNet(3, 0, KEY, channels=(12,)), "multiples of 8"),
        (lambda: ConditionalUNet(3, 0, KEY, channels=(8,), width=4), "width must be odd"),
        (lambda: ConditionalUNet(3, 0, KEY, channels=(8,), embedding=7), "embedding must be even"),
        (lambda: ConditionalUNet(3, -1, KEY, channels=(8,)), "condition must be 0 or more"),
        (lambda: LevelCode(8, KEY, levels=0), "1 number or more"),
        (lambda: LevelCode(8, KEY, waves=3), "waves must be even"),
        (lambda: DenoisingTransformer(4, 3, KEY, observed=3, predicted=2), "observed is 3 and predicted 2"),
        (lambda: DenoisingTransformer(4, 3, KEY, observed=1, predicted=2, dropout=1.0), "dropout"),
        (lambda: DenoisingTransformer(4, 3, KEY, observed=1, predicted=2, width=9), "heads must divide"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


def test_a_transformer_refuses_other_rows_than_it_is_made_for(gpt):
    with pytest.raises(SpaceMismatch, match=r"1 goals and 1 numbers .* made for \(3, 5, 2, 1\)"):
        gpt(X[:5], jnp.asarray(0.5), jnp.ones((3, 4)), jnp.ones((1, 4)))
