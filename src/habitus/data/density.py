"""Whether a pair of state and action lies where a log has data: a kernel density with a threshold."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float

from habitus.core.errors import DataError, SpaceMismatch
from habitus.core.protocols import require
from habitus.data.dataset import Dataset

_BLOCK = 256
_EDGE = 1.5  # scaled pairs beyond are cut back, so that one feature alone cannot dominate every distance


class PairScale(eqx.Module):
    """Pairs of state and action with each feature of the log in [-1, 1]; constant ones stay as they are."""

    middle: Float[Array, "features"]
    half: Float[Array, "features"]

    @classmethod
    def of(cls, pairs: Float[np.ndarray, "rows features"]) -> PairScale:
        """From the least and the greatest value of each feature."""
        low, high = pairs.min(0), pairs.max(0)
        varies = high > low
        middle, half = np.where(varies, (low + high) / 2, 0.0), np.where(varies, (high - low) / 2, 1.0)
        return cls(jnp.asarray(middle, jnp.float32), jnp.asarray(half, jnp.float32))

    def __call__(self, pair: Float[Array, "features"]) -> Float[Array, "features"]:
        return jnp.clip((pair - self.middle) / self.half, -_EDGE, _EDGE)


class DensityGuard(eqx.Module):
    """Flags pairs that are less likely under a Gaussian kernel density than nearly all of the log.

    Densities are known up to a constant factor, which cancels in every decision.

    Attributes:
        points: scaled pairs of the log, [rows, features].
        bandwidth: standard deviation of the kernels, in scaled units.
        threshold: logarithm of the density below which a pair is out.
        scale: from pairs in canonical units to those of `points`.
    """

    points: Float[Array, "rows features"]
    bandwidth: Float[Array, ""]
    threshold: Float[Array, ""]
    scale: PairScale

    @classmethod
    def fit(
        cls, pairs: Float[np.ndarray, "rows features"], share: float = 0.05, bandwidth: float | None = None
    ) -> DensityGuard:
        """The density of pairs, and the threshold under which a `share` of them lie.

        Args:
            bandwidth: by default a quarter of the median distance between two pairs.

        Raises:
            ConfigError: if a number is out of its domain.
            DataError: for fewer than 10 / share pairs, whose quantile would be noise, or values that are not finite.
        """
        require(0 < share < 1, f"share is a share of the pairs, in (0, 1), but is {share}.")
        require(bandwidth is None or bandwidth > 0, f"bandwidth must be above 0, but is {bandwidth}.")
        if len(pairs) < 10 / share:
            raise DataError(
                f"{len(pairs)} pairs are too few for a quantile at {share:g}; log {10 / share:.0f} or more."
            )
        if not np.isfinite(pairs).all():
            raise DataError("the pairs hold NaN or Inf; remove the episodes of these rows.")
        scale = PairScale.of(pairs)
        points = jax.vmap(scale)(jnp.asarray(pairs, jnp.float32))
        width = jnp.asarray(0.25 * _median_distance(points) if bandwidth is None else bandwidth, jnp.float32)
        require(
            width > 0, "more than half of the pairs are the same, so there is no distance between them; set bandwidth."
        )
        open_guard = cls(points, width, jnp.asarray(-jnp.inf), scale)
        own = jnp.sort(jax.lax.map(open_guard.log_density_scaled, points, batch_size=_BLOCK))
        return eqx.tree_at(lambda g: g.threshold, open_guard, own[int(share * len(pairs))])

    def log_density_scaled(self, pair: Float[Array, "features"]) -> Float[Array, ""]:
        """`log sum_i exp(-|x - x_i|^2 / 2 sigma^2)` of a scaled pair."""
        return logsumexp(-((self.points - pair) ** 2).sum(1) / (2 * self.bandwidth**2))

    def log_density(self, obs: Float[Array, "obs"], action: Float[Array, "actions"]) -> Float[Array, ""]:
        """The same of a state and an action in canonical units."""
        return self.log_density_scaled(self.scale(jnp.concatenate([obs, action])))

    def __call__(self, obs: Float[Array, "obs"], action: Float[Array, "actions"]) -> Bool[Array, ""]:
        """Whether the pair is out of the support."""
        return self.log_density(obs, action) < self.threshold


def pairs_of(log: Dataset) -> Float[np.ndarray, "rows features"]:
    """Canonical observations and actions of a log, side by side.

    Raises:
        SpaceMismatch: unless both are real vectors.
    """
    spec = log.spec
    spec.require("continuous", "a distance between pairs")
    if spec.tabular or spec.image:
        raise SpaceMismatch(f"a distance between pairs needs vectors, but observations are {log.observation_space}.")
    canonical = log.canonical()
    return np.concatenate([np.asarray(canonical.obs[:]), np.asarray(canonical.action[:])], axis=1, dtype=np.float32)


def _median_distance(points: Float[Array, "rows features"], pairs: int = 4_000) -> Float[Array, ""]:
    """Median distance between random pairs of rows."""
    first, second = jax.random.randint(jax.random.key(0), (2, pairs), 0, len(points))
    return jnp.median(jnp.linalg.norm(points[first] - points[second], axis=1))
