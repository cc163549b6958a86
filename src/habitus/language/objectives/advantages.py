"""How much better a response, or each of its tokens, did than expected.

Rewards are [B]. Where one is NaN, as no verifier could score it, the sample is left out: statistics are of the others,
its advantage is 0, and `scored` tells which to leave out of the loss. A group of one has mean 0 and deviation 1, so its
advantage is its reward. Deviations have Bessel's factor, and `EPS` is added to them (TRL adds 1e-4, verl 1e-6).
"""

from __future__ import annotations

from habitus.language.objectives.arrays import Array, members, namespace, real, reverse_scan, whiten

EPS = 1e-6


def scored(reward: Array) -> Array:
    """[B] bool: False where the reward is NaN."""
    return reward == reward


def _clean(reward: Array) -> tuple[Array, Array, Array]:
    xp, kept = namespace(reward), scored(reward)
    return xp.where(kept, reward, xp.zeros_like(reward)), kept, real(kept, reward)


def group_size(reward: Array, group_id: Array) -> Array:
    """[B]: how many scored responses the group of each has."""
    value, kept, _ = _clean(reward)
    return namespace(value).sum(members(group_id, value, kept), axis=1)


def varied(reward: Array, group_id: Array) -> Array:
    """[B] bool: whether the scored rewards in the group of each differ. Dynamic sampling keeps these groups."""
    value, kept, _ = _clean(reward)
    xp, same = namespace(value), members(group_id, value, kept) > 0
    wide = xp.broadcast_to(value[None, :], same.shape)
    inf = xp.full_like(wide, float("inf"))
    return xp.max(xp.where(same, wide, -inf), axis=1) > xp.min(xp.where(same, wide, inf), axis=1)


def success_rate(reward: Array, group_id: Array) -> Array:
    """[B]: mean of the scored rewards in the group of each, itself included; 0 where none is scored."""
    value, kept, _ = _clean(reward)
    xp, same = namespace(value), members(group_id, value, kept)
    return xp.sum(same * value[None, :], axis=1) / xp.clip(xp.sum(same, axis=1), min=1)


def centred(reward: Array, group_id: Array) -> Array:
    """[B]: reward minus the mean of its group. Exactly 0 where all are equal, whatever rounding does to the mean."""
    value, _, weight = _clean(reward)
    xp, alone = namespace(value), group_size(reward, group_id) <= 1
    rest = xp.where(varied(reward, group_id), value - success_rate(reward, group_id), xp.zeros_like(value))
    return xp.where(alone, value, rest) * weight


def group_std(reward: Array, group_id: Array) -> Array:
    """[B]: unbiased deviation in the group of each; 1 in a group of one."""
    value, kept, _ = _clean(reward)
    xp, same = namespace(value), members(group_id, value, kept)
    count = xp.sum(same, axis=1)
    square = xp.sum(same * (value[None, :] - success_rate(reward, group_id)[:, None]) ** 2, axis=1)
    return xp.where(count > 1, xp.sqrt(square / xp.clip(count - 1, min=1)), xp.ones_like(square))


def batch_std(x: Array, kept: Array) -> Array:
    """Unbiased deviation of those kept; 1 if they are fewer than two."""
    xp, weight = namespace(x), real(kept, x)
    count = xp.sum(weight)
    mean = xp.sum(x * weight) / xp.clip(count, min=1)
    std = xp.sqrt(xp.sum(weight * (x - mean) ** 2) / xp.clip(count - 1, min=1))
    return xp.where(count > 1, std, xp.ones_like(std))


def grpo(reward: Array, group_id: Array, eps: float = EPS) -> Array:
    """[B]: `(r - mean_group) / (std_group + eps)`. Z. Shao et al., "DeepSeekMath", 2024."""
    return centred(reward, group_id) / (group_std(reward, group_id) + eps)


def dr_grpo(reward: Array, group_id: Array) -> Array:
    """[B]: `r - mean_group`. Z. Liu et al., "Understanding R1-Zero-Like Training", 2025."""
    return centred(reward, group_id)


