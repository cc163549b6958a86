"""Guidance up a score: how far a mean moves, and what a guided draw is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.generative.ascent import Ascent
from habitus.generative.ddpm import Schedule, ddpm_last, ddpm_sample

KEY = jax.random.key(0)
SCHEDULE = Schedule.cosine(20)


def score(x):
    return -((x - 3.0) ** 2).sum()


def noise_of(x, k):
    """The best prediction of the noise in data from N(0, 0.4^2)."""
    kept, lost = SCHEDULE.kept(k), SCHEDULE.lost(k)
    return jnp.sqrt(lost) * x / (kept * 0.16 + lost)


def drawn(guide=None, count=1):
    return ddpm_last(SCHEDULE, noise_of, jax.random.normal(KEY, (500,)), KEY, count, clip=None, guide=guide)


def test_a_mean_moves_up_the_score_by_the_rate_of_adam_and_no_further_than_beta():
    mean, low, high = jnp.zeros(4), jnp.asarray(0), jnp.asarray(19)
    assert float(SCHEDULE.beta[0]) < 0.02 < float(SCHEDULE.beta[19])
    np.testing.assert_allclose(Ascent(score, SCHEDULE, 2, 0.01)(mean, high), 0.02, rtol=1e-2)
    np.testing.assert_allclose(Ascent(score, SCHEDULE, 2, 0.01)(mean, low), SCHEDULE.beta[0], rtol=1e-5)
    down = Ascent(lambda x: -score(x), SCHEDULE, 2, 0.01)(mean, low)
    np.testing.assert_allclose(down, -SCHEDULE.beta[0], rtol=1e-5)  # the sign is kept
    part = Ascent(score, SCHEDULE, 2, 0.01, last=5)
    assert (part(mean, jnp.asarray(5)) == mean).all() and (part(mean, jnp.asarray(4)) > mean).all()


def test_a_guided_draw_scores_higher_and_an_unguided_one_is_as_ever():
    plain, guided = drawn()[0], drawn(Ascent(score, SCHEDULE))[0]
    assert (plain == ddpm_sample(SCHEDULE, noise_of, jax.random.normal(KEY, (500,)), KEY, clip=None)).all()
    assert abs(float(plain.mean())) < 0.05 < 0.1 < float(guided.mean())


def test_the_last_steps_end_with_the_draw():
    last = drawn(count=4)
    assert last.shape == (4, 500) and (last[-1] == drawn()[0]).all()
    far = [float(jnp.abs(x - last[-1]).mean()) for x in last[:-1]]
    assert far == sorted(far, reverse=True) and far[-1] > 0
    for count in (0, 21):
        with pytest.raises(ConfigError, match="count must be from 1 to the 20 levels"):
            drawn(count=count)


def test_a_share_of_a_schedule_keeps_more_of_the_data():
    fifth = Schedule.cosine(100, 0.2)
    np.testing.assert_allclose(fifth.beta, 0.2 * Schedule.cosine(100).beta, rtol=1e-6)
    assert float(fifth.alpha_bar[-1]) == pytest.approx(0.195, abs=2e-3)  # 44 % of the amplitude
    assert float(Schedule.cosine(50, 0.2).alpha_bar[-1]) == pytest.approx(0.255, abs=2e-3)


def test_what_makes_no_sense_is_refused():
    for bad in (dict(steps=0), dict(learning_rate=0.0), dict(last=0)):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Ascent(score, SCHEDULE, **bad)
    with pytest.raises(ConfigError, match="every beta"):
        Schedule.cosine(5, 0.0)
