"""Demonstrations in KeyDoor: pre-training, imitation beside PPO, and both, against PPO, cloning alone and RAPID.

Levels to train in, to demonstrate in and to be judged in are generated; the demonstrated ones are
among those to train in, and none is among those to be judged in.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from habitus.claims.harness import Claim, Outcome, above, any_of, fact
from habitus.core.protocols import Env
from habitus.data.dataset import Dataset
from habitus.data.keydoor import demonstrate, noise_for
from habitus.envs.registry import make
from habitus.measure.statistics import paired_difference
from habitus.methods.offline.bc import BC
from habitus.methods.offline.pcg_imitation import PCGImitation
from habitus.train.loop import learn
from habitus.train.run import Run

SOLVED = 0.9  # share of the optimal return from which a seed counts as having solved it


@dataclasses.dataclass(frozen=True)
class Budget:
    """Sizes of the experiment."""

    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    size: int = 8
    levels: int = 1_000
    few: int = 2
    many: int = 100
    share: float = 0.6
    clone_steps: int = 500
    frames: int = 65_536
    evaluations: int = 4
    episodes: int = 50
    learning_rate: float = 3e-4
    hidden: tuple[int, ...] = (64, 64)
    every_arm: bool = True  # or only those that a condition is about


FULL = Budget()
SMOKE = Budget(
    seeds=(10, 11), size=5, levels=20, few=1, many=3, clone_steps=4, frames=2_048, evaluations=1, episodes=2,
    hidden=(8,), every_arm=False,
)  # fmt: skip


def demonstrations(budget: Budget) -> tuple[dict[str, Dataset], float, float]:
    """Logs by name, the best return in levels to be judged in, and the share of random actions of the worse logs."""
    world = make("keydoor", size=budget.size)
    assert isinstance(world, Env)
    noise = noise_for(world, budget.share, range(budget.many))
    logs = {
        f"{name}, {k} levels": demonstrate(world, range(k), share)
        for name, share in (("optimal", 0.0), (f"{budget.share:.0%}", noise))
        for k in (budget.few, budget.many)
        if budget.every_arm or k == budget.many or not share
    }
    unseen = demonstrate(world, range(1_000_000, 1_000_000 + budget.many))
    return logs, float(unseen.returns.mean()), noise


def _learn(budget: Budget, log: Dataset | None, clone: Run | None, imitate: bool) -> Run:
    """One arm: PPO with or without a clone to begin with and imitation beside it."""
    learner = PCGImitation(bc_updates=5 if imitate else 0, learning_rate=budget.learning_rate, hidden=budget.hidden)
    return learn(
        learner, env=make("keydoor", size=budget.size, levels=budget.levels), data=log if imitate else None,
        steps=budget.frames, seeds=budget.seeds, warm_start=clone, points=1, evaluations=budget.evaluations,
        episodes=budget.episodes, evaluate_in=make("keydoor", size=budget.size),
    )  # fmt: skip


def run(budget: Budget) -> Outcome:
    """Every arm. A seed's return is the mean over its episodes in unseen levels."""
    logs, best, noise = demonstrations(budget)
    curves: dict[str, np.ndarray] = {
        "PPO": _learn(budget, None, None, False).returns, "RAPID": _learn(budget, None, None, True).returns,
    }  # fmt: skip
    for name, log in logs.items():
        clone = learn(
            BC(learning_rate=budget.learning_rate, hidden=budget.hidden, normalise=False), log, budget.clone_steps,
            seeds=budget.seeds, evaluations=1, episodes=budget.episodes, points=1,
            evaluate_in=make("keydoor", size=budget.size),
        )  # fmt: skip
        curves[f"BC ({name})"] = clone.returns
        curves[f"PT ({name})"] = _learn(budget, log, clone, False).returns
        curves[f"C-IL ({name})"] = _learn(budget, log, None, True).returns
        if budget.every_arm and name.startswith("optimal"):
            curves[f"PT+C-IL ({name})"] = _learn(budget, log, clone, True).returns
    return Outcome(_measures(budget, curves, best), _notes(budget, noise), {
        "returns": {name: x.tolist() for name, x in curves.items()}, "optimal return": best, "noise": noise,
    })  # fmt: skip


def _measures(budget: Budget, curves: dict[str, np.ndarray], best: float) -> list[Any]:
    area = {name: x.mean(0) for name, x in curves.items()}
    last = {name: x[-1] for name, x in curves.items()}
    few, many = (f"optimal, {k} levels" for k in (budget.few, budget.many))

    def beats(a: str, b: str, scores: dict[str, np.ndarray], what: str) -> Any:
        ours, theirs = scores[a], scores[b]
        gap = paired_difference(ours, theirs)
        return above(f"{what}, {a} - {b}", float(ours.mean()), float(theirs.mean()), gap)

    solved = {name: int((x >= SOLVED * best).sum()) for name, x in last.items()}
    seeds = len(budget.seeds)
    counted = fact(
        f"seeds that PT ({few}) solves", solved[f"PT ({few})"], f"at least {seeds - 1} of {seeds}, and PPO at most 1",
        solved[f"PT ({few})"] >= seeds - 1 and solved["PPO"] <= 1, baseline=float(solved["PPO"]),
    )  # fmt: skip
    poor = f"{budget.share:.0%}, {budget.many} levels"
    diverse, narrow = (float(np.mean([last[f"{arm} ({d})"].mean() for arm in ("PT", "C-IL")])) for d in (poor, few))
    return [
        *(beats(f"{arm} ({many})", "PPO", area, "area under the curve") for arm in ("PT", "C-IL")),
        any_of("two trajectories decide", [beats(f"PT ({few})", "PPO", last, "final return"), counted]),
        beats(f"PT ({few})", f"BC ({few})", last, "final return"),
        beats(f"C-IL ({many})", "RAPID", area, "area under the curve"),
        *(
            fact(f"final return, {arm} ({many})", last[f"{arm} ({many})"].mean(), f"at least {SOLVED} of the optimal",
                 last[f"{arm} ({many})"].mean() >= SOLVED * best, baseline=best)
            for arm in ("PT", "C-IL")
        ),
        fact(f"diversity: final return with {poor}", diverse, f"at least that with {few}", diverse >= narrow,
             baseline=narrow),
    ]  # fmt: skip


def _notes(budget: Budget, noise: float) -> list[str]:
    return [
        f"KeyDoor of {budget.size} x {budget.size} cells instead of MultiRoom and ObstructedMaze, {budget.frames:,} "
        "frames instead of 10 million, observations one-hot.",
        f"Demonstrations are a solver's; {noise:.0%} of the actions are random in those that earn {budget.share:.0%}. "
        "The paper's are RAPID's own, stopped midway.",
        "PPO is the learner without imitation, which is `ppo` bit for bit; its policies are judged as they explore, "
        "sampled, like those of all arms.",
        "A clone is a run of `bc`, with its network; all hyperparameters are alike in all arms.",
    ]


CLAIM = Claim(
    statement="Cloning a few demonstrations, before PPO or beside it, makes it learn where it fails alone; two "
    "trajectories can decide.",
    run=run,
    full=FULL,
    smoke=SMOKE,
    seeds=FULL.seeds,
)
