"""From losses of tokens [B, R] to one number. A mask may hold weights; what it holds 0 for does not count.

In gradient accumulation the denominators are those of the whole optimiser batch, so give `tokens` or `sequences`: then
the sum over microbatches is the whole batch's, to rounding.
"""

from __future__ import annotations

from habitus.core.domains import require
from habitus.language.objectives.arrays import Array, namespace, real


def _over(x: Array, count: Array | float) -> Array:
    """`x / count`, 0 where nothing counts."""
    xp = namespace(x)
    count = count if hasattr(count, "dtype") else xp.ones_like(x) * count
    return x / xp.where(count > 0, count, xp.ones_like(count))


def _sums(losses: Array, mask: Array) -> Array:
    """[B]; a loss where the mask is 0 may be anything, NaN included."""
    xp, weight = namespace(losses), real(mask, losses)
    return xp.sum(xp.where(weight != 0, losses, xp.zeros_like(losses)) * weight, axis=1)


def _filled(losses: Array, mask: Array) -> Array:
    """How many sequences have a token that counts."""
    xp = namespace(losses)
    return xp.sum(real(xp.any(mask != 0, axis=1), losses))


def token_mean(losses: Array, mask: Array, tokens: Array | float | None = None) -> Array:
    """`sum l m / sum m`: each token counts the same.

    Args:
        tokens: `sum m` of the whole optimiser batch; None for that of this one.
    """
    xp = namespace(losses)
    return _over(xp.sum(_sums(losses, mask)), xp.sum(real(mask, losses)) if tokens is None else tokens)


def seq_mean_token_sum(losses: Array, mask: Array, sequences: Array | float | None = None) -> Array:
    """Sums over tokens, then the mean over sequences that are not empty.

    Args:
        sequences: how many the whole optimiser batch has; None for those of this one.
    """
    xp = namespace(losses)
    return _over(xp.sum(_sums(losses, mask)), _filled(losses, mask) if sequences is None else sequences)


def seq_mean_token_mean(losses: Array, mask: Array, sequences: Array | float | None = None) -> Array:
    """Means over tokens, then the mean over sequences that are not empty. `sequences` as in `seq_mean_token_sum`."""
    xp = namespace(losses)
    means = _over(_sums(losses, mask), xp.sum(real(mask, losses), axis=1))
    return _over(xp.sum(means), _filled(losses, mask) if sequences is None else sequences)


def seq_mean_token_sum_norm(
    losses: Array, mask: Array, max_length: int | None = None, sequences: Array | float | None = None
) -> Array:
    """`sum l m / (B max_length)`: a constant, so that length is neither rewarded nor punished. Dr. GRPO.

    Args:
        max_length: None for R.
        sequences: B of the whole optimiser batch; None for that of this one.
    """
    most = losses.shape[1] if max_length is None else max_length
    require(most >= 1, f"max_length must be 1 or more, but is {most}.")
    return namespace(losses).sum(_sums(losses, mask)) / ((losses.shape[0] if sequences is None else sequences) * most)


# by name; each takes (losses, mask)
AGGREGATIONS = {
    "token-mean": token_mean,
    "seq-mean-token-sum": seq_mean_token_sum,
    "seq-mean-token-mean": seq_mean_token_mean,
    "seq-mean-token-sum-norm": seq_mean_token_sum_norm,
}
