"""OGSRL: does a guarded world of a log give policies that are better and safer than the clinician, in reality?

The log is of a clinician in `icu5`, whose true dynamics are known: returns, costs and how often the
support is left are measured there, and not in the learned world. Every arm has the same log. The arms
without costs are the same learner with a limit that never binds, whose step is then TRPO's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from habitus.claims.harness import Claim, Measure, Outcome, above, fact
from habitus.core.protocols import Env, Policy
from habitus.data.behaviours import Dosing
from habitus.data.dataset import Dataset
from habitus.data.density import DensityGuard, pairs_of
from habitus.envs.registry import make
from habitus.measure.statistics import paired_difference
from habitus.methods.offline.cql import CQL
from habitus.methods.offline.ogsrl import OGSRL
from habitus.train.logs import record_log
from habitus.train.loop import learn
from habitus.train.nearest_world import NearestWorld

UNBOUND = 1e6  # a limit that no cost reaches
TOLERANCE = 0.02  # of the cost above its limit
SAME_DOSE = 0.1  # distance to the clinician's dose that counts as the same
PAIRS = (("GCQL", "CQL"), ("GMB-TRPO", "MB-TRPO"), ("GMB-CPO", "MB-CPO"))


class GuardedCritic(eqx.Module):
    """A critic by which pairs out of support are worth `worst`."""

    critic: Any
    guard: DensityGuard
    worst: Float[Array, ""]

    def __call__(self, obs: Array, action: Array) -> Array:
        return jnp.where(self.guard(obs, action), self.worst, self.critic(obs, action))


class GuardedCQL(CQL):
    """CQL whose targets take pairs out of support for the worst there are (section 4, "GCQL")."""

    guard: DensityGuard | None = None
    worst: float = -100.0

    def bellman_error(self, critic: Any, state: Any, batch: Any, key: Any) -> Any:
        assert self.guard is not None
        guarded = GuardedCritic(state.target_critic, self.guard, jnp.asarray(self.worst))
        return super().bellman_error(critic, dataclasses.replace(state, target_critic=guarded), batch, key)


@dataclasses.dataclass(frozen=True)
class Budget:
    """Sizes of the experiment."""

    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    stays: int = 2_000
    max_rows: int = 2_000
    iterations: int = 150
    updates: int = 3_000
    episodes: int = 500
    copies: int = 64
    limit: float = 0.05
    hidden: tuple[int, ...] = (64, 64)


FULL = Budget()
SMOKE = Budget(
    seeds=(10, 11), stays=15, max_rows=300, iterations=2, updates=20, episodes=4, copies=4, hidden=(8, 8)
)  # fmt: skip


def run(budget: Budget) -> Outcome:
    """Every arm, measured in the true world."""
    world = make("icu5")
    assert isinstance(world, Env)
    log = record_log(Dosing.clinician(), world, budget.stays, seed=1, meta={"horizon": world.horizon})
    ours = OGSRL(limit=budget.limit, max_rows=budget.max_rows, num_envs=budget.copies, hidden=budget.hidden)
    guard, model = ours.guardian(log), dataclasses.replace(ours, guard=False).world(log)
    found = {
        name: np.array([_judge(p, world, model, guard, log, budget, s) for p, s in zip(ps, budget.seeds, strict=True)])
        for name, ps in _policies(ours, log, guard, budget).items()
    }
    columns = ("return", "cost", "out", "model error", "as the clinician")
    figures = {arm: {name: rows[:, i].tolist() for i, name in enumerate(columns)} for arm, rows in found.items()}
    notes = [
        f"{budget.stays} stays of the clinician; model and guardian look at {budget.max_rows} of their rows.",
        f"{budget.iterations} rounds of {budget.copies} episodes of 20 steps; CQL has {budget.updates} updates, as "
        "many as the values of the other arms.",
        "Policies are judged by their modes in the true world; the model's return is that of the world without guard. "
        "The clinician is judged with fresh episodes for each seed.",
    ]
    return Outcome(_measures(found, budget.limit), notes, figures)


def _policies(ours: OGSRL, log: Dataset, guard: DensityGuard, budget: Budget) -> dict[str, list[Policy]]:
    """The policies of each arm, one a seed."""
    steps = budget.iterations * budget.copies * 20
    arms = {
        "GMB-CPO": ours,
        "MB-CPO": dataclasses.replace(ours, guard=False),
        "GMB-TRPO": dataclasses.replace(ours, limit=UNBOUND),
        "MB-TRPO": dataclasses.replace(ours, limit=UNBOUND, guard=False),
    }
    out: dict[str, list[Policy]] = {"clinician": [Dosing.clinician()] * len(budget.seeds)}
    for name, learner in arms.items():
        out[name] = list(learn(learner, log, steps, seeds=budget.seeds, points=5).policies)
    size: dict[str, Any] = dict(hidden=budget.hidden, batch_size=128, learning_rate=1e-3)
    worst = -25 * 2 / 15 * float(np.median(np.abs(log.reward))) / (1 - CQL().discount)
    for name, plain in (("CQL", CQL(**size)), ("GCQL", GuardedCQL(guard=guard, worst=worst, **size))):
        out[name] = list(learn(plain, log, budget.updates, seeds=budget.seeds, points=5).policies)
    return out


def _judge(
    policy: Policy, world: Env, model: NearestWorld, guard: DensityGuard, log: Dataset, budget: Budget, seed: int
) -> tuple[float, ...]:
    """True return, cost a step, share of pairs out of support, error of the model's return, share of usual doses."""
    true = record_log(policy, world, budget.episodes, seed)
    imagined = record_log(policy, model, budget.episodes, seed)
    size = log.spec.obs_size
    out = jax.lax.map(lambda p: guard(p[:size], p[size:]), jnp.asarray(pairs_of(true)), batch_size=256)
    usual = dataclasses.replace(Dosing.clinician(), noise=0.0)
    dose = jax.vmap(lambda o: usual(o, (), jax.random.key(0))[0])(jnp.asarray(true.obs))
    same = np.linalg.norm(np.asarray(dose) - true.action, axis=1) < SAME_DOSE
    error = abs(float(imagined.returns.mean()) - float(true.returns.mean()))
    return float(true.returns.mean()), float(true.cost.sum(1).mean()), float(out.mean()), error, float(same.mean())


