"""Losses of each token, [B, R], to be minimised; `aggregate` makes one number of them.

`logp` are log-probabilities of the policy that trains, `old_logp` of the one that wrote the tokens, and `rho` their
ratio. Log-ratios are clamped to +-20.
"""

from __future__ import annotations

from habitus.core.domains import require
from habitus.language.objectives.arrays import Array, namespace, stop

CLAMP = 20.0  # of log-ratios
NFT_CLAMP = 10.0  # of log-ratios in NFT, from above
NFT_RATES = (0.02, 0.98)  # what success rates are clamped to in NFT


def ratio(logp: Array, old_logp: Array) -> Array:
    """`rho = exp(logp - old_logp)`."""
    xp = namespace(logp)
    return xp.exp(xp.clip(logp - old_logp, min=-CLAMP, max=CLAMP))


def _clipped(logp: Array, old_logp: Array, advantage: Array, low: float, high: float) -> Array:
    xp, rho = namespace(logp), ratio(logp, old_logp)
    return xp.maximum(-advantage * rho, -advantage * xp.clip(rho, min=low, max=high))


def ppo_clip(logp: Array, old_logp: Array, advantage: Array, eps_low: float = 0.2, eps_high: float = 0.2) -> Array:
    """`max(-A rho, -A clip(rho, 1 - eps_low, 1 + eps_high))`. J. Schulman et al., 2017; clip-higher: DAPO, 2025."""
    fits = 0 <= eps_low <= 1 and eps_high >= 0
    require(fits, f"eps_low must be in [0, 1] and eps_high 0 or more, but are {eps_low} and {eps_high}.")
    return _clipped(logp, old_logp, advantage, 1 - eps_low, 1 + eps_high)


def dual_clip(
    logp: Array, old_logp: Array, advantage: Array, eps_low: float = 0.2, eps_high: float = 0.2, c: float = 3.0
) -> Array:
    """`ppo_clip`, but at most `-A c` where A < 0. D. Ye et al., "Mastering Complex Control in MOBA Games", 2020."""
    require(c > 1, f"c bounds the ratio from above, so it must be above 1, but is {c}.")
    xp, plain = namespace(logp), ppo_clip(logp, old_logp, advantage, eps_low, eps_high)
    return xp.where(advantage < 0, xp.minimum(plain, -advantage * c), plain)


def loop_clip(logp: Array, old_logp: Array, advantage: Array, eps: float = 0.1) -> Array:
    """PPO's with the range `[1 / (1 + eps), 1 + eps]`, which is symmetric in logarithms. LOOP (arXiv 2502.01600)."""
    require(eps >= 0, f"eps must be 0 or more, but is {eps}.")
    return _clipped(logp, old_logp, advantage, 1 / (1 + eps), 1 + eps)


def reinforce(logp: Array, old_logp: Array, advantage: Array) -> Array:
    """`-A logp`."""
    return -advantage * logp


def cispo(logp: Array, old_logp: Array, advantage: Array, eps_low: float = 0.2, eps_high: float = 0.2) -> Array:
    """`-stop(clip(rho)) A logp`: clipped tokens keep their gradient. "MiniMax-M1", 2025."""
    xp = namespace(logp)
    weight = stop(xp.clip(ratio(logp, old_logp), min=1 - eps_low, max=1 + eps_high))
    return -weight * advantage * logp


def nft(
    logp: Array,
    old_logp: Array,
    right: Array,
    rate: Array,
    eps: float = 1.0,
    negative: float = 1.0,
    weight: str = "1-r",
) -> Array:
    """Negative-aware fine-tuning: `-w (r log R + (1 - r) negative log maxv((1 - q R) / (1 - q), eps))`.

    R is the ratio with its logarithm clamped at 10 from above, q the success rate, and maxv a maximum that keeps the
    gradient of its first argument. H. Chen et al., "Bridging Supervised Learning and Reinforcement Learning in Math
    Reasoning" (arXiv 2505.18116).

    Args:
        right: [B], 1 for right answers and 0 for wrong ones.
        rate: [B], the success rate of the prompt over all its answers, clamped to [0.02, 0.98].
        weight: of a prompt: `1-r`, `sqrt` for `sqrt((1 - q) / q)`, or `none`.
    """
    require(weight in ("1-r", "sqrt", "none"), f"weight must be 1-r, sqrt or none, but is {weight!r}.")
    xp = namespace(logp)
    q = xp.clip(rate, min=NFT_RATES[0], max=NFT_RATES[1])[:, None]
    w = 1 - q if weight == "1-r" else xp.sqrt((1 - q) / q) if weight == "sqrt" else xp.ones_like(q)
    log_ratio = xp.clip(logp - old_logp, max=NFT_CLAMP)
    x = (1 - q * xp.exp(log_ratio)) / (1 - q)
    held = xp.clip(stop(x), min=eps)
    wrong = xp.log(held) + (x - stop(x)) / held  # in value the first term, in gradient the second
    return -w * (right[:, None] * log_ratio + (1 - right[:, None]) * negative * wrong)


# by name; each takes (logp, old_logp, advantage)
LOSSES = {
    "ppo-clip": ppo_clip,
    "dual-clip": dual_clip,
    "loop-clip": loop_clip,
    "reinforce": reinforce,
    "cispo": cispo,
}
