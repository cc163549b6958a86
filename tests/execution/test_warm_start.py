"""Plans that go on from the last one, against closed forms."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.execution.denoising import down
from habitus.execution.horizon import RecedingHorizon
from habitus.execution.warm_start import WarmStart

from .parts import KEY, denoising, walk

WINDOW = jnp.zeros((1, 2))


def test_every_level_from_pure_noise_is_a_whole_plan_bit_for_bit():
    planner = denoising(6, 20, 0.2, 0.4)
    noise = jax.random.normal(jax.random.split(KEY)[0], (6, 1))
    for jump in (False, True):
        found = planner(WINDOW, KEY, down(noise, tuple(range(19, -1, -1)), jump))
        np.testing.assert_array_equal(found.chunk, planner(WINDOW, KEY).chunk)


def test_the_first_plan_is_whole_and_later_ones_take_as_many_calls_as_levels():
    policy = WarmStart(denoising(6, 20, 0.2, 0.4), 2, levels=(5, 3, 0))
    actions, carries = walk(policy, 6)
    assert [int(c.calls) for c in carries] == [20, 20, 23, 23, 26, 26]
    whole, _ = walk(RecedingHorizon(policy.planner, 2), 2)
    np.testing.assert_array_equal(actions[:2], whole)
    assert int(walk(policy, 1)[1][0].calls) == 20  # a fresh carry asks for a whole plan


def test_rows_move_up_and_the_last_is_repeated():
    plan = jnp.arange(4.0)[:, None]
    for execute, after in ((1, [1, 2, 3, 3]), (3, [3, 3, 3, 3])):
        assert WarmStart(denoising(4, 5), execute).shifted(plan)[:, 0].tolist() == after
    assert WarmStart(denoising(1, 5), 1).shifted(plan[:1])[:, 0].tolist() == [0]


@pytest.mark.parametrize(
    "settings",
    [
        dict(levels=(0,)),
        dict(levels=(7, 4, 0)),
        dict(levels=(7, 0), renoise=True),
        dict(levels=(7, 2, 0), posterior="jump"),
    ],
)
def test_a_plan_that_is_right_stays(settings):
    actions, _ = walk(WarmStart(denoising(6, 20, 0.3), 1, **settings), 5)
    np.testing.assert_allclose(actions, 0.3, atol=1e-5)


def gap(levels, tau=0.3, jump=False):
    """How far two guesses at distance 1 are apart once both were denoised with the same noise."""
    planner = denoising(3, 50, 0.2, tau, clip=None)

    @jax.vmap
    def end(guess):
        return planner(WINDOW, KEY, down(jnp.full((3, 1), guess), levels, jump)).chunk[0, 0]

    near, far = jax.jit(end)(jnp.asarray([0.0, 1.0]))
    return far - near


def test_guesses_come_together_as_the_closed_form_says():
    assert gap(tuple(range(8, 0, -1))) == pytest.approx(0.52949, abs=1e-5)
    assert gap((3, 2, 1)) == pytest.approx(0.84981, abs=1e-5)
    assert gap((3, 1)) == pytest.approx(0.89798, abs=1e-5)
    assert gap((3, 1, 0)) == pytest.approx(0.89798 * 0.98178, abs=1e-5)
    assert gap((3, 1, 0), tau=0.0) == pytest.approx(0, abs=1e-5)


def test_a_call_leads_to_the_next_level_in_the_list_if_asked_to():
    guess = jnp.zeros((3, 1))
    assert down(guess, (7, 4, 0), jump=False).after[:, 0].tolist() == [6, 3, -1]
    assert down(guess, (7, 4, 0), jump=True).after[:, 0].tolist() == [4, 0, -1]
    assert gap((7, 4, 0), jump=True) < gap((7, 4, 0))


@eqx.filter_jit
def replan(policy, plan, key):
    return policy.replan(WINDOW, plan, jnp.asarray(True), key)[0]


def test_noise_reaches_the_guess_only_if_asked_for():
    """One call at level 0 draws nothing, so that what differs between keys is the noise in the guess."""
    for renoise in (False, True):
        policy = WarmStart(denoising(3, 20, 0.2, 0.4), 1, levels=(0,), renoise=renoise)
        plan = jnp.asarray([[0.1], [0.2], [0.3]])
        one, other = (replan(policy, plan, jax.random.key(k)) for k in (1, 2))
        assert bool((one == other).all()) is not renoise


def test_discrete_columns_are_snapped_in_the_plan_and_executed_as_signs():
    planner = denoising(4, 20, jnp.asarray([0.03, -0.06, 0.5]), 0.01, columns=3)
    snapped = WarmStart(planner, 1, discrete=(0, 1), factor=10.0, snap=True)
    actions, carries = walk(snapped, 3)
    for carry in carries:
        np.testing.assert_allclose(np.abs(carry.memory[:, :2]), 0.1)
    assert set(actions[:, :2].ravel()) <= {-1.0, 1.0} and (np.abs(actions[:, 2] - 0.5) < 0.1).all()
    scaled, carries = walk(WarmStart(planner, 1, discrete=(0, 1), factor=10.0), 3)
    assert scaled[:, 0].tolist() == [1, 1, 1] and scaled[:, 1].tolist() == [-1, -1, -1]
    assert (np.abs(carries[-1].memory[:, 0] - 0.03) < 0.04).all()


@pytest.mark.parametrize(
    "bad",
    [
        dict(levels=()), dict(levels=(1, 2)), dict(levels=(2, 2)), dict(levels=(20, 0)), dict(levels=(1, -1)),
        dict(posterior="next"), dict(discrete=(1,)), dict(factor=0.0), dict(execute=7),
    ],
)  # fmt: skip
def test_settings_out_of_their_domain_are_refused(bad):
    with pytest.raises(ConfigError):
        WarmStart(denoising(6, 20), **dict(execute=1) | bad)