def rloo(reward: Array, group_id: Array) -> Array:
    """[B]: `r` minus the mean of the others in its group, `K / (K - 1) (r - mean)`. A. Ahmadian et al., 2024."""
    xp, count = namespace(reward), group_size(reward, group_id)
    return centred(reward, group_id) * xp.where(count > 1, count / xp.clip(count - 1, min=1), xp.ones_like(count))


def batch(reward: Array, group_id: Array | None = None, eps: float = EPS) -> Array:
    """[B]: `(r - mean_batch) / (std_batch + eps)`; groups play no part."""
    everyone = namespace(reward).zeros_like(reward)
    return centred(reward, everyone) / (batch_std(*_clean(reward)[:2]) + eps)


def group_mean_batch_std(reward: Array, group_id: Array, of_centred: bool = False, eps: float = EPS) -> Array:
    """[B]: `(r - mean_group) / (std_batch + eps)`. Lite PPO (arXiv 2508.08221).

    Args:
        of_centred: the deviation of the centred rewards rather than of the rewards, as the paper's framework has it.
    """
    value, kept, _ = _clean(reward)
    apart = centred(reward, group_id)
    return apart / (batch_std(apart if of_centred else value, kept) + eps)


def rewards_to_go(token_rewards: Array, gamma: float = 1.0) -> Array:
    """[B, R]: `G_t = r_t + gamma G_{t+1}`."""
    xp = namespace(token_rewards)

    def step(later: Array, at: tuple[Array]) -> tuple[Array, Array]:
        now = at[0] + gamma * later
        return now, now

    return reverse_scan(step, xp.zeros_like(token_rewards[:, 0]), (token_rewards,))


def reinforce_pp(token_rewards: Array, mask: Array, gamma: float = 1.0) -> Array:
    """[B, R]: rewards to go, whitened over the tokens of the batch. J. Hu, "REINFORCE++", 2025."""
    return whiten(rewards_to_go(token_rewards, gamma), mask)


def reinforce_pp_baseline(reward: Array, group_id: Array, mask: Array) -> Array:
    """[B, R]: `r - mean_group` on each token, whitened over the tokens of the batch."""
    kept = real(mask, reward) * real(scored(reward), reward)[:, None]
    return whiten(per_token(centred(reward, group_id), mask), kept)


def remax(token_rewards: Array, mask: Array, greedy_reward: Array) -> Array:
    """[B, R]: reward to go minus the reward of the greedy response to the same prompt. Z. Li et al., 2024.

    Args:
        greedy_reward: [B].
    """
    return (rewards_to_go(token_rewards) - greedy_reward[:, None]) * real(mask, token_rewards)


def gae(
    token_rewards: Array,
    values: Array,
    mask: Array,
    gamma: float = 1.0,
    lam: float = 0.95,
    whitened: bool = True,
) -> tuple[Array, Array]:
    """Generalised advantages [B, R], and returns `A + V` (of the advantages before whitening).

    `delta_t = r_t + gamma V' - V_t` and `A_t = delta_t + gamma lam A'`, with V' and A' those of the next token that the
    policy wrote: tokens with mask 0 are stepped over, and a reward on one of them does not count.
    J. Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation", 2016.
    """
    weight = real(mask, token_rewards)

    def step(later: tuple[Array, Array], at: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        value_next, advantage_next = later
        reward, value, m = at
        advantage = reward + gamma * value_next - value + gamma * lam * advantage_next
        advantage = m * advantage + (1 - m) * advantage_next
        return (m * value + (1 - m) * value_next, advantage), advantage

    zeros = namespace(values).zeros_like(values[:, 0])
    found = reverse_scan(step, (zeros, zeros), (token_rewards, values, weight)) * weight
    return (whiten(found, mask) if whitened else found), (found + values) * weight


def per_token(advantage: Array, mask: Array) -> Array:
    """[B, R]: the advantage of a response on each of its tokens."""
    return advantage[:, None] * real(mask, advantage)


# by name; each takes (reward, group_id)
ADVANTAGES = {
    "grpo": grpo,
    "dr-grpo": dr_grpo,
    "rloo": rloo,
    "batch": batch,
    "group-mean-batch-std": group_mean_batch_std,
}
