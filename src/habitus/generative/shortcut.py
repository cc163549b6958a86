"""Shortcut models: a flow that is told how far its next step goes, and so can go far in one.

A step of size d is to end where two of size d / 2 do. What is known of small steps thus becomes known of great ones,
and the smallest are learned by flow matching, with d = 0.

K. Frans, D. Hafner, S. Levine and P. Abbeel, "One Step Diffusion via Shortcut Models", ICLR 2025.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.domains import require
from habitus.core.trees import take
from habitus.generative.flow import flow_loss, flow_sample, interpolate, uniform_time

Shortcut = Callable[..., Array]  # (x, t, d, ...) -> like x


def draw_step(key: PRNGKeyArray, halvings: int = 5) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`t, d` to be consistent at: `d = 2^-n` with n uniform in {0, .., halvings - 1}, t uniform in {0, d, .., 1 - d}.

    Raises:
        ConfigError: if `halvings` is below 1.
    """
    require(halvings >= 1, f"halvings must be 1 or more, but is {halvings}.")
    n_key, t_key = jax.random.split(key)
    d = 0.5 ** jax.random.randint(n_key, (), 0, halvings).astype(jnp.float32)
    return d * jnp.floor(jax.random.uniform(t_key) / d), d


def self_consistency_target(
    network: Shortcut,
    x: Float[Array, "*shape"],
    t: Float[Array, ""],
    d: Float[Array, ""],
    *condition: Any,
    smallest: float = 0.0,
) -> Float[Array, "*shape"]:
    """`(v_1 + v_2) / 2`, `v_1 = v(x, t, d / 2)`, `v_2 = v(x + v_1 d / 2, t + d / 2, d / 2)`; no gradient flows.

    (Frans et al., eqs. 4 and 5.)

    Args:
        smallest: of the steps that consistency is asked of. A network is asked for half-steps below it with `d = 0`,
            as those are the ones that flow matching trains; 0 asks for them as they are.
    """
    half = d / 2
    told = jnp.where(half < smallest, 0.0, half)
    first = network(x, t, told, *condition)
    second = network(x + half * first, t + half, told, *condition)
    return jax.lax.stop_gradient((first + second) / 2)


def shortcut_loss(
    network: Shortcut,
    noise: Float[Array, "batch *shape"],
    data: Float[Array, "batch *shape"],
    key: PRNGKeyArray,
    *condition: Any,
    share: float = 0.25,
    halvings: int = 5,
    time: Callable[[PRNGKeyArray], Float[Array, ""]] = uniform_time,
) -> Float[Array, ""]:
    """The mean over a batch: of the first `share` of its rows self-consistency, of the others flow matching.

    `mean (v(x_t, t, d) - target)^2` and `mean (v(x_t, t, 0) - (a - e))^2`. The rows must be in random order.

    Args:
        network: `v(x, t, d, ...)`, of one example.
        condition: trees whose leaves have the batch as leading axis.
        halvings: how many sizes of steps there are, `1, 1/2, .., 2^(1 - halvings)`.
        time: density of the times of flow matching.

    Raises:
        ConfigError: if `share` is not in [0, 1], or `halvings` below 1.
    """
    require(0 <= share <= 1, f"share is that of self-consistency, in [0, 1], but is {share}.")
    rows = len(data)
    few, smallest = round(share * rows), 2.0 ** (1 - halvings)
    keys = jax.random.split(key, rows)

    def consistent(e: Array, a: Array, key: PRNGKeyArray, given: tuple[Any, ...]) -> Array:
        t, d = draw_step(key, halvings)
        x = interpolate(e, a, t)
        target = self_consistency_target(network, x, t, d, *given, smallest=smallest)
        return jnp.mean((network(x, t, d, *given) - target) ** 2)

    def matching(e: Array, a: Array, key: PRNGKeyArray, given: tuple[Any, ...]) -> Array:
        return flow_loss(lambda x, t: network(x, t, jnp.zeros_like(t), *given), e, a, time(key))

    parts = [(consistent, slice(None, few)), (matching, slice(few, None))]
    examples = noise, data, keys, condition
    losses = [jax.vmap(loss)(*take(examples, part)) for loss, part in parts if len(data[part])]
    return jnp.concatenate(losses).mean()


def shortcut_sample(
    network: Shortcut, noise: Float[Array, "*shape"], steps: int, *condition: Any
) -> Float[Array, "*shape"]:
    """One draw in `steps` equal steps, the network told their size `d = 1 / steps`.

    Raises:
        ConfigError: if there is no step.
    """
    require(steps >= 1, f"a flow needs 1 step or more, but has {steps}.")
    return flow_sample(
        lambda x, t, *given: network(x, t, jnp.full_like(t, 1 / steps), *given), noise, steps, *condition
    )
