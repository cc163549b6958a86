"""Uni-O4: do chained trust regions improve clones of a poor log, and does nothing drop at the switch?

On pendulum's log of five poor controllers and on Hopper's medium log, against cloning, IQL and the
same steps in a single trust region; then online PPO from the offline policy, from its clones and from
scratch. The estimates that open the gate are compared with true returns.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

from habitus.claims.arms import final_scores
from habitus.claims.harness import Claim, Measure, Outcome, above, fact, not_below
from habitus.core.policy import Deployed
from habitus.core.trees import Metrics, take
from habitus.data.dataset import Dataset
from habitus.data.scores import normalised_score
from habitus.envs.registry import make
from habitus.measure.statistics import paired_difference
from habitus.methods.offline.bc import BC
from habitus.methods.offline.iql import IQL
from habitus.methods.offline.uni_o4 import UniO4, UniO4State
from habitus.methods.online.uni_o4_online import UniO4Online
from habitus.nets.policies import Mode, Normalised
from habitus.train.collect import run_episodes
from habitus.train.loop import learn
from habitus.train.run import Run
from habitus.train.standard import make_offline


class OneRegion(UniO4):
    """A single trust region: all steps around the clones."""

    def _judge(self, state: UniO4State) -> tuple[UniO4State, Metrics]:
        after, metrics = super()._judge(state)
        return dataclasses.replace(after, old=state.old), metrics


class Ungated(UniO4):
    """The trust region moves at every check."""

    def _judge(self, state: UniO4State) -> tuple[UniO4State, Metrics]:
        after, metrics = super()._judge(state)
        return dataclasses.replace(after, old=state.actor), metrics


class Clones(UniO4):
    """No PPO steps at all."""

    def _improve(self, state: UniO4State, batch: Any, key: Any) -> tuple[UniO4State, Metrics]:
        after, metrics = super()._improve(state, batch, key)
        judged, _ = self._judge(state)
        return dataclasses.replace(after, actor=state.actor, old=state.old, score=judged.score), metrics


@dataclasses.dataclass(frozen=True)
class Budget:
    """Sizes of the experiment."""

    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    logs: tuple[tuple[str, str], ...] = (("pendulum", "replay"), ("hopper", "medium"))
    steps: int = 26_000
    online_steps: int = 50_000
    rollout: int = 256
    episodes: int = 10
    hidden: tuple[int, ...] = (64, 64)
    gate_starts: int = 256
    gate_horizon: int = 50


FULL = Budget()
SMOKE = Budget(
    seeds=(10, 11), logs=(("pendulum", "replay"),), steps=60, online_steps=64, rollout=4, episodes=2, hidden=(8, 8),
    gate_starts=4, gate_horizon=3,
)  # fmt: skip


def run(budget: Budget) -> Outcome:
    """Offline on every log; online and the gate's estimates on the first."""
    measures, figures = [], {}
    runs: dict[str, Run] = {}
    for task, split in budget.logs:
        log = make_offline(task, split)
        scores, found = _offline(log, budget)
        measures += _offline_measures(f"{task}-{split}", scores)
        figures[f"{task}-{split}"] = {name: x.tolist() for name, x in scores.items()}
        runs = runs or found
    log = make_offline(*budget.logs[0])
    start = np.asarray(figures["-".join(budget.logs[0])]["Uni-O4"])
    online, curves = _online(log, runs, start, budget)
    correlation = _correlations(log, runs, budget)
    measures += [
        *online,
        fact("rank correlation of the estimates with true returns", float(correlation.mean()), "at least 0.5",
             bool(correlation.mean() >= 0.5)),
    ]  # fmt: skip
    figures |= {"online": curves, "correlation": correlation.tolist()}
    notes = [
        "Every arm of Uni-O4 repeats the same stages with the same budget: 75 % of the updates for values and "
        "dynamics, 20 % for clones, 5 % for PPO steps; IQL has as many updates in all.",
        "The reported policy is the one of four that the learned world prefers; no environment step is used for it.",
        "The correlation is over the four policies of each of four arms, within a seed, and then averaged.",
    ]
    return Outcome(measures, notes, figures)


