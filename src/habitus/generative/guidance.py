"""Guidance without a classifier: one network that was trained with a condition and without it.

J. Ho and T. Salimans, "Classifier-Free Diffusion Guidance", NeurIPS 2021 workshop on deep generative models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

from habitus.generative.solvers import Denoise


def guided(
    denoise: Callable[[Array, Float[Array, ""], Any], Array], condition: Any, nothing: Any, strength: float = 1.0
) -> Denoise:
    """`D_l(x; s) = D(x; s, nothing) + l (D(x; s, condition) - D(x; s, nothing))`.

    Args:
        denoise: `(x, sigma, condition)`; or any prediction that is linear in the score, such as that of noise.
        nothing: what stood for the condition where it was dropped in training.
        strength: `l`, known before compilation: 0 ignores the condition and 1 is the conditional model, at one call
            of the network each; others take two.
    """
    if strength in (0.0, 1.0):
        given = condition if strength else nothing
        return lambda x, sigma: denoise(x, sigma, given)

    def mixed(x: Array, sigma: Float[Array, ""]) -> Array:
        plain = denoise(x, sigma, nothing)
        return plain + strength * (denoise(x, sigma, condition) - plain)

    return mixed
