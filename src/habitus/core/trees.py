"""Small tools over pytrees: what every learner and the loop need, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

T = TypeVar("T")
Metrics = dict[str, Array]


class Shared(eqx.Module):
    """Marks a part of a state that is the same for every seed.

    The loop never batches it over seeds and never writes it to a checkpoint: `init` rebuilds it.
    """

    value: PyTree


def is_shared(x: Any) -> bool:
    """Whether `x` is a `Shared` node, for use as `is_leaf`."""
    return isinstance(x, Shared)


def is_array(x: Any) -> bool:
    """Whether `x` is an array of JAX or NumPy."""
    return isinstance(x, (jax.Array, np.ndarray))


def to_numpy(tree: T) -> T:
    """The same tree with its arrays on the host."""
    return jax.tree.map(lambda x: np.asarray(x) if is_array(x) else x, tree)


def copy(tree: T) -> T:
    """A copy whose buffers are its own, so that both can be donated."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True) if eqx.is_array(x) else x, tree)


def polyak(target: T, online: T, tau: float | Array) -> T:
    """`tau * online + (1 - tau) * target`, leaf by leaf; the structure is the target's."""
    return jax.tree.map(lambda t, o: (1 - tau) * t + tau * o if eqx.is_inexact_array(t) else t, target, online)


def select(condition: Bool[Array, ""], yes: T, no: T) -> T:
    """`yes` where `condition`, else `no`, for whole trees; keys included."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b) if eqx.is_array(a) else a, yes, no)


def batch_size(tree: PyTree) -> int:
    """Length of the leading axis of the first leaf."""
    return jax.tree.leaves(tree)[0].shape[0]


def take(tree: T, index: Any) -> T:
    """`leaf[index]` for every array leaf."""
    return jax.tree.map(lambda x: x[index] if is_array(x) else x, tree)


def descend(
    optimizer: optax.GradientTransformation,
    loss: Callable[..., tuple[Float[Array, ""], Metrics]],
    network: T,
    opt_state: optax.OptState,
    *args: Any,
) -> tuple[T, optax.OptState, Metrics]:
    """One gradient step of `loss(network, *args) -> (loss, metrics)` on `network` alone.

    With `habitus.nets.trust_region.trust_region_step`, the only place where habitus differentiates for a
    learner: the gradient flows into the first argument and into nothing else.
    """
    grads, metrics = eqx.filter_grad(loss, has_aux=True)(network, *args)
    updates, opt_state = optimizer.update(grads, opt_state, eqx.filter(network, eqx.is_inexact_array))
    return eqx.apply_updates(network, updates), opt_state, metrics


def extend(cls: type[T], state: eqx.Module, **more: Any) -> T:
    """A `cls` with the fields of `state` and with `more`, for methods that extend another's state."""
    return cls(**{f.name: getattr(state, f.name) for f in dataclasses.fields(state)} | more)


def trainable(network: PyTree) -> PyTree:
    """The leaves an optimiser acts on."""
    return eqx.filter(network, eqx.is_inexact_array)


