"""Divergence from a reference policy, by its tokens: estimators over `d = logp - ref_logp`, [B, R].

In expectation under the policy k1 and k3 are KL(policy || reference). Their gradients differ: of k1 in the reward, or
of k2 in the loss, it is that of KL(policy || reference); of k1 in the loss 0; of k3 in the loss that of
KL(reference || policy). J. Schulman, "Approximating KL Divergence", 2020.
"""

from __future__ import annotations

from habitus.core.domains import require
from habitus.language.objectives.arrays import Array, namespace, real, stop

CLAMP = 20.0  # of d
K3_CLAMP = 10.0  # of k3


def k1(logp: Array, ref_logp: Array) -> Array:
    """`d`."""
    return logp - ref_logp


def absolute(logp: Array, ref_logp: Array) -> Array:
    """`|d|`."""
    return namespace(logp).abs(logp - ref_logp)


def k2(logp: Array, ref_logp: Array) -> Array:
    """`d^2 / 2`."""
    return (logp - ref_logp) ** 2 / 2


def k3(logp: Array, ref_logp: Array) -> Array:
    """`exp(-d) + d - 1`, which is 0 or more; d is clamped to +-20, the whole to +-10."""
    xp = namespace(logp)
    d = xp.clip(logp - ref_logp, min=-CLAMP, max=CLAMP)
    return xp.clip(xp.exp(-d) + d - 1, min=-K3_CLAMP, max=K3_CLAMP)


def k3_plus(logp: Array, ref_logp: Array) -> Array:
    """The value of k3 with the gradient of k2."""
    square = k2(logp, ref_logp)
    return stop(k3(logp, ref_logp)) + square - stop(square)


def in_reward(token_rewards: Array, logp: Array, ref_logp: Array, beta: Array | float, mask: Array) -> Array:
    """[B, R]: `r_t - beta k1`, on the tokens of the mask; no gradient."""
    return token_rewards - beta * stop(k1(logp, ref_logp)) * real(mask, token_rewards)


def adapted(beta: Array | float, kl: Array, target: float, tokens: Array | float, horizon: float) -> Array:
    """The next beta: `beta (1 + clip(kl / target - 1, -0.2, 0.2) n / horizon)`. D. Ziegler et al., 2019.

    Args:
        kl: the mean that was measured.
        tokens: n, how many samples it was measured over, in the unit of the horizon.
    """
    require(target > 0 and horizon > 0, f"target and horizon must be above 0, but are {target} and {horizon}.")
    error = namespace(kl).clip(kl / target - 1, min=-0.2, max=0.2)
    return beta * (1 + error * tokens / horizon)


# by name; each takes (logp, ref_logp)
ESTIMATORS = {"k1": k1, "abs": absolute, "k2": k2, "k3": k3, "k3+": k3_plus}
