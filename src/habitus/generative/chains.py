"""How a chunk of actions came to be, as one draw of a distribution: a chain of noisy steps, whose likelihood is known.

So whatever learns by likelihoods of actions, such as PPO, learns a flow or a diffusion: the action is the chain.
Log densities are divided by the number of their terms, which keeps ratios near 1 however large chunks are.

T. Zhang, C. Yu, S. Su and Y. Wang, "ReinFlow: Fine-tuning Flow Matching Policy with Online Reinforcement Learning",
NeurIPS 2025.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.nets.distributions import LOG_2PI, Distribution

Chain = Float[Array, "links *shape"]


class ChainOf(Distribution):
    """A Gaussian start, then Gaussian links: `x_0 ~ N(0, I)`, `x_{k+1} ~ N(mean_k(x_k), std_k^2)`.

    Attributes:
        shape: of one chunk.
        steps: K; a chain has K + 1 links, the first one of pure noise.

    Class attributes:
        noise_clip: the noise of a link is cut to so many standard deviations.
        bounds: log densities, once divided by the number of terms, are cut to these.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    steps: int = eqx.field(static=True)

    noise_clip: ClassVar[float] = 3.0
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    @abc.abstractmethod
    def link(self, x: Float[Array, "*shape"], k: Int[Array, ""]) -> tuple[Array, Array]:
        """Mean and standard deviation of the next link, given the one of step k."""

    @property
    def terms(self) -> int:
        """Numbers in a chain: what log densities and entropies are divided by."""
        size = 1
        for n in self.shape:
            size *= n
        return (self.steps + 1) * size

    def sample(self, key: PRNGKeyArray) -> Chain:
        """A chain; its last link is clipped to [-1, 1]."""

        def step(x: Array, k: Array) -> tuple[Array, Array]:
            mean, std = self.link(x, k)
            z = jnp.clip(jax.random.normal(jax.random.fold_in(key, k + 1), x.shape), -self.noise_clip, self.noise_clip)
            after = mean + std * z
            after = jnp.where(k == self.steps - 1, jnp.clip(after, -1.0, 1.0), after)
            return after, after

        first = jax.random.normal(jax.random.fold_in(key, 0), self.shape)
        rest = jax.lax.scan(step, first, jnp.arange(self.steps))[1]
        return jnp.concatenate([first[None], rest])

    def log_prob_whole(self, chain: Chain) -> Float[Array, ""]:
        """`log N(x_0; 0, I) + sum_k log N(x_{k+1}; mean_k(x_k), std_k^2)`."""
        mean, std = jax.vmap(self.link)(chain[:-1], jnp.arange(self.steps))
        z = (chain[1:] - mean) / std
        start = -0.5 * (chain[0] ** 2 + LOG_2PI).sum()
        return start - (0.5 * (z**2 + LOG_2PI) + jnp.log(jnp.broadcast_to(std, z.shape))).sum()

    def log_prob(self, chain: Chain) -> Float[Array, ""]:
        """`log_prob_whole` by the number of terms, cut to `bounds`, beyond which no gradient flows."""
        return jnp.clip(self.log_prob_whole(chain) / self.terms, *self.bounds)

    def entropy_of(self, std: Float[Array, "..."]) -> Float[Array, ""]:
        """`(H(x_0) + sum_k H(x_{k+1} | x_k))` by the number of terms, where `std` [K, ...] does not depend on x."""
        size = self.terms // (self.steps + 1)
        spread = jnp.log(jnp.broadcast_to(std, (self.steps, *self.shape))).sum()
        return (0.5 * (1 + LOG_2PI) * (self.steps + 1) * size + spread) / self.terms

    def mode(self) -> Float[Array, "*shape"]:
        """The chunk that comes of the start 0 without noise."""
        return self.without_noise(jnp.zeros(self.shape))

    def without_noise(self, start: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The chunk that comes of a start without noise in the links."""
        end = jax.lax.scan(lambda x, k: (self.link(x, k)[0], None), start, jnp.arange(self.steps))[0]
        return jnp.clip(end, -1.0, 1.0)


class FlowChain(ChainOf):
    """Euler steps of a flow with noise: `mean_k = clip(x_k + v(x_k, k/K, window) / K)`, `std_k = sigma(k/K, window)`.

    (Zhang et al., eq. 5.)
    """

    velocity: Callable[..., Array]
    noise: Callable[..., Array]
    window: Any

    def link(self, x: Float[Array, "*shape"], k: Int[Array, ""]) -> tuple[Array, Array]:
        t = k / self.steps
        mean = jnp.clip(x + self.velocity(x, t, self.window) / self.steps, -1.0, 1.0)
        return mean, self.noise(t, self.window)

    def entropy(self) -> Float[Array, ""]:
        return self.entropy_of(jax.vmap(lambda k: self.noise(k / self.steps, self.window))(jnp.arange(self.steps)))
