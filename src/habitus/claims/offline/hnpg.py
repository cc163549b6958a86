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
from habitus.core.protocols import Policy
from habitus.data.behaviours import PickLock
from habitus.data.dataset import Dataset
from habitus.envs.registry import make
from habitus.envs.worlds.combination_lock import ARMS, SHARPNESS, CombinationLock
from habitus.envs.wrappers import TimeLimit
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
    """Every arm on every length of lock."""
    measures: list[Measure] = []
    figures: dict[str, Any] = {}
    for length, rounds in zip(budget.lengths, budget.rounds, strict=True):
        free, bounded = (make("combination-lock", length=length, combination=2, bounded=b) for b in (False, True))
        logs = _log(free, budget), _log(bounded, budget)
        acting = _acting(free, bounded, logs, rounds, length, budget)
        curves = {arm: _curve(done) for arm, done in acting.items()}
        finals = {arm: _last_tenth(done) for arm, done in acting.items()} | _offline(free, bounded, logs, budget)
        figures[f"H = {length}"] = {
            "curves": {arm: x.tolist() for arm, x in curves.items()},
            "final": {arm: x.tolist() for arm, x in finals.items()},
            "behaviour": float(logs[0].returns.mean()),
            "largest KL": float(acting["HNPG"].history["largest_kl"].max()),
        }
        measures += _conditions(length, curves, finals)
    notes = [
        "HNPG and TRPO sample their actions, also where they are measured; the returns are those of the episodes of "
        f"the last tenth of a run. SAC samples too. The other arms are evaluated on {budget.episodes} episodes.",
        "HNPG and TRPO have the authors' networks and settings; SAC and the offline arms have two layers of 64 and "
        "their defaults. SAC makes more updates of its critic than HNPG of each of its own.",
        "SAC and TD3+BC act in [0, 1], as squashed policies need bounds; the best return there is .9996^H.",
        "All seeds share the lock and the log of each length; which arms are right makes no difference to any arm.",
    ]
    return Outcome(measures, notes, figures)


def _acting(
    free: Any, bounded: Any, logs: tuple[Dataset, Dataset], rounds: int, length: int, budget: Budget
) -> dict[str, Run]:
    """The arms that act, with the same number of steps each."""
    envs, steps = budget.round_steps // length, rounds * budget.round_steps
    stepwise: dict[str, Any] = {"num_envs": envs, "value_epochs": budget.value_epochs}
    common: dict[str, Any] = {"seeds": budget.seeds, "points": POINTS, "steps": steps}
    options = {"num_envs": budget.num_envs, "warmup": budget.warmup, "capacity": steps,
               "updates_per_step": budget.updates_per_step}  # fmt: skip
    sac = SAC(hidden=budget.hidden)
    return {
        "HNPG": learn(HNPG(**stepwise), env=free, data=logs[0], **common),
        "TRPO": learn(StepwiseTRPO(**stepwise), env=free, **common),
        "SAC with the log": learn(sac, env=bounded, data=logs[1], mix=0.5, source_options=options, **common),
    }


def _offline(free: Any, bounded: Any, logs: tuple[Dataset, Dataset], budget: Budget) -> dict[str, np.ndarray]:
    """What the arms that only have the log earn, a seed."""
    common: dict[str, Any] = {"seeds": budget.seeds, "points": 1, "steps": budget.offline_updates}
    cloned = learn(BC(hidden=budget.hidden), _arms(logs[0]), **common)
    fitted = learn(TD3BC(hidden=budget.hidden), logs[1], **common)

    def clone(state: Any, kind: Any) -> Policy:
        return Pull(Deployed.of(Normalised(kind(state.actor), state.normaliser), cloned.spec))

    def earned(policies: list[Policy], world: Any) -> np.ndarray:
        seen = [run_episodes(policy, world, budget.episodes, EVALUATION_SEED).returns.mean() for policy in policies]
        return np.array(seen)

    greedy: list[Policy] = list(fitted.policies)
    return {
        "clone, sampled": earned([clone(s, Sampling) for s in cloned.states], free),
        "clone, likeliest": earned([clone(s, Mode) for s in cloned.states], free),
        "fitted Q on the log": earned(greedy, bounded),
    }


def _log(world: Any, budget: Budget) -> Dataset:
    assert isinstance(world, TimeLimit) and isinstance(world.env, CombinationLock)
    return record_log(PickLock.of(world.env), world, budget.log_episodes, seed=1)


def _curve(done: Run) -> np.ndarray:
    """Mean return of the training episodes in each part of a run: [seeds, parts]. The last known where none ended."""
    values = done.history["episode/return"].T
    known = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(values.shape[1]), 0), 1)
    return np.nan_to_num(np.take_along_axis(values, known, 1))


def _last_tenth(done: Run) -> np.ndarray:
    steps = done.history["step"]
    return np.asarray(_curve(done)[:, steps > 0.9 * steps[-1]].mean(1))


def _arms(log: Dataset) -> Dataset:
    """The log with the arm that each action means, for clones of the behaviour, which is no Gaussian."""
    arms = np.asarray(log.action).argmax(1).astype(np.int32)
    return dataclasses.replace(log, action=arms, action_space=spaces.Discrete(ARMS))


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
