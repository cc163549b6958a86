"""Axes show round numbers inside their range, and numbers read as people write them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from habitus.report.scale import Scale, duration, labels, number, wants_log

reals = st.floats(-1e9, 1e9)


@given(st.lists(reals, min_size=1, max_size=20))
def test_all_values_lie_inside_and_keep_their_order(values):
    scale = Scale.over(values)
    places = scale.place(np.array(sorted(values)))
    assert (places >= 0).all() and (places <= 1).all()
    assert (np.diff(places) >= -1e-9).all()


@given(reals, st.floats(1e-3, 1e9), st.integers(2, 8))
def test_ticks_are_few_evenly_spaced_and_within_the_range(low, span, most):
    assume(span > 1e-9 * abs(low))
    ticks = Scale(low, low + span).ticks(most)
    assert 1 <= len(ticks) <= most + 1
    slack = 1e-6 * span
    assert ticks[0] >= low - slack and ticks[-1] <= low + span + slack
    assert np.allclose(np.diff(ticks), np.diff(ticks)[:1] if len(ticks) > 1 else [], rtol=1e-6, atol=slack)


def test_log_scales_put_decades_at_equal_distances():
    scale = Scale(1e-3, 1e3, log=True)
    assert scale.ticks(7) == pytest.approx([1e-3, 1e-2, 1e-1, 1, 10, 100, 1000])
    assert np.ptp(np.diff(scale.place(np.array(scale.ticks(7))))) < 1e-9
    assert len(scale.ticks(3)) <= 3


def test_nothing_finite_still_makes_an_axis():
    assert Scale.over([math.nan, math.inf]).ticks()
    assert Scale.over([5.0]).at(5.0) == pytest.approx(0.5)


def test_log_is_for_positive_values_over_decades():
    assert wants_log(np.array([1e-2, 1.0, 1e2]))
    assert not wants_log(np.array([0.0, 1e3]))
    assert not wants_log(np.array([1.0, 10.0]))
    assert not wants_log(np.array([math.nan]))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.5, "−0.5"), (1234.0, "1234"), (12_345.0, "12.35k"), (2_000_000.0, "2M"), (3e10, "30G"),
        (0.00012, "1.2e−4"), (-1.5e15, "−1.5e15"), (math.nan, "—"), (200.0, "200"), (1e-3, "0.001"),
    ],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text


def test_labels_of_an_axis_share_a_unit():
    assert labels([0.0, 5_000.0, 10_000.0]) == ["0", "5k", "10k"]
    assert labels([-0.5, 0.0, 0.5]) == ["−0.5", "0", "0.5"]
    assert labels([]) == []


def test_durations():
    assert [duration(s) for s in (3.21, 75.0, 3 * 3600.0 + 125)] == ["3.2 s", "1 min 15 s", "3 h 02 min"]