def _offline(log: Dataset, budget: Budget) -> tuple[dict[str, np.ndarray], dict[str, Run]]:
    """Normalised scores of every arm, and the runs of Uni-O4's arms."""
    size: dict[str, Any] = dict(hidden=budget.hidden)
    gate: dict[str, Any] = dict(gate_starts=budget.gate_starts, gate_horizon=budget.gate_horizon,
                                dynamics_hidden=budget.hidden)  # fmt: skip
    arms = {"BC": BC(**size), "IQL": IQL(**size)}
    ours = {"Uni-O4": UniO4(**size, **gate), "one region": OneRegion(**size, **gate),
            "ungated": Ungated(**size, **gate), "clones": Clones(**size, **gate)}  # fmt: skip
    scores, runs = {}, {}
    for name, learner in (arms | ours).items():
        if name in arms:
            scores[name], _ = final_scores(learner, log, budget.steps, budget.seeds, budget.episodes)
        else:
            runs[name] = learn(
                learner, log, budget.steps, seeds=budget.seeds, evaluations=1, episodes=3 * budget.episodes, points=20
            )
            scores[name] = normalised_score(log, runs[name].returns[-1])
    return scores, runs


def _offline_measures(name: str, scores: dict[str, np.ndarray]) -> list[Measure]:
    mean = {arm: float(x.mean()) for arm, x in scores.items()}
    ours, gaps = mean["Uni-O4"], {arm: paired_difference(scores["Uni-O4"], x) for arm, x in scores.items()}
    return [
        above(f"{name}, Uni-O4 - BC", ours, mean["BC"], gaps["BC"]),
        fact(f"{name}, Uni-O4 - BC", ours, "at least 10 points", ours - mean["BC"] >= 10, mean["BC"]),
        not_below(f"{name}, Uni-O4 - IQL", ours, mean["IQL"], gaps["IQL"], -5),
        fact(f"{name}, Uni-O4 - one trust region", ours, "not below", ours >= mean["one region"], mean["one region"]),
    ]


def _online(log: Dataset, runs: dict[str, Run], start: np.ndarray, budget: Budget) -> tuple[list[Measure], Any]:
    """PPO from the offline policy, from its clones, and from scratch."""
    learner = UniO4Online(hidden=budget.hidden, rollout_length=budget.rollout)
    options: dict[str, Any] = dict(
        env=log.meta["task"], steps=budget.online_steps, seeds=budget.seeds, evaluations=10, episodes=budget.episodes
    )
    warm = {"Uni-O4": runs["Uni-O4"], "clones": runs["clones"], "scratch": None}
    curves = {
        name: normalised_score(log, learn(learner, warm_start=run, points=10, **options).returns)
        for name, run in warm.items()
    }
    ours, area = curves["Uni-O4"], {name: x.mean(0) for name, x in curves.items()}
    first, before = float(ours[0].mean()), float(start.mean())
    measures = [
        fact("online, after a tenth of the steps", first, "at least 0.9 of the offline score", first >= 0.9 * before,
             before),
        not_below("online, last - offline score", float(ours[-1].mean()), before,
                  paired_difference(ours[-1], start), 0),
    ]  # fmt: skip
    for other in ("scratch", "clones"):
        gap = paired_difference(area["Uni-O4"], area[other])
        name = f"online, area under the curve, from Uni-O4 - from {other}"
        measures.append(above(name, float(area["Uni-O4"].mean()), float(area[other].mean()), gap))
    return measures, {name: x.tolist() for name, x in curves.items()}


def _correlations(log: Dataset, runs: dict[str, Run], budget: Budget) -> np.ndarray:
    """For each seed, Spearman's correlation of the gate's estimate with the true return over all its policies."""
    world, out = make(log.meta["task"]), []
    for seed in range(len(budget.seeds)):
        estimates, returns = [], []
        for run in runs.values():
            state: UniO4State = jax.tree.map(jnp.asarray, run.states[seed])
            for i in range(len(state.score)):
                policy = Normalised(Mode(take(state.actor, i)), state.normaliser)
                episodes = run_episodes(Deployed.of(policy, run.spec), world, budget.episodes, 500_000)
                estimates.append(float(state.score[i]))
                returns.append(float(episodes.returns.mean()))
        out.append(spearmanr(estimates, returns).statistic)
    return np.nan_to_num(np.asarray(out))


CLAIM = Claim(
    statement="Chained trust regions under a frozen critic improve clones of a log, and the policy goes on online "
    "with the same objective, without a drop and faster than from the clones or from scratch.",
    run=run,
    full=FULL,
    smoke=SMOKE,
    seeds=FULL.seeds,
)
