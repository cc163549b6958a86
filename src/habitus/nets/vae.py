"""A conditional variational auto-encoder of actions: what was done in states like this one."""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.spec import Spec
from habitus.nets.distributions import Normal
from habitus.nets.encoder import Encoder, make_encoder
from habitus.nets.mlp import MLP


class ActionVAE(eqx.Module):
    """`p(a|s, z)` and `q(z|s, a)` of real actions, with a standard normal prior on `z` (Sohn et al. 2015)."""

    obs_encoder: Encoder
    encoder: MLP
    decoder: MLP
    log_std_range: tuple[float, float] = eqx.field(static=True)

    def __init__(
        self,
        spec: Spec,
        hidden: Sequence[int],
        latent: int,
        key: PRNGKeyArray,
        log_std_range: tuple[float, float] = (-4.0, 4.0),
    ):
        """Args:
        latent: numbers in `z`.
        log_std_range: bounds of the posterior's log standard deviation.
        """
        spec.require("bounded", "an auto-encoder of actions")
        obs_key, in_key, out_key = jax.random.split(key, 3)
        self.obs_encoder = make_encoder(spec, obs_key)
        size = self.obs_encoder.size
        self.encoder = MLP(size + spec.action_size, hidden, 2 * latent, in_key)
        self.decoder = MLP(size + latent, hidden, spec.action_size, out_key)
        self.log_std_range = log_std_range

    def encode(self, obs: Array, action: Float[Array, "actions"]) -> Normal:
        """The posterior `q(z|s, a)`."""
        mean, log_std = jnp.split(self.encoder(jnp.concatenate([self.obs_encoder(obs), action])), 2)
        return Normal(mean, jnp.clip(log_std, *self.log_std_range))

    def decode(self, obs: Array, latent: Float[Array, "latent"]) -> Float[Array, "actions"]:
        """The action in (-1, 1) of a latent."""
        return jnp.tanh(self.decoder(jnp.concatenate([self.obs_encoder(obs), latent])))

    def __call__(self, obs: Array, action: Float[Array, "actions"], key: PRNGKeyArray) -> Float[Array, "actions"]:
        """An action rebuilt from a draw of its posterior."""
        return self.decode(obs, self.encode(obs, action).sample(key))


def standard_kl(posterior: Normal) -> Float[Array, ""]:
    """KL(posterior || N(0, I)), the mean over dimensions."""
    return posterior.kl(Normal(jnp.zeros_like(posterior.mean), jnp.zeros_like(posterior.mean))) / posterior.mean.size
