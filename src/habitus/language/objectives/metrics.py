"""What to watch: entropy, clipped shares, divergence, groups that teach nothing."""

from __future__ import annotations

from habitus.language.objectives.advantages import group_size, scored, varied
from habitus.language.objectives.arrays import Array, masked_mean, namespace, real, stop
from habitus.language.objectives.kl import k3
from habitus.language.objectives.losses import ratio


def log_softmax(logits: Array) -> Array:
    """[.., V]: log-probabilities."""
    xp = namespace(logits)
    shifted = logits - stop(xp.max(logits, axis=-1, keepdims=True))
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def entropy(logits: Array) -> Array:
    """[..]: `logsumexp(z) - sum p z` over the vocabulary, in nats."""
    logp, xp = log_softmax(logits), namespace(logits)
    p = xp.exp(logp)
    return -xp.sum(xp.where(p > 0, p * logp, xp.zeros_like(p)), axis=-1)


def clip_fractions(
    logp: Array, old_logp: Array, advantage: Array, mask: Array, eps_low: float = 0.2, eps_high: float = 0.2
) -> dict[str, Array]:
    """Shares of tokens whose gradient PPO's clipping removes, below and above."""
    rho = ratio(logp, old_logp)
    low = (rho < 1 - eps_low) & (advantage < 0)
    high = (rho > 1 + eps_high) & (advantage > 0)
    return {
        "clip_low": masked_mean(real(low, logp), mask),
        "clip_high": masked_mean(real(high, logp), mask),
    }


def approx_kl(logp: Array, old_logp: Array, mask: Array) -> Array:
    """How far the policy moved from the one that wrote the tokens: mean k3 of the old one against the new, in nats."""
    return masked_mean(k3(old_logp, logp), mask)


def degenerate_fraction(reward: Array, group_id: Array) -> Array:
    """The share of groups whose scored rewards are all equal: they have no gradient."""
    xp, kept = namespace(reward), real(scored(reward), reward)
    share = kept / xp.clip(group_size(reward, group_id), min=1)  # of a group, so that each counts once
    total = xp.sum(share)
    same = share * real(~varied(reward, group_id), reward)
    return xp.sum(same) / xp.where(total > 0, total, xp.ones_like(total))
