"""The trust-region step under a constraint on costs, for CPO and what extends it.

J. Achiam, D. Held, A. Tamar and P. Abbeel, "Constrained Policy Optimization", ICML 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from habitus.core.trees import Metrics
from habitus.nets.trust_region import (
    TINY,
    TrustRegion,
    Vector,
    as_vector,
    backtrack,
    conjugate_gradient,
    fisher_product,
)

T = TypeVar("T")
Scalar = Float[Array, ""]


class Bounds(NamedTuple):
    """What bounds a step, besides how far it may go.

    Attributes:
        divergence: `(old, new, *args) -> mean KL(old || new)`.
        cost: `(network, *args) -> ` expected cost relative to that of the old network.
        excess: by how much the old network's cost is above its limit; below 0 if it keeps the limit.
    """

    divergence: Callable[..., Scalar]
    cost: Callable[..., Scalar]
    excess: Scalar


def dual_step(
    g: Vector, b: Vector, c: Scalar, natural_g: Vector, natural_b: Vector, max_kl: float | Array
) -> tuple[Vector, Bool[Array, ""]]:
    """`argmin_x g'x` with `c + b'x <= 0` and `x'Hx / 2 <= max_kl`, given `H^-1 g` and `H^-1 b` (theorem 2).

    Where no step within the region keeps the limit, the one that lowers the cost most (eq. 14); where
    every step keeps it, or none changes the cost, the unconstrained one.

    Returns:
        the step, and whether it only recovers.
    """
    q, r, s = g @ natural_g, g @ natural_b, b @ natural_b
    safe_s = jnp.maximum(s, TINY)
    a, room = jnp.maximum(q - r**2 / safe_s, 0.0), 2 * max_kl - c**2 / safe_s
    plain = -jnp.sqrt(2 * max_kl / jnp.maximum(q, TINY)) * natural_g
    recover = -jnp.sqrt(2 * max_kl / safe_s) * natural_b
    edge = jnp.maximum(r / jnp.where(jnp.abs(c) < TINY, jnp.copysign(TINY, c), c), 0.0)
    curved, flat = jnp.sqrt(a / jnp.maximum(room, TINY)), jnp.sqrt(q / (2 * max_kl))
    below = c < 0
    curved = jnp.where(below, jnp.minimum(curved, edge), jnp.maximum(curved, edge))
    flat = jnp.where(below, jnp.maximum(flat, edge), jnp.minimum(flat, edge))
    curved, flat = jnp.maximum(curved, 1e-12), jnp.maximum(flat, 1e-12)
    f_curved = -0.5 * (a / curved + room * curved) - r * c / safe_s
    f_flat = -0.5 * (q / flat + 2 * max_kl * flat)
    rate = jnp.where(f_curved >= f_flat, curved, flat)
    weight = jnp.maximum((rate * c - r) / safe_s, 0.0)
    bound = -(natural_g + weight * natural_b) / rate
    blind = s < 1e-12
    free = blind | (below & (room < 0))
    recovers = ~blind & ~below & (room < 0)
    return jnp.where(free, plain, jnp.where(recovers, recover, bound)), recovers


def constrained_step(
    region: TrustRegion, loss: Callable[..., tuple[Scalar, Metrics]], network: T, bounds: Bounds, *args: Any
) -> tuple[T, Metrics]:
    """As `trust_region_step`, of the policies whose cost is expected to keep its limit.

    A step is accepted if the KL is within bounds, the cost rises by no more than is left below the
    limit (or, above it, does not rise), and the loss falls as expected, which a step above the limit need not.

    Returns:
        the network, and the loss's metrics with `kl`, `rejected` and `recovery` (1 if only the cost counted).
    """
    here, rebuild = as_vector(network)
    (before, metrics), slope = jax.value_and_grad(lambda v: loss(rebuild(v), *args), has_aux=True)(here)
    cost_before, cost_slope = jax.value_and_grad(lambda v: bounds.cost(rebuild(v), *args))(here)
    fisher = fisher_product(bounds.divergence, network, *args)

    def curve(v: Vector) -> Vector:
        return fisher(v) + region.damping * v

    natural = [conjugate_gradient(curve, v, region.cg_steps) for v in (slope, cost_slope)]
    step, recovers = dual_step(slope, cost_slope, bounds.excess, natural[0], natural[1], region.max_kl)
    # conjugate gradient is cut short, so the step found may be longer than it says
    length = 0.5 * step @ curve(step)
    step = jnp.minimum(jnp.sqrt(region.max_kl / jnp.maximum(length, TINY)), 1.0) * step
    expected = -slope @ step

    def accepts(candidate: Vector, share: Scalar) -> Bool[Array, ""]:
        new = rebuild(candidate)
        gain = before - loss(new, *args)[0]
        improves = (gain > 0) & (gain > region.min_share * share * expected)
        cheap = bounds.cost(new, *args) - cost_before <= jnp.maximum(-bounds.excess, 0.0)
        near = bounds.divergence(network, new, *args) <= region.slack * region.max_kl
        return near & cheap & (improves | (bounds.excess > 0))

    after, share = backtrack(accepts, here, step, region.backtracks)
    kl = bounds.divergence(network, rebuild(after), *args)
    found = {"kl": kl, "rejected": (share == 0).astype(jnp.float32), "recovery": recovers.astype(jnp.float32)}
    return rebuild(after), metrics | found
