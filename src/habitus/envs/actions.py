"""The check that every built-in world makes of the actions it is given."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array

from habitus.core.errors import SpaceMismatch


def fit_action(space: spaces.Space, action: Any) -> Array:
    """`action` as an array of the shape and kind of number that `space` wants.

    Values are not compared with the bounds: they are not known while JAX traces. Worlds clip them,
    as Gymnasium's do.

    Raises:
        SpaceMismatch: if the shape differs, or the kind of number (real for Box, else integer).
    """
    array = action if isinstance(action, Array) else jnp.asarray(action)
    wanted = (np.floating, "real numbers") if isinstance(space, spaces.Box) else (np.integer, "integers")
    if array.shape != space.shape:
        raise SpaceMismatch(
            f"the action has shape {array.shape}, but one action has {space.shape}; "
            "for a batch of copies, map `step` over it with jax.vmap."
        )
    if not jnp.issubdtype(array.dtype, wanted[0]):
        raise SpaceMismatch(f"the action has dtype {array.dtype}, but {space} wants {wanted[1]}; convert it.")
    return array
