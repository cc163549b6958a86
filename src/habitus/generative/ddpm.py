"""Denoising diffusion in discrete levels: schedules, what a network may predict, and the ancestral step.

Levels run from 0, almost clean, to `N - 1`, almost pure noise; level -1 is clean. Wherever a level `k` is wanted
it is one integer for the whole example, or one for each entry of its leading axes (such as one for each time step),
as in a buffer whose noise grows with time (Hoeg et al. 2024).

J. Ho, A. Jain and P. Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020. A. Nichol and P. Dhariwal,
"Improved Denoising Diffusion Probabilistic Models", ICML 2021. T. Salimans and J. Ho, "Progressive Distillation for
Fast Sampling of Diffusion Models", ICLR 2022 (velocities). S. H. Hoeg, Y. Du and O. Egeland, "Streaming Diffusion
Policy", ICRA 2025.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from habitus.core.domains import require
from habitus.core.errors import ConfigError

Level = Int[Array, "..."] | int
Predict = Callable[[Array, Int[Array, ""]], Array]
Guide = Callable[[Array, Int[Array, ""]], Array]
PREDICTIONS = ("noise", "clean", "velocity")
LEAST_VARIANCE = 1e-20


class Schedule(eqx.Module):
    """The noise of `N` levels, which keeps the variance of data of variance 1.

    Attributes:
        beta: share of variance that is replaced at each level, [N].
        alpha_bar: `prod_{j <= k} (1 - beta_j)`, the share of the data's variance that is left at level k, [N].
        noise_bar: `1 - alpha_bar`, the share of noise; apart, as single precision would lose it where it is small.
    """

    beta: Float[Array, "levels"]
    alpha_bar: Float[Array, "levels"]
    noise_bar: Float[Array, "levels"]

    @classmethod
    def of(cls, beta: np.ndarray) -> Schedule:
        """The schedule of given shares. Products are taken in double precision.

        Raises:
            ConfigError: unless there are any, all in (0, 1).
        """
        beta = np.asarray(beta, np.float64)
        require(beta.ndim == 1 and len(beta) >= 1, f"a schedule needs 1 level or more, but beta is {beta.shape}.")
        require(((beta > 0) & (beta < 1)).all(), "every beta of a schedule must be in (0, 1).")
        kept = np.cumprod(1 - beta)
        return cls(*(jnp.asarray(x, jnp.float32) for x in (beta, kept, 1 - kept)))

    @classmethod
    def cosine(cls, levels: int, share: float = 1.0) -> Schedule:
        """`beta_k = min(1 - f((k + 1) / N) / f(k / N), 0.999)`, `f(u) = cos^2((u + 0.008) / 1.008 * pi / 2)`.

        (Nichol and Dhariwal, eq. 17.)

        Args:
            share: of every `beta`; below 1 the highest level keeps more of the data.

        Raises:
            ConfigError: if there is no level, or a share of variance is not in (0, 1).
        """
        require(levels >= 1, f"a schedule needs 1 level or more, but has {levels}.")
        f = np.cos((np.linspace(0, 1, levels + 1) + 0.008) / 1.008 * np.pi / 2) ** 2
        return cls.of(share * np.minimum(1 - f[1:] / f[:-1], 0.999))

    @classmethod
    def linear(cls, levels: int, low: float = 1e-4, high: float = 0.02) -> Schedule:
        """`beta` evenly spaced from `low` to `high` (Ho et al., section 4).

        Raises:
            ConfigError: if there is no level, or a share is not in (0, 1).
        """
        return cls.of(np.linspace(low, high, levels))

    @property
    def levels(self) -> int:
        """`N`."""
        return len(self.beta)

    def kept(self, k: Level) -> Float[Array, "..."]:
        """`abar_k`, and 1 for the clean level -1, which never indexes the table."""
        k = jnp.asarray(k)
        return jnp.where(k < 0, 1.0, self.alpha_bar[jnp.maximum(k, 0)])

    def lost(self, k: Level) -> Float[Array, "..."]:
        """`1 - abar_k`, and 0 for the clean level -1."""
        k = jnp.asarray(k)
        return jnp.where(k < 0, 0.0, self.noise_bar[jnp.maximum(k, 0)])

    def noised(self, clean: Float[Array, "*shape"], noise: Float[Array, "*shape"], k: Level) -> Float[Array, "*shape"]:
        """`x_k = sqrt(abar_k) x_0 + sqrt(1 - abar_k) eps` (Ho et al., eq. 4)."""
        signal, spread = self._scales(k, clean)
        return signal * clean + spread * noise

    def velocity(
        self, clean: Float[Array, "*shape"], noise: Float[Array, "*shape"], k: Level
    ) -> Float[Array, "*shape"]:
        """`v = sqrt(abar_k) eps - sqrt(1 - abar_k) x_0` (Salimans and Ho, section 4)."""
        signal, spread = self._scales(k, clean)
        return signal * noise - spread * clean

    def target(
        self, clean: Float[Array, "*shape"], noise: Float[Array, "*shape"], k: Level, prediction: str
    ) -> Float[Array, "*shape"]:
        """What a network that makes this kind of prediction is to answer.

        Raises:
            ConfigError: for another kind than `PREDICTIONS`.
        """
        check_prediction(prediction)
        return {"noise": noise, "clean": clean, "velocity": self.velocity(clean, noise, k)}[prediction]

    def clean(
        self, x: Float[Array, "*shape"], answer: Float[Array, "*shape"], k: Level, prediction: str = "noise"
    ) -> Float[Array, "*shape"]:
        """The clean data that a prediction means; not clipped.

        `x_0 = (x - sqrt(1 - abar) eps) / sqrt(abar)`, or `x_0 = sqrt(abar) x - sqrt(1 - abar) v`.

        Raises:
            ConfigError: for another kind than `PREDICTIONS`.
        """
        check_prediction(prediction)
        if prediction == "clean":
            return answer
        signal, spread = self._scales(k, x)
        return (x - spread * answer) / signal if prediction == "noise" else signal * x - spread * answer

    def noise(self, x: Float[Array, "*shape"], clean: Float[Array, "*shape"], k: Level) -> Float[Array, "*shape"]:
        """`eps = (x - sqrt(abar) x_0) / sqrt(1 - abar)`: the noise between noisy and clean data; 0 at level -1."""
        signal, spread = self._scales(k, x)
        return jnp.where(spread > 0, (x - signal * clean) / jnp.where(spread > 0, spread, 1.0), 0.0)

    def _scales(self, k: Level, x: Array) -> tuple[Array, Array]:
        """`sqrt(abar_k)` and `sqrt(1 - abar_k)`, shaped to scale `x`."""
        return along(jnp.sqrt(self.kept(k)), x), along(jnp.sqrt(self.lost(k)), x)


def along(values: Num[Array, "..."], x: Array) -> Num[Array, "..."]:
    """Numbers for the leading axes of `x`, with as many axes as it has.

    Raises:
        ConfigError: if these are not its leading axes.
    """
    if values.shape != x.shape[: values.ndim]:
        raise ConfigError(f"levels of shape {values.shape} must be for leading axes of an example of shape {x.shape}.")
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))


def check_prediction(prediction: str) -> None:
    """Raises `ConfigError` unless this is a kind of prediction."""
    require(prediction in PREDICTIONS, f"prediction must be one of {', '.join(PREDICTIONS)}, but is {prediction!r}.")


def clipped(x: Float[Array, "*shape"], bound: float | None) -> Float[Array, "*shape"]:
    """`x` cut to `[-bound, bound]`; as it is without a bound."""
    return x if bound is None else jnp.clip(x, -bound, bound)


def ddpm_step(
    schedule: Schedule,
    x: Float[Array, "*shape"],
    clean: Float[Array, "*shape"],
    k: Level,
    noise: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """From level k to k - 1: a draw of `q(x_{k-1} | x_k, x_0)` (Ho et al., eqs. 6 and 7).

    The mean is `(sqrt(abar_{k-1}) beta_k x_0 + sqrt(alpha_k) (1 - abar_{k-1}) x_k) / (1 - abar_k)`, the variance
    `beta_k (1 - abar_{k-1}) / (1 - abar_k)`, at least 1e-20, and 0 at k = 0. What is at level -1 stays as it is.

    Args:
        clean: the estimate of `x_0`, clipped already if it is to be.
        noise: a standard Gaussian.
    """
    mean, std = ddpm_posterior(schedule, x, clean, k)
    return jnp.where(along(jnp.asarray(k), x) < 0, x, mean + std * noise)


def ddpm_posterior(
    schedule: Schedule, x: Float[Array, "*shape"], clean: Float[Array, "*shape"], k: Level
) -> tuple[Float[Array, "*shape"], Float[Array, "..."]]:
    """The mean and the standard deviation of `ddpm_step` from a level of 0 or more, the latter shaped to scale `x`."""
    k = jnp.asarray(k)
    beta = schedule.beta[jnp.maximum(k, 0)]
    before, lost = schedule.lost(k - 1), jnp.where(k < 0, 1.0, schedule.lost(k))
    variance = jnp.maximum(beta * before / lost, LEAST_VARIANCE)
    std = jnp.where(k > 0, jnp.sqrt(variance), 0.0)
    of_clean, of_x = jnp.sqrt(schedule.kept(k - 1)) * beta / lost, jnp.sqrt(1 - beta) * before / lost
    return along(of_clean, x) * clean + along(of_x, x) * x, along(std, x)


def ddpm_sample(
    schedule: Schedule,
    predict: Predict,
    noise: Float[Array, "*shape"],
    key: PRNGKeyArray,
    *,
    prediction: str = "noise",
    clip: float | None = 1.0,
    guide: Guide | None = None,
) -> Float[Array, "*shape"]:
    """One draw by all levels, `N - 1` down to 0.

    Args:
        predict: `(x, k)`, the network's answer.
        noise: a standard Gaussian, where the chain begins.
        key: of the noise in the steps.
        clip: bound of the estimates of clean data; None for none.
        guide: `(mean, k)`, moves the mean of each step before noise is added.

    Raises:
        ConfigError: for another kind of prediction than `PREDICTIONS`.
    """
    return ddpm_last(schedule, predict, noise, key, 1, prediction=prediction, clip=clip, guide=guide)[0]


def ddpm_last(
    schedule: Schedule,
    predict: Predict,
    noise: Float[Array, "*shape"],
    key: PRNGKeyArray,
    count: int,
    *,
    prediction: str = "noise",
    clip: float | None = 1.0,
    guide: Guide | None = None,
) -> Float[Array, "count *shape"]:
    """What the last `count` steps of `ddpm_sample` arrive at, the draw itself at the end.

    Raises:
        ConfigError: for another kind of prediction than `PREDICTIONS`, or a count that is not from 1 to N.
    """
    check_prediction(prediction)
    require(1 <= count <= schedule.levels, f"count must be from 1 to the {schedule.levels} levels, but is {count}.")

    def step(recent: Array, k: Array) -> tuple[Array, None]:
        x = recent[-1]
        clean = clipped(schedule.clean(x, predict(x, k), k, prediction), clip)
        fresh = jax.random.normal(jax.random.fold_in(key, k), x.shape, x.dtype)
        mean, std = ddpm_posterior(schedule, x, clean, k)
        moved = (mean if guide is None else guide(mean, k)) + std * fresh
        return jnp.concatenate([recent[1:], moved[None]]), None

    start = jnp.broadcast_to(noise, (count, *noise.shape))
    return jax.lax.scan(step, start, jnp.arange(schedule.levels)[::-1])[0]
