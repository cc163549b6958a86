"""The denoiser of EDM: a network made easy to train at every noise level by scaling what goes in and comes out.

With data of spread `sigma_data` the network sees inputs of unit variance and answers with targets of unit
variance, whatever the noise. Everything is written for one example of any shape.

T. Karras, M. Aittala, T. Aila and S. Laine, "Elucidating the Design Space of Diffusion-Based Generative
Models", NeurIPS 2022, Table 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.domains import require

Network = Callable[..., Array]
Density = Callable[[PRNGKeyArray], Float[Array, ""]]
LEAST = 1e-20  # ln(0) has no place in a program, even where it is thrown away


class Denoiser(eqx.Module):
    """`D(x; sigma) = c_skip x + c_out F(c_in x, ln(sigma) / 4, condition)`: the mean of the data given noisy ones.

    Attributes:
        network: `F`, a function of the scaled input, of the code of the noise level, and of what it is
            conditioned on, if anything.
        sigma_data: spread of the clean data.
    """

    network: Network
    sigma_data: float = eqx.field(default=1.0, static=True)

    def scales(self, sigma: Float[Array, ""]) -> tuple[Array, Array, Array]:
        """`c_skip, c_out, c_in` at a noise level."""
        total = jnp.sqrt(sigma**2 + self.sigma_data**2)
        return (self.sigma_data / total) ** 2, sigma * self.sigma_data / total, 1 / total

    def raw(self, x: Float[Array, "*shape"], sigma: Float[Array, ""], *condition: Any) -> Float[Array, "*shape"]:
        """`F`: what the network answers."""
        _, _, c_in = self.scales(sigma)
        return self.network(c_in * x, jnp.log(jnp.maximum(sigma, LEAST)) / 4, *condition)

    def __call__(self, x: Float[Array, "*shape"], sigma: Float[Array, ""], *condition: Any) -> Float[Array, "*shape"]:
        c_skip, c_out, _ = self.scales(sigma)
        return c_skip * x + c_out * self.raw(x, sigma, *condition)

    def loss(self, x: Float[Array, "*shape"], sigma: Float[Array, ""], noise: Array, *condition: Any) -> Array:
        """`mean (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (D(x + sigma n; sigma) - x)^2` (eq. 2 with Table 1).

        Computed as `mean (F - (x - c_skip y) / c_out)^2`, `y = x + sigma n`, which is the same and does not
        divide a small difference by a small number.
        """
        return jnp.mean(self.errors(x, sigma, noise, *condition))

    def errors(
        self, x: Float[Array, "*shape"], sigma: Float[Array, ""], noise: Array, *condition: Any
    ) -> Float[Array, "*shape"]:
        """What `loss` is the mean of, for those whose examples have parts that do not count."""
        y = x + sigma * noise
        total = jnp.sqrt(sigma**2 + self.sigma_data**2)
        target = (sigma * x / self.sigma_data - self.sigma_data * noise) / total
        return (self.raw(y, sigma, *condition) - target) ** 2


def log_normal(key: PRNGKeyArray, mean: float = -1.2, std: float = 1.2) -> Float[Array, ""]:
    """A noise level to train at: `ln sigma` from a Gaussian (EDM, Table 1)."""
    return jnp.exp(mean + std * jax.random.normal(key))


def log_logistic(
    key: PRNGKeyArray, loc: float | Float[Array, ""], scale: float = 0.5, low: float = 0.001, high: float = 80.0
) -> Float[Array, ""]:
    """A noise level to train at: `ln sigma` from a logistic law around `loc`, truncated to `[ln low, ln high]`.

    `sigma = exp(loc + scale logit u)` with u uniform in `[F(low), F(high)]`, `F(s) = sigmoid((ln s - loc) / scale)`
    (Reuss et al., "Goal-Conditioned Imitation Learning using Score-based Diffusion Policies", 2023). Without the
    truncation its median is `exp(loc)`.

    Raises:
        ConfigError: unless `0 < low < high` and `scale` is above 0.
    """
    require(0 < low < high, f"noise levels must be above 0 and in order, but go from {low} to {high}.")
    require(scale > 0, f"scale must be above 0, but is {scale}.")
    ends = jax.nn.sigmoid((jnp.log(jnp.asarray([low, high])) - loc) / scale)
    u = ends[0] + (ends[1] - ends[0]) * jax.random.uniform(key)
    return jnp.clip(jnp.exp(loc + scale * jax.scipy.special.logit(u)), low, high)


def denoising_loss(
    denoiser: Denoiser, x: Float[Array, "*shape"], key: PRNGKeyArray, *condition: Any, density: Density = log_normal
) -> Array:
    """The loss of one example at a random level, drawn from `density(key)`, with random noise."""
    level_key, noise_key = jax.random.split(key)
    return denoiser.loss(x, density(level_key), jax.random.normal(noise_key, x.shape), *condition)
