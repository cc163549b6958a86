"""Nearest state-action pairs of a log."""

from __future__ import annotations

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from habitus.core.errors import ConfigError
from habitus.core.protocols import require

_BLOCK = 1024


class _Tree:
    """A k-d tree over distinct rows; among equal distances the lowest row of the log wins."""

    def __init__(self, points: np.ndarray):
        from scipy.spatial import cKDTree

        unique, first = np.unique(points, axis=0, return_index=True)
        order = np.argsort(first)
        self.rows, self.tree = first[order].astype(np.int32), cKDTree(unique[order], leafsize=64)

    def query(self, keys: np.ndarray, k: int) -> np.ndarray:
        """Rows [..., k] of the nearest points, nearest first."""
        # one more than asked, so that a tie at the border is seen
        return self._query(keys.reshape(-1, keys.shape[-1]), k, k + 1).reshape(*keys.shape[:-1], k)

    def _query(self, keys: np.ndarray, k: int, candidates: int) -> np.ndarray:
        n = len(self.rows)
        candidates = min(candidates, n)
        distance, found = (x.reshape(len(keys), -1) for x in self.tree.query(keys, k=candidates))
        nearest = np.take_along_axis(found, np.lexsort((found, distance)), -1)[:, :k]
        rows = self.rows[np.pad(nearest, [(0, 0), (0, k - nearest.shape[1])], mode="edge")]
        if candidates < n:
            unseen = distance[:, k - 1] == distance[:, -1]  # the tie goes on beyond the candidates
            if unseen.any():
                rows[unseen] = self._query(keys[unseen], k, 2 * candidates)
        return rows


class NearestPairs(eqx.Module):
    """An index of the pairs `[beta * s ; a]` of a log under the Euclidean distance.

    Attributes:
        points: every pair, float32 [rows, obs + actions].
        actions: the actions of the pairs, float32 [rows, actions].
    """

    points: Float[Array, "rows width"]
    actions: Float[Array, "rows actions"]
    beta: float = eqx.field(static=True)
    _tree: Any = eqx.field(static=True)

    def __init__(
        self,
        obs: Float[np.ndarray, "rows obs"],
        action: Float[np.ndarray, "rows actions"],
        beta: float,
        index: Literal["auto", "kdtree", "brute"] = "auto",
    ):
        """Args:
            obs: observations, normalised as the keys will be.
            beta: weight of the observation in the distance.
            index: 'kdtree' searches on the host, 'brute' on the device; 'auto' takes the tree on a
                CPU, where it is tens of times faster, and the device elsewhere.

        Raises:
            ConfigError: for a negative `beta`, an unknown `index`, or no rows.
        """
        require(beta >= 0, f"beta weights the state in a distance, so it must be 0 or more, but is {beta}.")
        require(index in ("auto", "kdtree", "brute"), f"index must be auto, kdtree or brute, but is {index!r}.")
        if len(obs) == 0:
            raise ConfigError("an index of nearest pairs needs at least one pair.")
        points = np.concatenate([np.float32(beta) * obs, action], axis=1, dtype=np.float32)
        tree = index == "kdtree" or (index == "auto" and jax.default_backend() == "cpu")
        self.points, self.actions, self.beta = jnp.asarray(points), jnp.asarray(action, jnp.float32), beta
        self._tree = _Tree(points) if tree else None

    def nearest(
        self, obs: Float[Array, "batch obs"], action: Float[Array, "batch actions"], k: int = 1
    ) -> Int[Array, "batch k"]:
        """Rows of the `k` pairs nearest to each `[beta * obs ; action]`, nearest first; ties to the lowest row."""
        keys = jnp.concatenate([self.beta * obs, action], axis=-1)
        if self._tree is None:
            return self._scan(keys, k)
        shape = jax.ShapeDtypeStruct((*keys.shape[:-1], k), jnp.int32)
        return jax.pure_callback(lambda x: self._tree.query(np.asarray(x), k), shape, keys, vmap_method="expand_dims")

    def _scan(self, keys: Float[Array, "batch width"], k: int) -> Int[Array, "batch k"]:
        """Exact search in blocks; differences, not dot products, as those cancel for a large beta."""
        n, width = self.points.shape
        blocks = -(-n // _BLOCK)
        padded = jnp.pad(self.points, ((0, blocks * _BLOCK - n), (0, 0)), constant_values=jnp.inf)
        batch = keys.shape[0]

        def block(best: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
            points = jax.lax.dynamic_slice_in_dim(padded, i * _BLOCK, _BLOCK)
            squares = sum((keys[:, d, None] - points[None, :, d]) ** 2 for d in range(width))
            rows = jnp.broadcast_to(i * _BLOCK + jnp.arange(_BLOCK), (batch, _BLOCK))
            return _smallest(jnp.concatenate([best[0], squares], 1), jnp.concatenate([best[1], rows], 1), k), None

        empty = jnp.full((batch, k), jnp.inf), jnp.zeros((batch, k), jnp.int32)
        (_, rows), _ = jax.lax.scan(block, empty, jnp.arange(blocks, dtype=jnp.int32))
        return rows.astype(jnp.int32)


def _smallest(value: Array, row: Array, k: int) -> tuple[Array, Array]:
    """The `k` smallest of each line with their rows; ties to the left. Plain minima, as XLA's argmin is slow."""
    out = []
    place = jnp.arange(value.shape[1], dtype=jnp.int32)
    for _ in range(k):
        least = value.min(1)
        at = jnp.where(value == least[:, None], place, value.shape[1]).min(1)
        hit = place == at[:, None]
        out.append((least, jnp.where(hit, row, 0).sum(1)))
        value = jnp.where(hit, jnp.inf, value)
    return jnp.stack([v for v, _ in out], 1), jnp.stack([r for _, r in out], 1)
