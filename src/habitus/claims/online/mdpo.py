"""MDPO: exact in the tabular case, several inner steps needed, on par with PPO and with SAC.

(a) Tabular: with the exact advantage and the closed form, mirror descent converges monotonically;
    several gradient steps come nearer to the closed form than one.
(b) On-policy: ten inner steps against one, and against PPO; the learning rate of each arm is tuned on
    the same grid with seeds that are not used again.
(c) Off-policy: on par with soft actor-critic, which is its limit without the KL; learning rate and
    temperature tuned on the same grid for both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from habitus.claims.harness import Claim, Measure, Outcome, above, fact
from habitus.core.protocols import Env, Learner
from habitus.envs.registry import make
from habitus.envs.wrappers import ScaledReward
from habitus.measure.statistics import paired_difference
from habitus.methods.online.mdpo import MDPO, MDPOOffPolicy
from habitus.methods.online.ppo import PPO
from habitus.train.loop import learn
from habitus.train.run import Run

RANDOM_RETURN = {"pendulum": -1190.0, "cartpole-swingup": 29.0}  # mean return of uniform actions, measured before


@dataclasses.dataclass(frozen=True)
class Budget:
    """Sizes of the experiment."""

    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    tuning_seeds: tuple[int, ...] = (20, 21)
    tasks: tuple[str, ...] = ("pendulum", "cartpole-swingup")
    step_sizes: tuple[float, ...] = (0.1, 1.0, 10.0)
    max_iterations: int = 5_000
    on_steps: int = 300_000
    on_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    off_steps: int = 20_000
    off_warmup: int = 1_000
    off_rates: tuple[float, ...] = (3e-4, 1e-3)
    temperatures: tuple[float, ...] = (0.02, 0.1)
    kl_weights: tuple[float, ...] = (0.1, 0.3, 1.0)
    kl_ladder: tuple[float, ...] = (0.0, 0.1, 1.0, 10.0)


FULL = Budget()
SMOKE = Budget(
    seeds=(10, 11), tuning_seeds=(20, 21), tasks=("pendulum",), step_sizes=(10.0,), max_iterations=100, on_steps=4_096,
    on_rates=(1e-3,), off_steps=400, off_warmup=200, off_rates=(1e-3,), temperatures=(0.02,), kl_weights=(0.1,),
    kl_ladder=(0.0, 1.0),
)  # fmt: skip


def run(budget: Budget) -> Outcome:
    """All three parts."""
    measures, figures = _tabular(budget)
    for task in budget.tasks:
        on, on_figures = _on_policy(task, budget)
        off, off_figures = _off_policy(task, budget)
        measures += [*on, *off]
        figures[task] = {"on-policy": on_figures, "off-policy": off_figures}
    notes = [
        "Rewards are multiplied by 0.1; returns are of training episodes in the last tenth of a run, unscaled.",
        "The learning rate of the authors (3e-4) is meant for thousands of iterations; it is on the grid of every arm.",
        "The soft actor-critic of part (c) is the same code with kl_weight = 0, with two Q-networks and no V-network.",
    ]
    return Outcome(measures, notes, figures)


# --- (a) tabular


def _tabular(budget: Budget) -> tuple[list[Measure], dict[str, Any]]:
    """A random decision process with 20 states and 4 actions, discount .9."""
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.full(20, 0.3), (20, 4))
    reward = rng.uniform(size=(20, 4))
    best = np.zeros(20)
    for _ in range(2_000):
        best = (reward + 0.9 * transition @ best).max(1)

    def values(policy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chain, gain = np.einsum("sa,sat->st", policy, transition), (policy * reward).sum(1)
        v = np.linalg.solve(np.eye(20) - 0.9 * chain, gain)
        return v, reward + 0.9 * transition @ v - v[:, None]

    measures, iterations = [], {}
    for t in budget.step_sizes:
        policy, previous, monotone = np.full((20, 4), 0.25), np.full(20, -np.inf), True
        iterations[f"t={t:g}"] = 0
        for _ in range(budget.max_iterations):
            v, advantage = values(policy)
            monotone &= bool((v >= previous - 1e-9).all())
            if np.abs(best - v).max() <= 1e-3:
                break
            policy = policy * np.exp(t * advantage)
            policy, previous = policy / policy.sum(1, keepdims=True), v
            iterations[f"t={t:g}"] += 1
        gap = float(np.abs(best - v).max())
        measures.append(
            fact(
                f"tabular, t = {t:g}: largest gap to V*", gap, "at most 1e-3, V never falling", gap <= 1e-3 and monotone
            )
        )
    distance = _inner_distances(values(np.full((20, 4), 0.25))[1])
    falling = all(a > b for a, b in zip(distance[:-1], distance[1:], strict=True))
    measures.append(
        fact(
            "tabular, distance to the closed form after 1, 5, 10, 50 inner steps",
            distance[-1],
            "falls",
            falling,
            distance[0],
        )
    )
    return measures, {"tabular iterations": iterations, "inner distances": distance}


def _inner_distances(advantage: np.ndarray) -> list[float]:
    """Total variation between the closed form and m Adam steps on the mirror-descent objective, t = 1."""
    target = np.exp(advantage) / np.exp(advantage).sum(1, keepdims=True)
    adam = optax.adam(0.02)

    def loss(logits: jax.Array) -> jax.Array:
        p = jax.nn.softmax(logits)
        return -(p * jnp.asarray(advantage)).sum(1).mean() + (p * (jnp.log(p) - jnp.log(0.25))).sum(1).mean()

    logits, state, out = jnp.zeros((20, 4)), adam.init(jnp.zeros((20, 4))), []
    for step in range(1, 51):
        updates, state = adam.update(jax.grad(loss)(logits), state)
        logits = logits + updates
        if step in (1, 5, 10, 50):
            out.append(float(0.5 * np.abs(np.asarray(jax.nn.softmax(logits)) - target).sum(1).mean()))
    return out


# --- (b) on-policy


def _scaled(task: str) -> Env:
    world = make(task)
    assert isinstance(world, Env)
    return ScaledReward(world, 0.1)


def _final(done: Run) -> np.ndarray:
    """Mean unscaled return of the training episodes of the last tenth, a seed."""
    steps = done.history["step"]
    last = steps > 0.9 * steps[-1]
    returns, finished = (done.history[f"episode/{name}"][last] for name in ("return", "finished"))
    return 10 * np.nansum(np.nan_to_num(returns) * finished, 0) / np.maximum(finished.sum(0), 1)


def _tuned(
    make_learner: Callable[..., Learner],
    grid: Sequence[dict[str, float]],
    train: Callable[[Learner, Sequence[int]], Run],
    budget: Budget,
) -> tuple[Run, dict[str, float], dict[str, float]]:
    """The best setting of a grid on the tuning seeds, then run on the real ones."""
    scores = {}
    for setting in grid:
        done = train(make_learner(**setting), budget.tuning_seeds)
        scores[" ".join(f"{k}={v:g}" for k, v in setting.items())] = float(_final(done).mean())
    best = grid[int(np.argmax(list(scores.values())))]
    return train(make_learner(**best), budget.seeds), best, scores


def _on_policy(task: str, budget: Budget) -> tuple[list[Measure], dict[str, Any]]:
    def train(learner: Learner, seeds: Sequence[int]) -> Run:
        options = {"num_envs": 16, "length": 128}
        return learn(learner, env=_scaled(task), steps=budget.on_steps, seeds=seeds, points=40, source_options=options)

    arms: dict[str, Callable[..., Learner]] = {
        "MDPO m=10": lambda **s: MDPO(inner_steps=10, **s),
        "MDPO m=1": lambda **s: MDPO(inner_steps=1, **s),
        "PPO": lambda **s: PPO(epochs=10, minibatch_size=64, **s),
    }
    grid = [{"learning_rate": rate} for rate in budget.on_rates]
    finals, figures = {}, {}
    for name, arm in arms.items():
        done, best, scores = _tuned(arm, grid, train, budget)
        finals[name] = _final(done)
        figures[name] = {"best": best, "tuning": scores, "final": finals[name].tolist(), "whole run": _whole(done)}
    span = max(float(finals["PPO"].mean()) - RANDOM_RETURN[task], 1e-6)
    ours, one, ppo = ((finals[name] - RANDOM_RETURN[task]) / span for name in arms)
    several = above(
        f"{task}, on-policy: ten inner steps - one", float(ours.mean()), float(one.mean()), paired_difference(ours, one)
    )
    gap = paired_difference(ours, ppo)
    holds = ours.mean() >= 0.95 or gap.low <= 0 <= gap.high
    par = Measure(
        f"{task}, on-policy: MDPO - PPO, normalised", float(ours.mean()), float(ppo.mean()), gap.estimate,
        (gap.ends[0], gap.ends[1]), "at least .95 of PPO's, or interval contains 0", bool(holds), not holds,
    )  # fmt: skip
    return [several, par], figures


def _whole(done: Run) -> list[float]:
    returns = done.history["episode/return"]
    return (10 * np.nanmean(np.where(np.isfinite(returns), returns, np.nan), 0)).tolist()


# --- (c) off-policy


def _off_policy(task: str, budget: Budget) -> tuple[list[Measure], dict[str, Any]]:
    def train(learner: Learner, seeds: Sequence[int]) -> Run:
        options = {"warmup": budget.off_warmup, "capacity": budget.off_steps + 1_000}
        return learn(learner, env=_scaled(task), steps=budget.off_steps, seeds=seeds, points=40, source_options=options)

    def arm(kl_weight: float, **setting: float) -> Learner:
        return MDPOOffPolicy(kl_weight=kl_weight, copy_period=250, hidden=(64, 64), batch_size=128, **setting)  # type: ignore[arg-type]

    grid = [{"learning_rate": rate, "temperature": t} for rate in budget.off_rates for t in budget.temperatures]
    sac, sac_best, sac_scores = _tuned(lambda **s: arm(0.0, **s), grid, train, budget)
    middle = budget.kl_weights[len(budget.kl_weights) // 2]
    _, best, scores = _tuned(
        lambda **s: arm(middle, **s), grid, train, dataclasses.replace(budget, seeds=budget.tuning_seeds)
    )
    ours, weight, more = _tuned(
        lambda **s: arm(**s, **best), [{"kl_weight": w} for w in budget.kl_weights], train, budget
    )
    a, b = _final(ours), _final(sac)
    margin = -0.05 * max(float(b.mean()) - RANDOM_RETURN[task], 0.0)
    measures = [
        above(f"{task}, off-policy: MDPO - SAC", float(a.mean()), float(b.mean()), paired_difference(a, b), margin)
    ]
    if task == "pendulum":
        bar = RANDOM_RETURN[task] + 0.8 * (-150 - RANDOM_RETURN[task])
        measures.append(
            fact(
                "pendulum, off-policy: lower of both returns",
                float(min(a.mean(), b.mean())),
                f"at least {bar:.0f}",
                min(a.mean(), b.mean()) >= bar,
            )
        )
    ladder = {w: _late_kl(train(arm(w, **best), budget.seeds)) for w in budget.kl_ladder}
    kl = list(ladder.values())
    falling = all(x > y for x, y in zip(kl[:-1], kl[1:], strict=True))
    measures.append(
        fact(
            f"{task}, off-policy: KL to the old policy at the greatest weight",
            kl[-1],
            "falls along the weights",
            falling,
            kl[0],
        )
    )
    figures = {
        "SAC": {"best": sac_best, "tuning": sac_scores, "final": b.tolist()},
        "MDPO": {"best": best | weight, "tuning": scores | more, "final": a.tolist()},
        "KL by weight": {f"{w:g}": v for w, v in ladder.items()},
    }
    return measures, figures


def _late_kl(done: Run) -> float:
    """Mean KL(pi || pi_old) over the last tenth of a run."""
    steps = done.history["step"]
    return float(done.history["kl"][steps > 0.9 * steps[-1]].mean())


CLAIM = Claim(
    statement="Mirror descent with several gradient steps an iteration performs better than or on par with PPO "
    "on-policy and SAC off-policy; one step an iteration does not suffice.",
    run=run,
    full=FULL,
    smoke=SMOKE,
    seeds=FULL.seeds,
)
