"""Flow matching: a straight way from noise at `t = 0` to data at `t = 1`, and the velocity along it.

Some works count time the other way, with the noise at 1; `opposite` makes a velocity of theirs one of ours, so that
nothing else is written twice.

Y. Lipman, R. T. Q. Chen, H. Ben-Hamu, M. Nickel and M. Le, "Flow Matching for Generative Modeling", ICLR 2023.
X. Liu, C. Gong and Q. Liu, "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
ICLR 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.domains import require
from habitus.generative.ddpm import along

Velocity = Callable[..., Array]  # (x, t, ...) -> like x
Time = Float[Array, "..."] | float


def interpolate(noise: Float[Array, "*shape"], data: Float[Array, "*shape"], t: Time) -> Float[Array, "*shape"]:
    """`x_t = (1 - t) e + t a`, with one time for the example or one for each entry of its leading axes."""
    t = along(jnp.asarray(t), data)
    return (1 - t) * noise + t * data


def data_of(x: Float[Array, "*shape"], velocity: Float[Array, "*shape"], t: Time) -> Float[Array, "*shape"]:
    """`a = x + (1 - t) v`: the data that a velocity at time t points to."""
    return x + (1 - along(jnp.asarray(t), x)) * velocity


def noise_of(x: Float[Array, "*shape"], velocity: Float[Array, "*shape"], t: Time) -> Float[Array, "*shape"]:
    """`e = x - t v`: the noise that a velocity at time t comes from."""
    return x - along(jnp.asarray(t), x) * velocity


def flow_loss(
    velocity: Velocity, noise: Float[Array, "*shape"], data: Float[Array, "*shape"], t: Time, *condition: Any
) -> Float[Array, ""]:
    """`mean (v(x_t, t) - (a - e))^2` of one example at time t (Lipman et al., eq. 23 without the least noise)."""
    answer = velocity(interpolate(noise, data, t), jnp.asarray(t), *condition)
    return jnp.mean((answer - (data - noise)) ** 2)


def flow_sample(
    velocity: Velocity, noise: Float[Array, "*shape"], steps: int, *condition: Any
) -> Float[Array, "*shape"]:
    """One draw in `steps` steps of Euler's method, `x + v(x, i / K) / K`.

    Raises:
        ConfigError: if there is no step.
    """
    require(steps >= 1, f"a flow needs 1 step or more, but has {steps}.")

    def step(x: Array, t: Array) -> tuple[Array, None]:
        return x + velocity(x, t, *condition) / steps, None

    return jax.lax.scan(step, noise, jnp.arange(steps, dtype=noise.dtype) / steps)[0]


def flow_walk(
    velocity: Velocity,
    x: Float[Array, "*shape"],
    start: Time,
    size: Time,
    calls: Int[Array, ""] | int,
    *condition: Any,
    gain: Time = 1.0,
    most: int | None = None,
) -> Float[Array, "*shape"]:
    """A part of the way: `calls` steps of Euler's method of `size` from time `start` on, `x + gain size v(x, t)`.

    Args:
        gain: factor of every step in x, not of those in time.
        most: bound of `calls` where that is traced; the network is called so often, the rest for nothing.
    """
    rows = calls if most is None else most

    def step(x: Array, i: Array) -> tuple[Array, None]:
        moved = x + gain * size * velocity(x, start + i * size, *condition)
        return jnp.where(i < calls, moved, x), None

    return jax.lax.scan(step, x, jnp.arange(rows))[0]


def euler_calls(left: float, kept: float, steps: int) -> int:
    """Steps of `1 / steps` on a way of length 1, with `left` of it to go, while half a step more than `kept` remains.

    In single precision, as in Hume (H. Song et al., 2025, authors' code): 0.96 of ten steps is ten calls, 0.94 nine.

    Raises:
        ConfigError: if there is no step to take.
    """
    require(steps >= 1, f"a flow needs 1 step or more, but has {steps}.")
    size, at, calls = np.float32(-1 / steps), np.float32(left), 0
    while at >= np.float32(kept) - size / 2:
        at, calls = at + size, calls + 1
    require(calls >= 1, f"with {left} of the way to go and {kept} to be left, not one of {steps} steps fits.")
    return calls


def opposite(velocity: Velocity) -> Velocity:
    """A velocity `u(x, tau)` with the noise at `tau = 1` and target `e - a`, as one of this library; and back.

    `v(x, t) = -u(x, 1 - t)`.
    """

    def ours(x: Array, t: Array, *condition: Any) -> Array:
        return -velocity(x, 1 - t, *condition)

    return ours


# --- times to train at


def uniform_time(key: PRNGKeyArray) -> Float[Array, ""]:
    """`t` uniform in [0, 1)."""
    return jax.random.uniform(key)


def logit_normal_time(key: PRNGKeyArray, mean: float = 0.0, std: float = 1.0) -> Float[Array, ""]:
    """`t = sigmoid(N(mean, std^2))`: the middle of the way more often (Esser et al., ICML 2024, section 3.1)."""
    return jax.nn.sigmoid(mean + std * jax.random.normal(key))


def noisy_time(key: PRNGKeyArray, alpha: float = 1.5, high: float = 0.999) -> Float[Array, ""]:
    """`t = high (1 - b)` with b from Beta(alpha, 1): noisy times more often (Black et al., pi0, 2024, appendix B).

    `b = u^(1 / alpha)` with u uniform. The mean of t is `high / (1 + alpha)`.
    """
    return high * (1 - jax.random.uniform(key) ** (1 / alpha))