def _measures(found: dict[str, np.ndarray], limit: float) -> list[Measure]:
    """The conditions."""
    mean = {arm: rows.mean(0) for arm, rows in found.items()}
    measures = []
    for guarded, plain in PAIRS:
        ours, theirs = float(mean[guarded][2]), float(mean[plain][2])
        measures.append(fact(f"out of support, {guarded}", ours, f"below half of {plain}'s", ours < theirs / 2, theirs))
    best = found["GMB-CPO"]
    for other in ("clinician", "MB-CPO"):
        gap = paired_difference(best[:, 0], found[other][:, 0])
        measures.append(above(f"return, GMB-CPO - {other}", float(best[:, 0].mean()), float(mean[other][0]), gap))
    spent = float(best[:, 1].mean())
    allowed = limit + TOLERANCE
    measures.append(fact("cost per step, GMB-CPO", spent, f"at most {allowed:g}", spent <= allowed,
                         float(mean["GMB-TRPO"][1])))  # fmt: skip
    gap = paired_difference(found["MB-CPO"][:, 3], best[:, 3])
    name = "error of the model's return, MB-CPO - GMB-CPO"
    measures.append(above(name, float(mean["MB-CPO"][3]), float(best[:, 3].mean()), gap))
    return measures


CLAIM = Claim(
    statement="Constrained optimisation in a guarded model of a log stays within its support, keeps costs low and "
    "beats the clinician who made it; without the guard it is led astray by the model.",
    run=run,
    full=FULL,
    smoke=SMOKE,
    seeds=FULL.seeds,
)
