"""How different the members of a set of trajectories are."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import ConvexHull, QhullError

from habitus.core.errors import DataError


def hull_area(points: Float[np.ndarray, "n 2"]) -> float:
    """Area of the convex hull of points in the plane; 0 if all lie on a line, or are fewer than three."""
    if len(points) < 3:
        return 0.0
    try:
        return float(ConvexHull(points).volume)  # of the plane, its volume is the area
    except QhullError:
        return 0.0


def swept_area(paths: Float[np.ndarray, "n time 2"], chosen: Bool[np.ndarray, "n"] | None = None) -> float:
    """The sum over time of the hull's area of where the chosen paths are then, in squared units of length.

    The measure of Meng and Fan, "Diverse Controllable Diffusion Policy with Signal Temporal Logic", RA-L 2024.

    Raises:
        DataError: if a chosen place is not finite.
    """
    kept = paths if chosen is None else paths[chosen]
    if not np.isfinite(kept).all():
        raise DataError("a path holds a place that is not finite; leave that path out, or find where it diverged.")
    return sum(hull_area(kept[:, t]) for t in range(kept.shape[1]))
