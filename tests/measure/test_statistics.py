"""Intervals: do they hold the truth as often as they say, agree with SciPy, and refuse what has no answer?"""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from habitus.core.errors import ConfigError
from habitus.measure.statistics import (
    Interval,
    bootstrap_band,
    bootstrap_ci,
    iqm,
    mean,
    paired_difference,
    probability_of_improvement,
)

scores = hnp.arrays(np.float64, st.integers(2, 12), elements=st.floats(-1e3, 1e3))


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 30)), elements=st.floats(-1e6, 1e6)))
def test_iqm_is_scipys_trimmed_mean(x):
    np.testing.assert_allclose(iqm(x), stats.trim_mean(x, 0.25, axis=-1), rtol=1e-9, atol=1e-6)


def test_iqm_ignores_the_outer_quarters():
    assert iqm(np.array([-1e9, 1.0, 3.0, 1e9])) == 2.0


@pytest.mark.parametrize("statistic", [mean, iqm])
@pytest.mark.parametrize("n", [6, 12])
def test_coverage_over_simulated_normals(statistic, n):
    rng = np.random.default_rng(0)
    held = [
        3.0 in bootstrap_ci(rng.normal(3.0, 2.0, n), statistic, resamples=1_000, seed=trial) for trial in range(300)
    ]
    assert 0.90 <= np.mean(held) <= 0.985


def test_coverage_over_strata_of_different_level():
    """Pooled over tasks whose means lie far apart, resampling must stay within a task."""
    rng, centres = np.random.default_rng(1), np.array([0.0, 100.0, 1000.0])
    intervals = [
        bootstrap_ci(list(rng.normal(centres[:, None], 1.0, (3, 5))), mean, resamples=1_000, seed=trial)
        for trial in range(300)
    ]
    assert 0.90 <= np.mean([centres.mean() in interval for interval in intervals]) <= 0.98
    assert max(interval.high - interval.low for interval in intervals) < 5


def test_coverage_of_the_probability_of_improvement():
    rng, truth = np.random.default_rng(2), float(stats.norm.cdf(1.0 / math.sqrt(2)))
    held = [
        truth in probability_of_improvement(rng.normal(1, 1, 12), rng.normal(0, 1, 12), resamples=500, seed=trial)
        for trial in range(300)
    ]
    assert 0.90 <= np.mean(held) <= 0.985


def test_agrees_with_scipys_bootstrap_where_many_scores_make_the_expansion_vanish():
    x = np.random.default_rng(3).gamma(2.0, size=800)
    ours = bootstrap_ci(x, iqm, resamples=4_000)
    theirs = stats.bootstrap((x,), iqm, method="percentile", n_resamples=4_000, rng=np.random.default_rng(4))
    np.testing.assert_allclose([ours.low, ours.high], theirs.confidence_interval, atol=0.01)


def test_is_as_wide_as_students_t_for_few_scores():
    x = np.random.default_rng(5).normal(size=8)
    ours, theirs = bootstrap_ci(x, mean), stats.ttest_1samp(x, 0.0).confidence_interval(0.95)
    assert (ours.high - ours.low) == pytest.approx(theirs.high - theirs.low, rel=0.1)


@given(scores, st.floats(-1e3, 1e3), st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_moves_and_scales_with_the_scores(x, shift, scale):
    base, moved = (bootstrap_ci(y, resamples=200) for y in (x, shift + scale * x))
    for end in ("estimate", "low", "high"):
        assert getattr(moved, end) == pytest.approx(shift + scale * getattr(base, end), rel=1e-6, abs=1e-5)


@given(scores)
@settings(max_examples=30, deadline=None)
def test_lies_within_the_scores_and_is_ordered(x):
    interval = bootstrap_ci(x, mean, resamples=200)
    slack = 1e-9 * max(1.0, np.abs(x).max())
    assert x.min() - slack <= interval.low <= interval.high <= x.max() + slack


@given(scores, scores)
@settings(max_examples=30, deadline=None)
def test_probabilities_of_improvement_are_complementary_and_mann_whitney(a, b):
    forth, back = (probability_of_improvement(*pair, resamples=50) for pair in ((a, b), (b, a)))
    assert forth.estimate + back.estimate == pytest.approx(1.0)
    assert forth.estimate == pytest.approx(stats.mannwhitneyu(a, b).statistic / (a.size * b.size))
    assert -1e-9 <= forth.low <= forth.high <= 1 + 1e-9


def test_pairing_removes_what_the_seeds_share():
    rng = np.random.default_rng(6)
    luck = rng.normal(0, 50, 10)
    a, b = luck + rng.normal(1, 0.3, 10), luck + rng.normal(0, 0.3, 10)
    interval = paired_difference(a, b)
    assert interval.low > 0 and interval.high - interval.low < 1
    assert interval.estimate == pytest.approx(np.mean(a) - np.mean(b))
    assert paired_difference(b, a).estimate == pytest.approx(-interval.estimate)


def test_a_matrix_is_one_group_a_row_and_a_list_of_numbers_is_one_group():
    matrix = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    assert bootstrap_ci(matrix) == bootstrap_ci(list(matrix))
    assert bootstrap_ci([1, 2, 3]) == bootstrap_ci(np.array([1.0, 2.0, 3.0])) == bootstrap_ci([[1, 2, 3]])


def test_same_seed_same_interval_and_another_seed_another():
    x = np.random.default_rng(7).normal(size=20)
    assert bootstrap_ci(x, seed=1) == bootstrap_ci(x, seed=1) != bootstrap_ci(x, seed=2)


def test_blocks_do_not_change_the_scores_drawn_beyond_memory():
    """More scores than one block holds: the interval is still that of the central limit."""
    x = np.random.default_rng(8).normal(size=20_000)
    interval = bootstrap_ci(x, mean, resamples=400)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * x.std() / math.sqrt(x.size), rel=0.2)


