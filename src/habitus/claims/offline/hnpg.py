"""HNPG on combination locks: does a log make on-policy gradients succeed where neither does alone?

The log is of a behaviour that opens the lock four times of ten. On-policy gradients alone find the end
once in 10^H episodes. A sampled clone does as well as the behaviour; a clone that takes its likeliest
action, and fitted Q on the log, may open it; soft actor-critic with half of each batch from the log is
the off-policy way of using both. Every arm has the same log, and every arm that acts the same steps.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, PRNGKeyArray

from habitus.claims.harness import Claim, Measure, Outcome, above, fact
from habitus.core.policy import Deployed
from habitus.core.protocols import Env, Policy
from habitus.data.behaviours import PickLock
from habitus.data.dataset import Dataset
from habitus.envs.registry import make
from habitus.envs.worlds.combination_lock import ARMS, SHARPNESS
from habitus.measure.statistics import paired_difference
from habitus.methods.offline.bc import BC
from habitus.methods.offline.hnpg import HNPG
from habitus.methods.offline.td3bc import TD3BC
from habitus.methods.online.sac import SAC
from habitus.methods.online.trpo_stepwise import StepwiseTRPO
from habitus.nets.policies import Mode, Normalised, Sampling
from habitus.train.collect import run_episodes
from habitus.train.logs import record_log
from habitus.train.loop import learn
from habitus.train.run import Run

EVALUATION_SEED = 1_000_000
POINTS = 20  # of each curve


@dataclasses.dataclass(frozen=True)
class Budget:
    """Sizes of the experiment."""

    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    lengths: tuple[int, ...] = (5, 10)
    rounds: tuple[int, ...] = (100, 200)
    round_steps: int = 1_000
    log_episodes: int = 5_000
    offline_updates: int = 5_000
    updates_per_step: float = 0.125
    num_envs: int = 8
    warmup: int = 1_000
    episodes: int = 100
    hidden: tuple[int, ...] = (64, 64)
    value_epochs: int = 30


FULL = Budget()
SMOKE = Budget(
    seeds=(10, 11), lengths=(2,), rounds=(2,), round_steps=20, log_episodes=20, offline_updates=10, warmup=16,
    episodes=4, hidden=(8, 8), value_epochs=2,
)  # fmt: skip


class Pull(Policy):
    """Pulls, surely, the arm that a policy over arms chooses."""

    arms: Policy

    def init(self) -> Any:
        return self.arms.init()

    def __call__(self, obs: Any, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        arm, carry = self.arms(obs, carry, key)
        return SHARPNESS * (jnp.arange(ARMS) == arm), carry


def run(budget: Budget) -> Outcome:
    """Every arm on every length of lock; each seed has a combination of its own."""
    measures: list[Measure] = []
    figures: dict[str, Any] = {}
    for length, rounds in zip(budget.lengths, budget.rounds, strict=True):
        found = [_one_lock(length, rounds, seed, budget) for seed in budget.seeds]
        curves = {arm: np.stack([f["curves"][arm] for f in found]) for arm in found[0]["curves"]}
        finals = {arm: np.array([f["finals"][arm] for f in found]) for arm in found[0]["finals"]}
        figures[f"H = {length}"] = {
            "curves": {arm: x.tolist() for arm, x in curves.items()},
            "final": {arm: x.tolist() for arm, x in finals.items()},
            "behaviour": [f["behaviour"] for f in found],
            "largest KL": [f["largest KL"] for f in found],
        }
        measures += _conditions(length, curves, finals)
    notes = [
        "HNPG and TRPO sample their actions, also where they are measured; the returns are those of the episodes of "
        "the last tenth of a run. SAC samples too. The other arms are evaluated on "
        f"{budget.episodes} episodes.",
        "HNPG and TRPO have the authors' networks and settings; SAC and the offline arms have two layers of 64 and "
        "their defaults. SAC makes more updates of its critic than HNPG of each of its own.",
        "SAC and TD3+BC act in [0, 1], as squashed policies need bounds; the best return there is .9996^H.",
        "The reward is sparse and paid at the end; SAC discounts by .99 as by default, which changes no order of arms.",
    ]
    return Outcome(measures, notes, figures)


def _one_lock(length: int, rounds: int, seed: int, budget: Budget) -> dict[str, Any]:
    """All arms of one seed: their curves over the steps, and what they earn at the end."""
    free, bounded = (make("combination-lock", length=length, combination=seed, bounded=b) for b in (False, True))
    logs = [_log(world, budget, seed) for world in (free, bounded)]
    envs, steps = budget.round_steps // length, rounds * budget.round_steps
    stepwise: dict[str, Any] = {"num_envs": envs, "value_epochs": budget.value_epochs}
    common: dict[str, Any] = {"seeds": [seed], "points": POINTS}
    hnpg = learn(HNPG(**stepwise), env=free, data=logs[0], steps=steps, **common)
    trpo = learn(StepwiseTRPO(**stepwise), env=free, steps=steps, **common)
    options = {"num_envs": budget.num_envs, "warmup": budget.warmup, "capacity": steps,
               "updates_per_step": budget.updates_per_step}  # fmt: skip
    sac = learn(
        SAC(hidden=budget.hidden), env=bounded, data=logs[1], mix=0.5, steps=steps, source_options=options, **common
    )
    curves = {"HNPG": hnpg, "TRPO": trpo, "SAC with the log": sac}
    finals = {name: _last_tenth(done) for name, done in curves.items()}
    cloned = learn(BC(hidden=budget.hidden), _arms(logs[0]), budget.offline_updates, **common)
    state = cloned.states[0]
    fitted = learn(TD3BC(hidden=budget.hidden), logs[1], budget.offline_updates, **common)
    for name, kind in (("sampled", Sampling), ("likeliest", Mode)):
        clone = Deployed.of(Normalised(kind(state.actor), state.normaliser), cloned.spec)
        finals[f"clone, {name}"] = _evaluated(Pull(clone), free, budget)
    greedy = Deployed.of(fitted.learner.policy(fitted.states[0]), fitted.spec)
    finals["fitted Q on the log"] = _evaluated(greedy, bounded, budget)
    return {
        "curves": {name: _curve(done) for name, done in curves.items()},
        "finals": finals,
        "behaviour": float(logs[0].returns.mean()),
        "largest KL": float(hnpg.history["largest_kl"].max()),
    }


def _log(world: Any, budget: Budget, seed: int) -> Dataset:
    assert isinstance(world, Env)
    return record_log(PickLock.of(world.env), world, budget.log_episodes, seed=seed)  # type: ignore[attr-defined]


def _curve(done: Run) -> np.ndarray:
    """Mean return of the training episodes in each part of a run; the last known one where none ended."""
    values = done.history["episode/return"][:, 0]
    known = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(len(values)), 0))
    return np.nan_to_num(values[known])


def _last_tenth(done: Run) -> float:
    steps = done.history["step"]
    return float(_curve(done)[steps > 0.9 * steps[-1]].mean())


def _arms(log: Dataset) -> Dataset:
    """The log with the arm that each action means, for clones of the behaviour, which is no Gaussian."""
    arms = np.asarray(log.action).argmax(1).astype(np.int32)
    return dataclasses.replace(log, action=arms, action_space=spaces.Discrete(ARMS))


def _evaluated(policy: Policy, world: Any, budget: Budget) -> float:
    return float(run_episodes(policy, world, budget.episodes, EVALUATION_SEED).returns.mean())


def _conditions(length: int, curves: dict[str, np.ndarray], finals: dict[str, np.ndarray]) -> list[Measure]:
    """The conditions on one length of lock."""
    ours, where = finals["HNPG"], f"H = {length}"
    wanted = int(np.ceil(0.8 * len(ours)))
    solved = int((ours >= 0.85).sum())
    out = [
        fact(f"{where}, seeds in which HNPG earns .85", solved, f"at least {wanted} of {len(ours)}", solved >= wanted)
    ]
    for other in ("TRPO", "clone, sampled", "fitted Q on the log"):
        gap = paired_difference(ours, finals[other])
        out.append(above(f"{where}, HNPG - {other}", float(ours.mean()), float(finals[other].mean()), gap))
    area, theirs = curves["HNPG"].mean(1), curves["SAC with the log"].mean(1)
    gap = paired_difference(area, theirs)
    out.append(
        above(f"{where}, area under the curve, HNPG - SAC with the log", float(area.mean()), float(theirs.mean()), gap)
    )
    return out


CLAIM = Claim(
    statement="On combination locks with rich observations, policy gradients on fresh roll-outs and a log open the "
    "lock, where on-policy gradients alone do not, and beat off-policy learning from the same log and steps.",
    run=run,
    full=FULL,
    smoke=SMOKE,
    seeds=FULL.seeds,
)
