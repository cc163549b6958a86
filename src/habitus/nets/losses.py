"""Losses and batches that several methods share, as pure functions."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.experience import Transition, flatten_time
from habitus.core.returns import gae
from habitus.nets.distributions import Distribution


def clipped_value_loss(
    value: Float[Array, "batch"], old: Float[Array, "batch"], target: Float[Array, "batch"], clip: float | Array
) -> Float[Array, ""]:
    """`mean max((V - R)^2, (V_old + clip(V - V_old, +-c) - R)^2)` (Schulman et al. 2017, as in their code)."""
    near = old + jnp.clip(value - old, -clip, clip)
    return jnp.maximum((value - target) ** 2, (near - target) ** 2).mean()


def expectile_loss(error: Float[Array, "*batch"], expectile: float | Array) -> Float[Array, "*batch"]:
    """`|tau - 1(error < 0)| error^2` (Kostrikov et al. 2022, eq. 5), elementwise."""
    return jnp.where(error < 0, 1 - expectile, expectile) * error**2


def huber(error: Float[Array, "*batch"], delta: float = 1.0) -> Float[Array, "*batch"]:
    """Quadratic up to `delta`, linear beyond, elementwise."""
    size = jnp.abs(error)
    return jnp.where(size <= delta, 0.5 * error**2, delta * (size - 0.5 * delta))


class Round(eqx.Module):
    """A roll-out made ready for policy gradients; every field has the leading axis [batch]."""

    obs: Array
    action: Array
    log_prob: Float[Array, "batch"]
    advantage: Float[Array, "batch"]
    value: Float[Array, "batch"]
    target: Float[Array, "batch"]


def prepare_round(
    actor: Callable[[Array], Distribution],
    critic: Callable[[Array], Array],
    rollout: Transition,
    discount: float | Array,
    gae_lambda: float | Array,
) -> Round:
    """Log probabilities, values, advantages and TD(lambda) returns under the policy that collected.

    Args:
        rollout: transitions [time, env, ...] collected by `actor` as it is now.
    """
    value, next_value = (jax.vmap(jax.vmap(critic))(obs) for obs in (rollout.obs, rollout.next_obs))
    advantage, target = gae(
        rollout.reward, value, next_value, rollout.terminated, rollout.truncated, discount, gae_lambda
    )
    flat = flatten_time(rollout)
    log_prob = jax.vmap(lambda o, a: actor(o).log_prob(a))(flat.obs, flat.action)
    return Round(flat.obs, flat.action, log_prob, advantage.ravel(), value.ravel(), target.ravel())


def tsallis_log(log_p: Float[Array, "*shape"], q: float) -> Float[Array, "*shape"]:
    """`log_q p = (p^(q-1) - 1) / (q - 1)` from `log p`; the logarithm itself at q = 1.

    Elsewhere `p` is floored at 1e-6, below which the power of a small density would explode.
    """
    if q == 1.0:
        return log_p
    return jnp.expm1((q - 1) * jnp.maximum(log_p, jnp.log(1e-6))) / (q - 1)


def pick(values: Float[Array, "batch n"], action: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """The value of each row's action. A masked sum: the gradient of a gather is a slow scatter on a CPU."""
    chosen = action[:, None] == jnp.arange(values.shape[1])
    return jnp.where(chosen, values, 0.0).sum(1)


def straight_through(key: PRNGKeyArray, logits: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """A one-hot draw from each categorical whose gradient is that of its probabilities (Bengio et al. 2013)."""
    probs = jax.nn.softmax(logits)
    drawn = jax.nn.one_hot(jax.random.categorical(key, logits), logits.shape[-1])
    return drawn + probs - jax.lax.stop_gradient(probs)


def info_nce(scores: Float[Array, "n n"], valid: Bool[Array, "n"]) -> Float[Array, ""]:
    """`mean_i f(x_i, y_i) - log mean_j exp f(x_i, y_j)` over valid rows (van den Oord et al. 2018).

    Args:
        scores: `f(x_i, y_j)`.
    """
    count = jnp.maximum(valid.sum(), 1)
    log_mean = jax.nn.logsumexp(jnp.where(valid, scores, -1e9), axis=1) - jnp.log(count)
    return jnp.where(valid, jnp.diagonal(scores) - log_mean, 0.0).sum() / count
