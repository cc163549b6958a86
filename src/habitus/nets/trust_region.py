"""Natural-gradient steps in a trust region: what TRPO and all that extend it share.

J. Schulman, S. Levine, P. Moritz, M. I. Jordan and P. Abbeel, "Trust Region Policy Optimization", ICML 2015.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from habitus.core.protocols import require
from habitus.core.trees import Metrics
from habitus.nets.distributions import Distribution

T = TypeVar("T")
Vector = Float[Array, "n"]
TINY = 1e-30  # in denominators: a residual of zero is no direction, and not NaN


class TrustRegion(eqx.Module):
    """How far a step may go, and how it is looked for.

    Attributes:
        max_kl: mean KL from the old to the new network that the full step is scaled to.
        damping: added to the diagonal of the Fisher matrix.
        slack: the KL of an accepted step is at most `slack * max_kl`, as measured and not to second order.
        min_share: smallest share of the improvement expected to first order that is accepted.
        cg_steps: iterations of conjugate gradient.
        backtracks: how many steps are tried, each half as long as the one before.

    Raises:
        ConfigError: for a value outside its domain.
    """

    max_kl: float | Array = 0.01
    damping: float | Array = 0.1
    slack: float | Array = 1.5
    min_share: float | Array = 0.1
    cg_steps: int = eqx.field(static=True, default=10)
    backtracks: int = eqx.field(static=True, default=10)

    def __check_init__(self) -> None:
        require(self.max_kl > 0, f"max_kl must be above 0, but is {self.max_kl}.")
        require(self.damping >= 0, f"damping must be 0 or more, but is {self.damping}.")
        require(self.slack > 0, f"slack must be above 0, but is {self.slack}.")
        require(self.cg_steps >= 1, f"cg_steps must be 1 or more, but is {self.cg_steps}.")
        require(self.backtracks >= 1, f"backtracks must be 1 or more, but is {self.backtracks}.")


def as_vector(network: T) -> tuple[Vector, Callable[[Vector], T]]:
    """The trainable numbers of a network side by side, and how to put others in their place."""
    params, static = eqx.partition(network, eqx.is_inexact_array)
    vector, unravel = ravel_pytree(params)
    return vector, lambda v: eqx.combine(unravel(v), static)


def fisher_product(divergence: Callable[..., Float[Array, ""]], network: Any, *args: Any) -> Callable[[Vector], Vector]:
    """`v -> F v`, with `F` the Hessian of `divergence(network, new, *args)` at `new = network`.

    For a mean KL that is the Fisher information. The product is one linearised gradient; `F` is never formed.
    """
    here, rebuild = as_vector(network)
    slope = jax.grad(lambda v: divergence(network, rebuild(v), *args))
    return jax.linearize(slope, here)[1]


def conjugate_gradient(product: Callable[[Vector], Vector], b: Vector, steps: int, tolerance: float = 1e-14) -> Vector:
    """`x` with `product(x) = b`, for a product with a positive definite matrix (Hestenes and Stiefel, 1952).

    Args:
        steps: iterations at most.
        tolerance: of the squared residual, relative to `b`'s square.
    """
    square = b @ b

    def go(at: tuple[Array, ...]) -> Bool[Array, ""]:
        *_, residual, i = at
        return (i < steps) & (residual > tolerance * square)

    def one(at: tuple[Array, Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array, Array]:
        x, r, p, residual, i = at
        image = product(p)
        alpha = residual / jnp.maximum(p @ image, TINY)
        x, r = x + alpha * p, r - alpha * image
        after = r @ r
        return x, r, r + after / jnp.maximum(residual, TINY) * p, after, i + 1

    return jax.lax.while_loop(go, one, (jnp.zeros_like(b), b, b, square, jnp.zeros((), jnp.int32)))[0]


def backtrack(
    accepts: Callable[[Vector, Float[Array, ""]], Bool[Array, ""]], here: Vector, step: Vector, tries: int
) -> tuple[Vector, Float[Array, ""]]:
    """The first of `here + step`, `here + step / 2`, ... that is accepted, and which share of the step that is.

    Where none of `tries` is, `here` itself bit for bit, and a share of 0.

    Args:
        accepts: of a candidate and its share of the step.
    """

    def go(at: tuple[Array, Array, Array]) -> Bool[Array, ""]:
        _, found, i = at
        return (i < tries) & ~found

    def one(at: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        _, _, i = at
        share = 0.5 ** i.astype(here.dtype)
        return share, accepts(here + share * step, share), i + 1

    first = jnp.zeros((), here.dtype), jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    share, found, _ = jax.lax.while_loop(go, one, first)
    return jnp.where(found, here + share * step, here), jnp.where(found, share, 0.0)


def trust_region_step(
    region: TrustRegion,
    loss: Callable[..., tuple[Float[Array, ""], Metrics]],
    network: T,
    divergence: Callable[..., Float[Array, ""]],
    *args: Any,
) -> tuple[T, Metrics]:
    """One natural-gradient step down `loss(network, *args) -> (loss, metrics)`, on `network` alone.

    The counterpart of `descend` for a trust region: the step `F^-1 g` is scaled to `max_kl` and halved
    until the loss falls as expected and the KL is within bounds; if it never is, nothing changes
    (Schulman et al. 2015, appendix C).

    Args:
        divergence: `(old, new, *args) -> mean KL(old || new)`.

    Returns:
        the network, and the loss's metrics with `kl` (of the step taken) and `rejected` (1 if none was).
    """
    here, rebuild = as_vector(network)

    def at(v: Vector) -> tuple[Float[Array, ""], Metrics]:
        return loss(rebuild(v), *args)

    (before, metrics), slope = jax.value_and_grad(at, has_aux=True)(here)
    fisher = fisher_product(divergence, network, *args)
    direction = conjugate_gradient(lambda v: fisher(v) + region.damping * v, -slope, region.cg_steps)
    curvature = direction @ (fisher(direction) + region.damping * direction)
    step = jnp.sqrt(2 * region.max_kl / jnp.maximum(curvature, TINY)) * direction
    expected = -slope @ step

    def accepts(candidate: Vector, share: Float[Array, ""]) -> Bool[Array, ""]:
        gain = before - at(candidate)[0]
        near = divergence(network, rebuild(candidate), *args) <= region.slack * region.max_kl
        return (gain > 0) & (gain > region.min_share * share * expected) & near

    after, share = backtrack(accepts, here, step, region.backtracks)
    kl = divergence(network, rebuild(after), *args)
    return rebuild(after), metrics | {"kl": kl, "rejected": (share == 0).astype(jnp.float32)}


def surrogate(
    policy: Callable[[Array], Distribution],
    obs: Array,
    action: Array,
    log_prob: Float[Array, "batch"],
    advantage: Float[Array, "batch"],
    weight: Float[Array, "batch"],
) -> Float[Array, ""]:
    """The weighted mean of `pi(a|s) / pi_old(a|s) A`, `log_prob` that of the old policy (eq. 14)."""
    ratio = jnp.exp(jax.vmap(lambda o, a: policy(o).log_prob(a))(obs, action) - log_prob)
    return (weight * ratio * advantage).sum() / jnp.maximum(weight.sum(), TINY)


def mean_kl(
    old: Callable[[Array], Any], new: Callable[[Array], Any], obs: Array, weight: Float[Array, "batch"]
) -> Float[Array, ""]:
    """The weighted mean of `KL(old(. | s) || new(. | s))` over observations [batch, ...]."""
    kl = jax.vmap(lambda o: old(o).kl(new(o)))(obs)
    return (weight * kl).sum() / jnp.maximum(weight.sum(), TINY)
