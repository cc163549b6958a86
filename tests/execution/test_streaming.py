"""The rolling buffer: levels, network calls, and what comes out of perfect denoisers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.execution.streaming import Streaming, resting_levels

from .parts import KEY, denoising, walk


def test_resting_levels_are_those_of_the_paper():
    found = resting_levels(20, 2, 8, 100)
    assert found.tolist() == [49] * 9 + [99] * 11
    assert resting_levels(17, 2, 4, 48).tolist() == [11] * 5 + [23] * 4 + [35] * 4 + [47] * 4
    for rows, observe, execute in [(17, 3, 2), (9, 1, 4), (16, 2, 1)]:
        assert (np.diff(resting_levels(rows, observe, execute, 60)) >= 0).all()


@pytest.mark.parametrize(
    ("rows", "observe", "execute", "levels", "calls"),
    [(17, 2, 4, 48, 12), (20, 2, 8, 100, 50), (17, 2, 1, 48, 3), (9, 3, 2, 9, 3), (6, 4, 2, 5, 5)],
)
def test_each_plan_takes_its_share_of_calls_and_brings_the_levels_back(rows, observe, execute, levels, calls):
    policy = Streaming(denoising(rows, levels, 0.2, 0.4), execute, observe)
    actions, carries = walk(policy, 2 * execute + 1)
    assert [int(c.calls) for c in carries] == [calls * (1 + t // execute) for t in range(2 * execute + 1)]
    for carry in carries:
        np.testing.assert_array_equal(carry.memory.level, policy.resting)
        assert carry.memory.chunk.shape == (rows, 1)
    assert (np.abs(actions) <= 1).all()


@pytest.mark.parametrize("first", ["zero", "constant", "denoise"])
def test_a_perfect_denoiser_brings_out_the_data(first):
    sequence = jnp.linspace(-0.9, 0.9, 17)[:, None]
    position = (0,) if first == "constant" else ()
    policy = Streaming(denoising(17, 48, sequence), 4, 2, first=first, position=position)
    actions, carries = walk(policy, 12)
    np.testing.assert_allclose(actions[:, 0], np.tile(sequence[1:5, 0], 3), atol=5e-6)
    assert int(carries[-1].calls) == 36 + (48 if first == "denoise" else 0)


def test_gaussian_data_come_out_as_from_whole_chains():
    planner = denoising(9, 16, 0.2, 0.4, clip=None)
    policy = Streaming(planner, 2, 2)

    def run(key):
        def step(carry, k):
            return policy(jnp.zeros(2), carry, k)[::-1]

        return jax.lax.scan(step, policy.init(), jax.random.split(key, 30))[1][10:]

    streamed = jax.jit(jax.vmap(run))(jax.random.split(KEY, 300))
    whole = jax.jit(jax.vmap(lambda k: planner(jnp.zeros((2, 2)), k).chunk))(jax.random.split(KEY, 1500))
    assert abs(streamed.mean() - 0.2) < 0.01 and abs(streamed.std() - whole.std()) < 0.01


def test_the_buffer_begins_around_what_was_asked_for():
    for first, value in (("zero", 0.0), ("constant", 0.7), ("denoise", 0.2)):
        policy = Streaming(denoising(4001, 2), 2000, first=first, position=(1,) if first == "constant" else ())
        buffer, _ = policy.filled(jnp.asarray([[0.1, 0.7]]), KEY)
        kept = policy.planner.schedule.alpha_bar[0]
        assert abs(buffer.chunk[:2000].mean() - np.sqrt(kept) * value) < 0.05
        assert abs(buffer.chunk[:2000].var() - (1 - kept)) < 0.05


def test_the_past_is_noised_up_to_the_level_of_now_and_the_end_is_pure_noise():
    policy = Streaming(denoising(9, 9), 2, 3)  # three parts of two rows, one row behind them
    clean = jnp.full((9, 1), 0.5)
    level = jnp.maximum(policy.resting - 3, -1)
    rolled = policy.rolled(type(policy.fresh())(clean, level), KEY)
    np.testing.assert_array_equal(rolled.level, policy.resting)
    changed = np.asarray(rolled.chunk[:, 0] != 0.5)
    assert changed.tolist() == [True] * 2 + [False] * 4 + [True] * 3


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (dict(execute=8, observe=2), "9 rows"),
        (dict(execute=3), "do not divide"),
        (dict(execute=2, first="none"), "must be 'zero'"),
        (dict(execute=2, first="constant"), "position names 0"),
        (dict(execute=2, position=(0,)), "position names 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, why):
    with pytest.raises(ConfigError, match=why):
        Streaming(denoising(8, 9 if settings["execute"] == 3 else 8), **settings)
