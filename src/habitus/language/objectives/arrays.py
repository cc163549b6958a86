"""What the array-API standard lacks: sums by group, masked statistics, stopped gradients, scans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from habitus.core.errors import ConfigError, MissingExtra

Array = Any  # of NumPy, JAX or PyTorch


def namespace(*arrays: Array) -> Any:
    """The array-API namespace of these arrays.

    Raises:
        MissingExtra: without the package array-api-compat.
    """
    try:
        from array_api_compat import array_namespace
    except ImportError as error:
        raise MissingExtra("the objectives of language models", "language") from error
    return array_namespace(*arrays)


def is_jax(x: Array) -> bool:
    """Whether `x` is an array of JAX, traced ones included."""
    from array_api_compat import is_jax_array

    return is_jax_array(x)


def stop(x: Array) -> Array:
    """`x`, through which no gradient flows."""
    if is_jax(x):
        import jax

        return jax.lax.stop_gradient(x)
    return x.detach() if hasattr(x, "detach") else x


def real(x: Array, like: Array) -> Array:
    """A mask or whole numbers in the precision of `like`."""
    return namespace(like).astype(x, like.dtype)


def traced(x: Array) -> bool:
    """Whether the values of `x` are not known yet."""
    if not is_jax(x):
        return False
    import jax

    return isinstance(x, jax.core.Tracer)


def reverse_scan(step: Callable[[Any, Any], tuple[Any, Array]], carry: Any, xs: tuple[Array, ...]) -> Array:
    """`carry, y = step(carry, columns)` over the columns of arrays [B, R], from the last to the first.

    Returns:
        The y [B, R], in the order of the columns.
    """
    if is_jax(xs[0]):
        import jax

        moved = tuple(x.T for x in xs)
        return jax.lax.scan(step, carry, moved, reverse=True)[1].T
    xp, out = namespace(*xs), []
    for t in reversed(range(xs[0].shape[1])):
        carry, y = step(carry, tuple(x[:, t] for x in xs))
        out.append(y)
    return xp.stack(out[::-1], axis=1)


def members(group_id: Array, like: Array, kept: Array) -> Array:
    """[B, B]: 1 where the second is kept and in the group of the first, else 0."""
    return real((group_id[:, None] == group_id[None, :]) & kept[None, :], like)


def masked_mean(x: Array, mask: Array) -> Array:
    """Mean where the mask is 1; 0 where it never is."""
    xp, weight = namespace(x), real(mask, x)
    total = xp.sum(weight)
    return xp.sum(xp.where(weight > 0, x * weight, 0 * weight)) / xp.where(total > 0, total, xp.ones_like(total))


def whiten(x: Array, mask: Array) -> Array:
    """`(x - mean) / sqrt(var + 1e-8)` over the ones of the mask, var with Bessel's factor; 0 elsewhere.

    Raises:
        ConfigError: if the mask has fewer than two ones.
    """
    xp, weight = namespace(x), real(mask, x)
    count = xp.sum(weight)
    if not traced(count) and float(count) < 2:
        raise ConfigError(f"whitening needs two tokens or more in the mask, but there are {int(count)}.")
    centred = (x - masked_mean(x, mask)) * weight
    var = xp.sum(centred**2) / (count - 1)
    return centred / xp.sqrt(var + 1e-8)