def prefixed(prefix: str, metrics: Mapping[str, Array]) -> Metrics:
    """The same metrics under `prefix/`."""
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def not_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether any inexact leaf holds NaN or Inf."""
    leaves = [x for x in jax.tree.leaves(tree) if eqx.is_inexact_array(x)]
    return jnp.any(jnp.stack([~jnp.isfinite(x).all() for x in leaves])) if leaves else jnp.array(False)


def every(period: int, step: Array, act: Callable[..., tuple[T, Metrics]], state: T, *args: Any) -> tuple[T, Metrics]:
    """`act(state, *args)` on steps that `period` divides; the state untouched on the others.

    The metrics count `period` times when they occur and 0 otherwise, so that their mean over many
    steps is the mean over those on which `act` ran.
    """
    if period == 1:
        return act(state, *args)

    def scaled(state: T, *args: Any) -> tuple[T, Metrics]:
        after, found = act(state, *args)
        return after, {name: period * value for name, value in found.items()}

    return when(step % period == 0, scaled, state, *args)


def when(condition: Bool[Array, ""], act: Callable[..., tuple[T, Metrics]], state: T, *args: Any) -> tuple[T, Metrics]:
    """`act(state, *args)` if `condition`; else the state untouched, and metrics of 0."""
    arrays, static = eqx.partition(state, eqx.is_array)

    def run(arrays: T, args: tuple[Any, ...]) -> tuple[T, Metrics]:
        after, found = act(eqx.combine(arrays, static), *args)
        return eqx.filter(after, eqx.is_array), found

    metrics = jax.eval_shape(lambda s, a: run(s, a)[1], arrays, args)

    def no(arrays: T, args: tuple[Any, ...]) -> tuple[T, Metrics]:
        return arrays, jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics)

    arrays, found = jax.lax.cond(condition, run, no, arrays, args)
    return eqx.combine(arrays, static), found


def seldom(condition: Bool[Array, ""], act: Callable[..., T], state: T, *args: Any) -> T:
    """`act(state, *args)` if `condition`, else the state: for what is dear, and due for all seeds at once or for none.

    Under `vmap` the act is skipped unless it is due for some; `lax.cond` would then run it for all, always.
    `act` must get everything from its arguments and close over no array.
    """
    arrays, static = eqx.partition((state, args), eqx.is_array)

    def run(arrays: PyTree) -> PyTree:
        now, more = eqx.combine(arrays, static)
        return eqx.filter(act(now, *more), eqx.is_array)

    @jax.custom_batching.custom_vmap
    def branch(condition: Array, arrays: PyTree) -> PyTree:
        return jax.lax.cond(condition, run, lambda arrays: arrays[0], arrays)

    @branch.def_vmap
    def _(size: int, batched: Any, condition: Array, arrays: PyTree) -> tuple[PyTree, Any]:
        due = condition if batched[0] else jnp.broadcast_to(condition, (size,))
        axes = jax.tree.map(lambda b: 0 if b else None, batched[1])
        before = jax.tree.map(lambda x, b: x if b else jnp.broadcast_to(x, (size, *x.shape)), arrays[0], batched[1][0])

        def for_some(arrays: PyTree) -> PyTree:
            after = jax.vmap(run, in_axes=(axes,), axis_size=size)(arrays)
            return jax.vmap(select)(due, after, before)

        out = jax.lax.cond(due.any(), for_some, lambda _: before, arrays)
        return out, jax.tree.map(lambda _: True, out)

    return eqx.combine(branch(condition, arrays), eqx.filter(state, eqx.is_array, inverse=True))


def shuffled(key: PRNGKeyArray, n: int) -> Int[Array, "n"]:
    """The numbers below n in random order.

    On a CPU XLA sorts plain numbers five times as fast as pairs of numbers, so up to 4,096 rows are
    sorted with their index in the low bits of the random key; equal high bits then keep their order,
    which befalls one pair in 2^20 or fewer.
    """
    bits = (n - 1).bit_length()
    if bits > 12:
        return jax.random.permutation(key, n)
    low = jnp.uint32((1 << bits) - 1)
    rows = jnp.arange(n, dtype=jnp.uint32)
    return (jnp.sort(jax.random.bits(key, (n,)) & ~low | rows) & low).astype(jnp.int32)


def minibatches(
    act: Callable[[T, PyTree, PRNGKeyArray], tuple[T, Metrics]],
    state: T,
    batch: PyTree,
    key: PRNGKeyArray,
    epochs: int,
    size: int,
) -> tuple[T, Metrics]:
    """`epochs` passes over `batch`, shuffled anew each, `act` on every minibatch of `size` rows.

    A last, smaller minibatch of an epoch is left out. The metrics are means over the minibatches.
    """
    rows = batch_size(batch)
    size = min(size, rows)

    def epoch(state: T, key: PRNGKeyArray) -> tuple[T, Metrics]:
        order_key, act_key = jax.random.split(key)
        order = shuffled(order_key, rows)[: rows // size * size].reshape(-1, size)

        def one(state: T, at: tuple[Array, Array]) -> tuple[T, Metrics]:
            # fold_in and not split: XLA drops the keys of an `act` that draws nothing.
            return act(state, take(batch, at[1]), jax.random.fold_in(act_key, at[0]))

        return jax.lax.scan(one, state, (jnp.arange(len(order)), order))

    state, metrics = jax.lax.scan(epoch, state, jax.random.split(key, epochs))
    return state, jax.tree.map(jnp.mean, metrics)