def test_a_band_is_the_interval_at_every_point():
    curves = np.random.default_rng(10).normal(size=(6, 5)).cumsum(axis=0)
    estimate, low, high = bootstrap_band(curves, mean, resamples=20_000)
    for i, point in enumerate(curves):
        interval = bootstrap_ci(point, mean, resamples=20_000, seed=1)
        assert estimate[i] == pytest.approx(interval.estimate)
        np.testing.assert_allclose([low[i], high[i]], [interval.low, interval.high], atol=0.2 * point.std())


def test_a_band_around_one_run_has_no_bounds():
    estimate, low, high = bootstrap_band(np.array([[1.0], [2.0]]))
    assert estimate.tolist() == [1.0, 2.0] and np.isneginf(low).all() and np.isposinf(high).all()


def test_equal_scores_have_no_spread():
    interval = bootstrap_ci([2.5, 2.5, 2.5])
    assert (interval.estimate, interval.low, interval.high) == (2.5, 2.5, 2.5)
    assert probability_of_improvement([1.0, 1.0], [1.0, 1.0]).estimate == 0.5


@pytest.mark.parametrize("groups", [7.0, [7.0], [[7.0]], np.array([7.0]), [[7.0], [6.0, 8.0]]])
def test_one_score_gives_an_estimate_and_no_bounds(groups):
    interval = bootstrap_ci(groups)
    assert interval.estimate == 7.0 and not interval.bounded and interval.ends == [None, None]
    assert str(interval) == "7"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: bootstrap_ci([]), "empty"),
        (lambda: bootstrap_ci([[1.0, 2.0], []]), "empty"),
        (lambda: bootstrap_ci([1.0, math.nan]), "nan in group 0"),
        (lambda: bootstrap_ci([[1.0], [math.inf, 2.0]]), "inf in group 1"),
        (lambda: bootstrap_ci([1.0, 2.0], level=95.0), "between 0 and 1"),
        (lambda: bootstrap_ci([1.0, 2.0], resamples=0), "at least 1"),
        (lambda: bootstrap_band(np.array([[1.0, 2.0], [1.0, math.nan]])), "nan in group 1"),
        (lambda: bootstrap_band(np.zeros((3, 0))), "empty"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), "one to one"),
        (lambda: paired_difference([1.0], [math.nan]), "second scores hold nan"),
        (lambda: probability_of_improvement([[1.0], [2.0]], [[1.0]]), "same tasks"),
    ],
)
def test_what_has_no_answer_is_one_sentence(call, says):
    with pytest.raises(ConfigError, match=says):
        call()


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(-152.345, -160.21, -148.0), "-152 [-160, -148]"),
        (Interval(0.51234, 0.5012, 0.5266), "0.512 [0.501, 0.527]"),
        (Interval(2.5, 2.5, 2.5), "2.500 [2.500, 2.500]"),
        (Interval(0.0, 0.0, 0.0), "0.0 [0.0, 0.0]"),
    ],
)
def test_text_shows_the_figures_that_the_width_supports(interval, text):
    assert str(interval) == text


def test_is_fast():
    x = np.random.default_rng(9).normal(size=50)
    start = time.perf_counter()
    bootstrap_ci(x)
    assert time.perf_counter() - start < 1.0
