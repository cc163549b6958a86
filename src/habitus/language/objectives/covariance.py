"""Losses that spare the tokens by which entropy falls: those whose log-probability and advantage vary together.

G. Cui et al., "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models" (arXiv 2505.22617).
"""

from __future__ import annotations

from habitus.language.objectives.arrays import Array, masked_mean, namespace, real, stop
from habitus.language.objectives.losses import ppo_clip, ratio


def covariance(logp: Array, advantage: Array, mask: Array) -> Array:
    """[B, R]: `(logp - mean logp) (A - mean A)` over the tokens of the mask, 0 elsewhere; no gradient."""
    logp, advantage = stop(logp), stop(advantage)
    found = (logp - masked_mean(logp, mask)) * (advantage - masked_mean(advantage, mask))
    return found * real(mask, logp)


def largest(score: Array, allowed: Array, count: Array) -> Array:
    """[B, R] bool: the `count` largest scores among those allowed, the earlier of equals; all if they are fewer."""
    xp = namespace(score)
    flat = xp.reshape(xp.where(allowed, score, xp.full_like(score, -float("inf"))), (-1,))
    rank = xp.argsort(xp.argsort(-flat, stable=True), stable=True)
    return (xp.reshape(rank, score.shape) < count) & allowed


def share_of(mask: Array, share: float, like: Array) -> Array:
    """`max(1, floor(share N))` of the N tokens in the mask."""
    xp = namespace(like)
    return xp.clip(xp.floor(share * xp.sum(real(mask, like))), min=1)


def clip_cov(
    logp: Array,
    old_logp: Array,
    advantage: Array,
    mask: Array,
    noise: Array,
    share: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
    eps_low: float = 1.0,
    eps_high: float = 1.0,
) -> Array:
    """[B, R]: `ppo_clip`, but 0 for a random `share` of the tokens with `low < covariance < high`.

    Args:
        noise: [B, R] uniform numbers, which choose; tokens that PPO clips already are not chosen.
    """
    xp, rho = namespace(logp), stop(ratio(logp, old_logp))
    found = covariance(logp, advantage, mask)
    clipped = ((rho > 1 + eps_high) & (advantage > 0)) | ((rho < 1 - eps_low) & (advantage < 0))
    allowed = (found > low) & (found < high) & (mask > 0) & ~clipped
    spared = largest(noise, allowed, share_of(mask, share, logp))
    plain = ppo_clip(logp, old_logp, advantage, eps_low, eps_high)
    return xp.where(spared, xp.zeros_like(plain), plain)


def kl_cov(
    logp: Array, old_logp: Array, advantage: Array, mask: Array, share: float = 2e-3, beta: float = 1.0
) -> Array:
    """[B, R]: `-A rho`, and `+ beta |logp - old_logp|` for the `share` of tokens of largest covariance."""
    xp = namespace(logp)
    chosen = largest(covariance(logp, advantage, mask), mask > 0, share_of(mask, share, logp))
    return -advantage * ratio(logp, old_logp) + beta * real(chosen, logp) * xp.abs(logp - old_logp)
