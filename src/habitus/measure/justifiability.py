"""How often a judge finds the decisions of a policy better justified than those of another."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from habitus.core.errors import ConfigError
from habitus.core.protocols import Policy
from habitus.data.dataset import Dataset
from habitus.envs.worlds.debate import Debate
from habitus.methods.offline.debate_reward import Justified, actions_of, judged


def share_justified(
    policy: Policy, baseline: Policy, log: Dataset, game: Debate, speaker: Policy | None, seed: int = 0
) -> float:
    """JSTF: of the rows in which both act differently, the share in which the judge prefers `policy` after a debate.

    Args:
        policy, baseline: in canonical spaces.
        log: states to decide in; held out, if the figure is to mean anything.
        speaker: who argues, on both sides; with None the judge sees the whole state.
        seed: of the draws of who starts.

    Returns:
        in [0, 1]; NaN if both always do the same.
    """
    features = jnp.asarray(log.canonical().obs)
    ours, theirs = actions_of(policy, features), actions_of(baseline, features)
    differ = np.asarray(ours != theirs)
    won = judged(game, speaker, features, ours, theirs, jax.random.key(seed)) > 0
    return float(won[differ].mean()) if differ.any() else float("nan")


def justifiability(run: Justified, log: Dataset, seed: int = 0) -> Float[np.ndarray, "seeds"]:
    """`share_justified` of each seed of a run of `debate-reward`, against its baseline.

    Raises:
        ConfigError: if the run is of weight 0, which is the baseline itself.
    """
    if run.debate is None or run.baseline is None:
        raise ConfigError("a run of weight 0 is its own baseline, and has no debate to be judged by; raise weight.")
    pairs = zip(run.policies, run.baseline.policies, run.speakers, strict=True)
    return np.array([share_justified(p.policy, b.policy, log, run.debate, voice, seed) for p, b, voice in pairs])
