"""PRDC against TD3+BC: does staying near the data set beat staying near the logged action?

Two parts. The quick one asks, on pendulum logs, whether PRDC depends less on its weight alpha than
TD3+BC does, with the same grid for both. The larger one compares fixed settings on locomotion and
navigation logs, with plain TD3 and PRDC without the state (beta = 0) as controls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from habitus.claims.arms import final_scores
from habitus.claims.harness import Claim, Measure, Outcome, above, any_of, fact, not_below
from habitus.data.dataset import Dataset
from habitus.data.scores import normalised_score
from habitus.envs.registry import make
from habitus.measure.statistics import paired_difference
from habitus.methods.offline.prdc import PRDC
from habitus.methods.offline.td3bc import TD3BC
from habitus.train.collect import run_episodes
from habitus.train.loop import learn
from habitus.train.run import Run
from habitus.train.standard import make_offline, split_name

PLAIN = 1e6  # alpha so large that the cloning term vanishes: TD3


@dataclasses.dataclass(frozen=True)
class Budget:
    """Sizes of the experiment."""

    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    alphas: tuple[float, ...] = (2.5, 10.0, 40.0)
    quick_steps: int = 6_000
    quick_episodes: int = 20
    logs: tuple[tuple[str, str], ...] = (("hopper", "medium-replay"), ("hopper", "medium"), ("pointmaze", "medium"))
    rows: int = 50_000
    steps: int = 30_000
    episodes: int = 10
    hidden: tuple[int, ...] = (128, 128)


FULL = Budget()
SMOKE = Budget(
    seeds=(10, 11), alphas=(2.5,), quick_steps=40, quick_episodes=2, logs=(("pointmaze", "medium"),),
    rows=2_000, steps=40, episodes=2, hidden=(16, 16),
)  # fmt: skip


def run(budget: Budget) -> Outcome:
    """Both parts."""
    quick, quick_figures = _quick(budget)
    large, large_figures = _large(budget)
    notes = [
        "Plain TD3 is TD3+BC with alpha = 1e6: the critic's term is divided by its size, so the cloning term vanishes.",
        "Pendulum rewards are divided by 10, discount .97, networks 64-64, batch 128, learning rate 1e-3.",
        "Logs and reference returns are made on this machine, so scores are not comparable with D4RL's.",
    ]
    figures = {"pendulum returns": quick_figures, "normalised scores": large_figures, "logs": summaries(large_figures)}
    return Outcome([*quick, *large], notes, figures)


def summaries(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """Each log with its quality and the mean score of each method at its default, for advice on similar logs."""
    arms = {"prdc": "PRDC", "td3bc": "TD3+BC 2.5"}
    out = []
    for name, rows in scores.items():
        log = make_offline(*split_name(name))
        quality = float(normalised_score(log, log.meta["behaviour_return"])) / 100
        means = {slug: float(np.mean(rows[arm])) for slug, arm in arms.items()}
        out.append({"log": name, "actions": "continuous", "TQ": quality, "SACo": None, "scores": means})
    return out


def _quick(budget: Budget) -> tuple[list[Measure], dict[str, Any]]:
    """Pendulum logs; the same grid of alpha for both methods."""
    common: dict[str, Any] = dict(discount=0.97, learning_rate=1e-3, hidden=(64, 64), batch_size=128)
    arms: dict[str, TD3BC] = {"TD3": TD3BC(alpha=PLAIN, **common)}
    for alpha in budget.alphas:
        arms[f"TD3+BC {alpha:g}"] = TD3BC(alpha=alpha, **common)
        arms[f"PRDC {alpha:g}"] = PRDC(alpha=alpha, **common)
    found = {split: _final_returns(arms, split, budget) for split in ("replay", "narrow")}

    def grid(method: str) -> list[np.ndarray]:
        return [np.mean([found[split][f"{method} {a:g}"] for a in budget.alphas], 0) for split in found]

    def best(method: str, split: str) -> np.ndarray:
        return max((found[split][f"{method} {a:g}"] for a in budget.alphas), key=lambda x: float(x.mean()))

    ours, theirs = grid("PRDC"), grid("TD3+BC")
    gap = paired_difference(np.mean(ours, 0), np.mean(theirs, 0))
    measures = [above("pendulum, mean over the grid of alpha and both logs", _mean(ours), _mean(theirs), gap)]
    for split in found:
        a, b = _mean(best("PRDC", split)), _mean(best("TD3+BC", split))
        condition = "best alpha of PRDC at most 10 below that of TD3+BC"
        measures.append(fact(f"pendulum {split}, best alpha", a, condition, a >= b - 10, b))
    a, b = float(best("PRDC", "narrow").min()), float(found["narrow"]["TD3"].min())
    measures.append(fact("pendulum narrow, worst seed", a, "worst seed of PRDC above worst seed of TD3", a > b, b))
    return measures, {split: {arm: x.tolist() for arm, x in rows.items()} for split, rows in found.items()}


def _final_returns(arms: Mapping[str, TD3BC], split: str, budget: Budget) -> dict[str, np.ndarray]:
    """Mean return of the final policy of each seed."""
    log = make_offline("pendulum", split)
    log = dataclasses.replace(log, reward=0.1 * np.asarray(log.reward))
    out = {}
    for name, learner in arms.items():
        done = learn(
            learner,
            log,
            budget.quick_steps,
            seeds=budget.seeds,
            evaluations=1,
            episodes=budget.quick_episodes,
            points=5,
        )
        out[name] = done.returns[-1]
    return out


def _large(budget: Budget) -> tuple[list[Measure], dict[str, Any]]:
    """Locomotion and navigation logs; settings fixed."""
    arms: dict[str, TD3BC] = {
        "PRDC": PRDC(hidden=budget.hidden),
        "PRDC beta 0": PRDC(beta=0.0, hidden=budget.hidden),
        "TD3+BC 2.5": TD3BC(alpha=2.5, hidden=budget.hidden),
        "TD3+BC 10": TD3BC(alpha=10.0, hidden=budget.hidden),
        "TD3": TD3BC(alpha=PLAIN, hidden=budget.hidden),
    }
    better, plain, sane, figures = [], [], [], {}
    for task, split in budget.logs:
        name, log = f"{task}-{split}", make_offline(task, split, size=budget.rows)
        scores, excess = _scores(arms, log, budget)
        figures[name] = {arm: x.tolist() for arm, x in scores.items()} | {"over-estimation": excess["gap"]}
        base = max((scores["TD3+BC 2.5"], scores["TD3+BC 10"]), key=lambda x: float(x.mean()))
        gap = paired_difference(scores["PRDC"], base)
        better.append(above(f"{name}, PRDC - better TD3+BC", _mean(scores["PRDC"]), _mean(base), gap))
        sane.append(not_below(f"{name}, PRDC - better TD3+BC", _mean(scores["PRDC"]), _mean(base), gap, -5))
        gap = paired_difference(scores["PRDC"], scores["TD3"])
        plain.append(above(f"{name}, PRDC - TD3", _mean(scores["PRDC"]), _mean(scores["TD3"]), gap))
        limit = 10 * float(np.abs(log.returns).max())
        largest = excess["largest |Q|"]
        sane.append(
            fact(f"{name}, largest |Q| of PRDC", largest, f"below 10 x best return = {limit:.4g}", largest < limit)
        )
    return [any_of("better than TD3+BC", better), any_of("better than TD3", plain), *sane], figures


def _scores(arms: Mapping[str, TD3BC], log: Dataset, budget: Budget) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Normalised score of each seed over the last three evaluations; over-estimation of PRDC."""
    scores, excess = {}, {}
    for name, learner in arms.items():
        scores[name], done = final_scores(learner, log, budget.steps, budget.seeds, budget.episodes)
        if name == "PRDC":
            excess = _overestimation(done, log, budget)
    return scores, excess


