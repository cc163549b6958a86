"""H2O: does weighing a wrong simulator by its dynamics gap beat the simulator, the log, and both mixed?

The real system is the pendulum; the simulator's gravity is 16 instead of 10, at which a controller
tuned in it fails in reality. The logs are too poor to learn from alone: ten episodes of uniform
actions, and ten in which three actions of ten are the expert's. A log on which CQL alone reaches -400
leaves nothing to gain from a simulator and does not count.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

from habitus.claims.harness import Claim, Measure, Outcome, above, fact
from habitus.core.experience import Transition
from habitus.core.protocols import Env, Learner
from habitus.data.behaviours import Spoilt, SwingUp
from habitus.data.dataset import Dataset
from habitus.envs.worlds.pendulum import Pendulum
from habitus.envs.wrappers import TimeLimit
from habitus.measure.statistics import paired_difference
from habitus.methods.offline.cql import CQL
from habitus.methods.offline.h2o import H2O, H2OState
from habitus.methods.online.sac import SAC
from habitus.train.logs import record_log
from habitus.train.loop import learn
from habitus.train.run import Run

HORIZON = 200
REAL: Env = TimeLimit(Pendulum(), HORIZON)
SIMULATOR: Env = TimeLimit(Pendulum(gravity=16.0), HORIZON)
SOLVED_ALONE = -400.0


@dataclasses.dataclass(frozen=True)
class Budget:
    """Sizes of the experiment."""

    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    logs: tuple[tuple[str, float], ...] = (("random", 1.0), ("a third expert", 0.7))  # share of uniform actions
    log_episodes: int = 10
    updates: int = 20_000
    warmup: int = 1_000
    episodes: int = 10
    hidden: tuple[int, ...] = (64, 64)
    probes: int = 10


FULL = Budget()
SMOKE = Budget(
    seeds=(10, 11), logs=(("random", 1.0),), log_episodes=2, updates=40, warmup=20, episodes=2, hidden=(8, 8), probes=1
)


def run(budget: Budget) -> Outcome:
    """Every arm for every log."""
    base: dict[str, Any] = dict(hidden=budget.hidden, learning_rate=1e-3)
    sac, h2o = SAC(**base), H2O(**base)
    naive = H2O(penalty=0.0, min_weight=1.0, **base)
    sim_only = _online(sac, SIMULATOR, None, budget)
    figures: dict[str, Any] = {"simulator only": sim_only[0].tolist()}
    measures: list[Measure] = []
    for name, share in budget.logs:
        log = real_log(share, budget)
        found = {"CQL on the log": _offline(CQL(**base), log, budget), "SAC on the log": _offline(sac, log, budget)}
        found["naive mix"], _ = _online(naive, SIMULATOR, log, budget)
        found["H2O"], last = _online(h2o, SIMULATOR, log, budget)
        found["simulator only"] = sim_only[0]
        correlation = _gap_correlation(h2o, last, budget)
        figures[name] = {arm: x.tolist() for arm, x in found.items()} | {"rank correlation of the gap": correlation}
        if found["CQL on the log"].mean() < SOLVED_ALONE:
            measures += _conditions(name, found)
    measures += _sanity(h2o, naive, real_log(budget.logs[0][1], budget), budget)
    kept = sum("H2O - CQL" in m.name for m in measures)
    measures.append(fact("logs that CQL alone does not solve", kept, "at least one", kept >= 1))
    notes = [
        "Every arm has the same number of updates with batches of 256 (H2O draws 512 and trains its discriminators "
        "with all of them); simulator arms take one step for each update.",
        "Networks 64-64, learning rate 1e-3; returns are in the real system, the mean of three evaluations at the end.",
        f"A log on which CQL alone reaches {SOLVED_ALONE:g} does not count; {kept} of {len(budget.logs)} logs count.",
    ]
    return Outcome(measures, notes, figures)


def real_log(share: float, budget: Budget) -> Dataset:
    """The log of the real system: expert actions, a `share` of them replaced by uniform ones."""
    low = jnp.full(1, -2.0)
    return record_log(Spoilt(SwingUp(), low, -low, random_share=share), REAL, budget.log_episodes, seed=1)


def _last(steps: int) -> list[int]:
    return [round(steps * share) for share in (0.9, 0.95, 1.0)]


def _offline(learner: Learner, log: Dataset, budget: Budget) -> np.ndarray:
    run = learn(
        learner, log, budget.updates, seeds=budget.seeds, evaluations=_last(budget.updates), evaluate_in=REAL,
        episodes=budget.episodes, points=10,
    )  # fmt: skip
    return run.returns.mean(0)


def _online(learner: Learner, world: Env, log: Dataset | None, budget: Budget) -> tuple[np.ndarray, Run]:
    """Real returns of each seed of a learner that acts in `world`."""
    steps = budget.updates + budget.warmup
    capacity = 10 * budget.log_episodes * HORIZON
    run = learn(
        learner, env=world, data=log, steps=steps, seeds=budget.seeds, evaluations=_last(steps), evaluate_in=REAL,
        episodes=budget.episodes, points=10, source_options={"warmup": budget.warmup, "capacity": capacity},
    )  # fmt: skip
    return run.returns.mean(0), run


def _conditions(name: str, found: dict[str, np.ndarray]) -> list[Measure]:
    ours = found["H2O"]
    out = []
    for other in ("simulator only", "CQL on the log"):
        gap = paired_difference(ours, found[other])
        out.append(above(f"{name}, H2O - {other.split()[0]}", float(ours.mean()), float(found[other].mean()), gap))
    naive = found["naive mix"]
    gap = paired_difference(ours, naive, level=0.9)
    out.append(above(f"{name}, H2O - naive mix", float(ours.mean()), float(naive.mean()), gap, -50))
    holds = gap.estimate > 0
    out.append(fact(f"{name}, H2O - naive mix", float(ours.mean()), "mean above 0", holds, float(naive.mean())))
    return out


def _sanity(h2o: H2O, naive: H2O, log: Dataset, budget: Budget) -> list[Measure]:
    """With a perfect simulator the weights are near 1."""
    _, run = _online(h2o, REAL, log, budget)
    weight = float(np.asarray(run.history["weight"])[-3:].mean())
    return [fact("perfect simulator, mean weight", weight, "above 0.7", weight > 0.7)]


def _gap_correlation(learner: H2O, run: Run, budget: Budget) -> list[float]:
    """Rank correlation, for each seed, of the estimated gap with the true one on simulated pairs."""
    low = jnp.full(1, -2.0)
    probe = record_log(Spoilt(SwingUp(), low, -low, random_share=1.0), SIMULATOR, budget.probes, seed=3)
    rows = jax.tree.map(jnp.asarray, probe.canonical().transitions(slice(None)))
    true = jnp.linalg.norm(_after(Pendulum(), rows) - _after(Pendulum(gravity=16.0), rows), axis=1)
    out = []
    for state in run.states:
        assert isinstance(state, H2OState)
        share = learner.gap(jax.tree.map(jnp.asarray, state), rows, jax.random.key(0))
        out.append(float(np.nan_to_num(spearmanr(np.asarray(share), np.asarray(true)).statistic)))
    return out


def _after(world: Pendulum, rows: Transition) -> jax.Array:
    """The observations that follow logged pairs in a pendulum."""

    def one(obs: jax.Array, action: jax.Array) -> jax.Array:
        state = jnp.stack([jnp.arctan2(obs[1], obs[0]), obs[2]])
        return world.step(state, 2 * action, jax.random.key(0))[1].obs

    return jax.vmap(one)(rows.obs, rows.action)


CLAIM = Claim(
    statement="A policy learned from a poor real log and a wrong simulator, weighed by the estimated dynamics gap, "
    "beats those learned from either alone and from both mixed plainly.",
    run=run,
    full=FULL,
    smoke=SMOKE,
    seeds=FULL.seeds,
)
