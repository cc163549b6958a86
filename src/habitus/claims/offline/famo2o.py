"""FamO2O against IQL at every fixed temperature, on a log whose quality differs from place to place.

The maze's first corridor is driven by the expert, with noise on the rewards, so that caution pays
there; in the second one seven actions of ten are random, so that greed does. The abstract's claim is
that a balance for each state then beats any single one. The fixed temperature that FamO2O must beat is
chosen in hindsight.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from habitus.claims.harness import Claim, Outcome, above, not_below
from habitus.core.policy import Deployed
from habitus.core.protocols import Env, Learner, Policy
from habitus.data.behaviours import FollowWay, Spoilt
from habitus.data.dataset import Dataset
from habitus.data.maker import references
from habitus.data.scores import normalised_score
from habitus.envs.registry import make
from habitus.envs.worlds.pointmaze import PointMaze
from habitus.measure.statistics import Interval, paired_difference
from habitus.methods.offline.famo2o import FamO2O, FamO2OState, within
from habitus.methods.offline.iql import IQL
from habitus.nets.policies import Normalised
from habitus.train.collect import run_episodes
from habitus.train.logs import record_log
from habitus.train.loop import learn
from habitus.train.run import Run

MIDDLE = 2.5  # the wall between the corridors, in cells from the top


@dataclasses.dataclass(frozen=True)
class Budget:
    """Sizes of the experiment."""

    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    temperatures: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    log_episodes: int = 250
    reward_noise: float = 1.0
    steps: int = 20_000
    online_steps: int = 10_000
    warmup: int = 500
    episodes: int = 20
    hidden: tuple[int, ...] = (64, 64)


FULL = Budget()
SMOKE = Budget(
    seeds=(10, 11), temperatures=(1.0, 8.0), log_episodes=4, steps=30, online_steps=60, warmup=20, episodes=2,
    hidden=(16, 16),
)  # fmt: skip


class ByPlace(Policy):
    """One policy in the first corridor, another beyond it."""

    first: Policy
    second: Policy

    def __call__(self, obs: Array, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        return jnp.where(obs[1] > MIDDLE, self.first(obs, carry, key)[0], self.second(obs, carry, key)[0]), carry


class AnyBalance(Policy):
    """The universal policy at a random balance: the family without the choice."""

    learner: FamO2O
    state: FamO2OState

    def __call__(self, obs: Array, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        x = jax.random.uniform(key, (1,), minval=-1.0, maxval=1.0)
        return self.state.actor(obs, within(self.learner.low, self.learner.high, x)).mode(), carry


def two_qualities(budget: Budget) -> Dataset:
    """The log: clean expert actions with noisy rewards in one corridor, mostly random actions in the other."""
    world = make("pointmaze")
    maze = getattr(world, "env", world)
    assert isinstance(world, Env) and isinstance(maze, PointMaze)
    expert = FollowWay.through(maze)
    poor = Spoilt(expert, -jnp.ones(2), jnp.ones(2), random_share=0.7)
    random, best = references("pointmaze")
    meta = {"task": "pointmaze", "split": "two-qualities", "maker": 1, "horizon": world.horizon,
            "random_return": random, "expert_return": best}  # fmt: skip
    log = record_log(ByPlace(expert, poor), world, budget.log_episodes, seed=0, meta=meta)
    noise = budget.reward_noise * np.random.default_rng(0).normal(size=len(log))
    first = np.asarray(log.obs)[:, 1] > MIDDLE
    return dataclasses.replace(log, reward=(np.asarray(log.reward) + noise * first).astype(np.float32))


def run(budget: Budget) -> Outcome:
    """Every arm, offline and then online."""
    log = two_qualities(budget)
    common: dict[str, Any] = dict(hidden=budget.hidden)
    arms: dict[str, Learner] = {f"IQL {t:g}": IQL(temperature=t, **common) for t in budget.temperatures}
    ours = FamO2O(low=budget.temperatures[0], high=budget.temperatures[-1], **common)
    found = {name: _both_stages(learner, log, budget) for name, learner in ({"FamO2O": ours} | arms).items()}
    offline, curves = ({n: normalised_score(log, f[i]) for n, f in found.items()} for i in (0, 1))
    last = {name: curve[-1] for name, curve in curves.items()}
    area = {name: curve.mean(0) for name, curve in curves.items()}
    random = normalised_score(log, _random_balance(ours, found["FamO2O"][2], budget))

    def best(scores: dict[str, np.ndarray]) -> str:
        return max(arms, key=lambda name: float(scores[name].mean()))

    def gap(name: str, level: float = 0.95, scores: dict[str, np.ndarray] = offline) -> Interval:
        return paired_difference(scores["FamO2O"], scores[name], level=level)

    fixed, online, middle = best(offline), best(last), sorted(arms, key=lambda n: float(area[n].mean()))[len(arms) // 2]
    mean = float(offline["FamO2O"].mean())
    measures = [
        above(f"offline, FamO2O - best fixed ({fixed})", mean, float(offline[fixed].mean()), gap(fixed, 0.9)),
        not_below(
            f"online, FamO2O - best fixed ({online})", float(last["FamO2O"].mean()), float(last[online].mean()),
            gap(online, scores=last), -2,
        ),
        above(
            f"area under the online curve, FamO2O - median fixed ({middle})", float(area["FamO2O"].mean()),
            float(area[middle].mean()), gap(middle, scores=area),
        ),
        above("offline, chosen - random balance", mean, float(random.mean()),
              paired_difference(offline["FamO2O"], random)),
    ]  # fmt: skip
    notes = [
        "IQL's networks have the same width as FamO2O's; every arm has the same number of updates and the same log.",
        "Online, batches are drawn from log and new experience as from one buffer, as in the authors' code.",
        "The chooser climbs the same Q whose errors are the reason for caution, so nothing tells it directly to be "
        "cautious; the mean balances in both corridors show what it did.",
    ]
    figures = {
        "offline": {n: x.tolist() for n, x in offline.items()},
        "online": {n: x.tolist() for n, x in curves.items()},
        "random balance": random.tolist(),
        "mean balance": _balances(ours, found["FamO2O"][2], log),
    }
    return Outcome(measures, notes, figures)


def _both_stages(learner: Learner, log: Dataset, budget: Budget) -> tuple[np.ndarray, np.ndarray, Run]:
    """Returns [seeds] after the log, returns [10, seeds] along the way online, and the offline run."""
    settings: dict[str, Any] = dict(seeds=budget.seeds, episodes=budget.episodes, points=10)
    offline = learn(learner, log, budget.steps, evaluations=1, **settings)
    online = learn(
        learner, env="pointmaze", data=log, mix="proportional", steps=budget.online_steps, warm_start=offline,
        evaluations=10, source_options={"warmup": budget.warmup, "capacity": budget.online_steps}, **settings,
    )  # fmt: skip
    return offline.returns[-1], online.returns, offline


def _random_balance(learner: FamO2O, run: Run, budget: Budget) -> np.ndarray:
    """Mean return of each seed's family at random balances."""
    world = make("pointmaze")
    policies = [Normalised(AnyBalance(learner, state), state.normaliser) for state in run.states]
    return np.array([
        run_episodes(Deployed.of(policy, run.spec), world, budget.episodes, 1_000_000).returns.mean()
        for policy in policies
    ])  # fmt: skip


def _balances(learner: FamO2O, run: Run, log: Dataset) -> dict[str, list[float]]:
    """The mean balance of each seed in the expert's corridor and in the other, over the log."""
    obs = jnp.asarray(log.canonical().obs, jnp.float32)
    first = np.asarray(log.obs)[:, 1] > MIDDLE
    out: dict[str, list[float]] = {"expert corridor": [], "random corridor": []}
    for state in run.states:
        beta = np.asarray(
            jax.vmap(lambda o, s=state: within(learner.low, learner.high, s.balance(s.normaliser(o)).mode()))(obs)
        )
        out["expert corridor"].append(float(beta[first].mean()))
        out["random corridor"].append(float(beta[~first].mean()))
    return out


CLAIM = Claim(
    statement="A balance between improvement and caution chosen for each state beats every single balance, "
    "offline and after fine-tuning online.",
    run=run,
    full=FULL,
    smoke=SMOKE,
    seeds=FULL.seeds,
)