def _overestimation(done: Run, log: Dataset, budget: Budget) -> dict[str, Any]:
    """Q_1(s_0, pi(s_0)) minus the discounted return, a seed; and the largest |Q_1| over the log."""
    world = make(log.meta["task"], num_envs=budget.episodes)
    gaps, largest = [], 0.0
    for state, policy in zip(done.states, done.policies, strict=True):
        value = jax.jit(jax.vmap(lambda o, s=state: s.critic.members[0](s.normaliser(o), s.actor(s.normaliser(o)))))
        q = np.asarray(value(np.asarray(log.canonical().obs, np.float32)))
        monte_carlo = run_episodes(policy, world, budget.episodes, seed=5, discount=done.learner.discount)  # type: ignore[attr-defined]
        gaps.append(float(q[log.starts].mean() - monte_carlo.discounted.mean()))
        largest = max(largest, float(np.abs(q).max()))
    return {"gap": gaps, "largest |Q|": largest}


def _mean(x: np.ndarray | Sequence[np.ndarray]) -> float:
    return float(np.mean(x))


CLAIM = Claim(
    statement="Constraining the policy towards the nearest state-action pair of the data set outperforms "
    "constraining it towards the logged action of the same state, with bounded over-estimation.",
    run=run,
    full=FULL,
    smoke=SMOKE,
    seeds=FULL.seeds,
)
