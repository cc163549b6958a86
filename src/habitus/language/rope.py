"""Rotary position embedding: pairs of features turn with the position, so that scores depend on distances alone.

J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
"""

from __future__ import annotations

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from habitus.core.domains import require

SCALINGS = ("none", "linear", "llama3")


class Rope(eqx.Module):
    """How fast each pair turns. `llama3` slows only slow pairs, as Llama 3.1 does to reach longer contexts."""

    base: float = eqx.field(static=True, default=10_000.0)
    scaling: str = eqx.field(static=True, default="none")  # one of SCALINGS
    factor: float = eqx.field(static=True, default=1.0)
    low: float = eqx.field(static=True, default=1.0)  # llama3: turns in the original context below which all is slowed
    high: float = eqx.field(static=True, default=4.0)  # llama3: and above which nothing is
    original: int = eqx.field(static=True, default=8192)  # llama3: the context that the model was first trained with

    def __check_init__(self) -> None:
        require(self.scaling in SCALINGS, f"scaling must be one of {', '.join(SCALINGS)}, but is {self.scaling!r}.")
        require(
            self.base > 0 and self.factor > 0, f"base and factor must be above 0, but are {self.base, self.factor}."
        )

    def divisors(self, size: int) -> np.ndarray:
        """By how much each of the `size / 2` speeds is divided."""
        if self.scaling != "llama3":
            return np.full(size // 2, self.factor if self.scaling == "linear" else 1.0)
        turns = self.original * self._plain(size) / (2 * math.pi)
        share = np.clip((turns - self.low) / (self.high - self.low), 0, 1)  # of the plain speed
        return 1 / (share + (1 - share) / self.factor)

    def speeds(self, size: int) -> np.ndarray:
        """Radians a position, for each of the `size / 2` pairs: `base^(-2 i / size)`, divided."""
        return self._plain(size) / self.divisors(size)

    def _plain(self, size: int) -> np.ndarray:
        return self.base ** (-np.arange(0, size, 2) / size)

    def angles(
        self, positions: Int[Array, "time"], size: int
    ) -> tuple[Float[Array, "time half"], Float[Array, "time half"]]:
        """Cosines and sines at these positions."""
        turned = positions[:, None].astype(jnp.float32) * jnp.asarray(self.speeds(size), jnp.float32)
        return jnp.cos(turned), jnp.sin(turned)


def rotate(
    x: Float[Array, "time heads size"],
    angles: tuple[Float[Array, "time half"], Float[Array, "time half"]],
    interleaved: bool = False,
) -> Float[Array, "time heads size"]:
    """Each pair of features, turned; in float32, whatever comes in.

    Args:
        interleaved: whether pairs are neighbours `(2i, 2i + 1)`, as in GGUF files of Llama models; otherwise
            `(i, i + size / 2)`, as in checkpoints of Hugging Face.
    """
    cos, sin = (part[:, None] for part in angles)
    wide = x.astype(jnp.float32)
    if interleaved:
        a, b = wide[..., 0::2], wide[..., 1::2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)
    else:
        a, b = jnp.split(wide, 2, axis=-1)
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return turned.astype(x.dtype)


def to_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a projection, of its weight or bias, from neighbouring pairs to halves."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def to_neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """Inverse of `to_halves`."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
