"""Areas that sets of trajectories sweep over."""

from __future__ import annotations

import numpy as np
import pytest

from habitus.core.errors import DataError
from habitus.measure.diversity import hull_area, swept_area

SQUARE = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0], [1.0, 1.0]])


def test_the_area_of_a_hull():
    assert hull_area(SQUARE) == pytest.approx(4.0)
    assert hull_area(SQUARE[:3]) == pytest.approx(2.0)
    for flat in (SQUARE[:0], SQUARE[:2], np.ones((5, 2)), SQUARE[[0, 2, 4]]):
        assert hull_area(flat) == 0.0


def test_areas_of_all_times_add_up_and_only_chosen_paths_count():
    paths = np.stack([SQUARE, 2 * SQUARE], 1)
    assert swept_area(paths) == pytest.approx(4 + 16)
    assert swept_area(paths, np.array([1, 1, 1, 0, 0], bool)) == pytest.approx(2 + 8)
    assert swept_area(paths, np.zeros(5, bool)) == 0.0
    paths[0, 0, 0] = np.nan
    assert swept_area(paths, np.array([0, 1, 1, 1, 0], bool)) == pytest.approx(2 + 8)
    with pytest.raises(DataError, match="not finite"):
        swept_area(paths)
