"""Rewards and masks by length."""

from __future__ import annotations

from habitus.core.domains import require
from habitus.language.objectives.arrays import Array, namespace, real


def overlong_filter(mask: Array, truncated: Array) -> Array:
    """[B, R]: the mask, 0 for responses that met the limit of length without an end.

    Args:
        truncated: [B] bool.
    """
    return mask * real(~truncated, mask)[:, None]


def soft_punishment(length: Array, most: int, buffer: int, factor: float = 1.0) -> Array:
    """[B]: `min(-(length - (most - buffer)) / buffer factor, 0)`, to be added to the reward. DAPO, 2025.

    Args:
        length: [B], in tokens; real numbers.
        most: tokens of the longest response.
        buffer: in how many last tokens the punishment grows from 0 to `factor`.
    """
    require(0 < buffer <= most, f"buffer must be in [1, {most}], the longest response, but is {buffer}.")
    xp = namespace(length)
    return xp.clip(-(length - (most - buffer)) / buffer * factor, max=0)
