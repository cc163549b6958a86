"""RDP: does a decoder that hears the force of now wipe a moving board that a slow diffusion policy cannot?

A tool is to be pressed on a board of which a noisy picture is all that is seen ahead, and which jumps and drifts. Every
arm asks its planner every 8 steps and waits 2 for the answer; denoisers have one size and one number of updates, and
each arm the better of two learning rates and two lengths of history, chosen in seeds of their own. Diffusion policies
that plan more often, and average their plans, are reported beside them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from habitus.claims.arms import seconds_a_call
from habitus.claims.generative import _wiping
from habitus.claims.harness import Claim, Measure, Outcome, above, fact
from habitus.core.policy import Deployed
from habitus.core.protocols import Env, Policy
from habitus.data.dataset import Dataset
from habitus.data.parts import narrowed
from habitus.envs.worlds.planar_wipe import FORCE
from habitus.execution.two_rate import Advised, Blend, Follow, TwoRate
from habitus.measure.statistics import paired_difference
from habitus.methods.generative._rdp import Reactive
from habitus.methods.generative.diffusion_policy import DiffusionPolicy
from habitus.methods.generative.rdp import RDP
from habitus.nets.policies import Normalised
from habitus.train.loop import learn
from habitus.train.run import Run

Scores = dict[str, Float[np.ndarray, "seeds"]]
ROWS, PERIOD, LATENCY = 16, 8, 2
GAIN = 0.15  # that a moving board must show
MARGIN = 0.03  # that a still board may cost
ALIKE = 0.05  # how far RDP may be from diffusion policy once it hears nothing
FASTER = 20
SLOW = ("DP", "DP with force")  # the diffusion policies that plan as seldom as RDP


@dataclasses.dataclass(frozen=True)
class Budget:
    """Sizes of the experiment.

    Attributes:
        tuning: seeds in which the learning rate and the history of each arm are chosen.
        steps: updates of a denoiser; the tokenizer has half as many before.
        histories: observations that a plan is made from.
    """

    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    tuning: tuple[int, ...] = (20, 21)
    demonstrations: int = 400
    steps: int = 10_000
    batch_size: int = 64
    episodes: int = 200
    width: int = 256
    blocks: int = 2
    rates: tuple[float, ...] = (3e-4, 1e-3)
    histories: tuple[int, ...] = (2, 6)


FULL = Budget()
SMOKE = Budget(seeds=(10, 11), tuning=(20, 21), demonstrations=3, steps=6, batch_size=8, episodes=2, width=16, blocks=1,
               rates=(1e-3,), histories=(2,))  # fmt: skip


def run(budget: Budget) -> Outcome:
    """Every arm: what it wipes of boards that move and of boards that are still."""
    log = _wiping.demonstrations(budget.demonstrations)
    found = {arm: _tuned(arm, log, budget) for arm in ("DP", "DP with force", "RDP", "RDP, deaf")}
    runs = {arm: run for arm, (run, _) in found.items()}
    arms = {
        "DP": _planning(runs["DP"]),
        "DP with force": _planning(runs["DP with force"]),
        "DP with force, every 2, averaged": _planning(runs["DP with force"], period=2, averaged=True),
        "DP with force, every 1, at once": _planning(runs["DP with force"], period=1, latency=0),
        "RDP": runs["RDP"].policies,
        "RDP, deaf": runs["RDP, deaf"].policies,
    }
    moving, still = (
        {arm: _wiping.scores(p, _shown(arm, at), budget.episodes, budget.seeds) for arm, p in arms.items()}
        for at in (_wiping.world(), _wiping.world(still=True))
    )
    slow, fast = _seconds(runs["RDP"])
    figures = {
        "share wiped, moving board": {arm: x.tolist() for arm, x in moving.items()},
        "share wiped, still board": {arm: x.tolist() for arm, x in still.items()},
        "chosen": {arm: chosen for arm, (_, chosen) in found.items()},
        "microseconds of a plan and of a step": [1e6 * slow, 1e6 * fast],
    }
    notes = [
        f"{budget.demonstrations} demonstrations under noise of 0.1 of an expert that knows the slope under the tool.",
        "A moving board jumps by 4 cm once in 30 steps and drifts by 2 cm; the paper's experiments are on a robot.",
        "Denoisers are residual MLPs of 4 layers instead of a U-Net, and there is a force instead of tactile images.",
        "Averaged plans weigh exp(-0.8 i), the newest first.",
        "Times are of one plan or step of one episode on this machine, inside a compiled loop.",
    ]
    return Outcome(_measures(moving, still, slow / fast), notes, figures)


def _shown(arm: str, env: Env) -> Env:
    return _wiping.WithoutForce(env) if arm == "DP" else env


def _learner(arm: str, rate: float, observed: int, budget: Budget) -> DiffusionPolicy:
    """The learner of an arm."""
    size: dict[str, Any] = dict(
        predicted=ROWS, observed=observed, executed=PERIOD, learning_rate=rate, batch_size=budget.batch_size,
        width=budget.width, blocks=budget.blocks, sampling_steps=10, eta=0.0,
    )  # fmt: skip
    if not arm.startswith("RDP"):
        return DiffusionPolicy(**size)
    return RDP(latency=LATENCY, signal=(FORCE,) if arm == "RDP" else (), **size)


def _tuned(arm: str, log: Dataset, budget: Budget) -> tuple[Run, dict[str, Any]]:
    """The run of an arm, with the settings that did best on moving boards in the seeds for tuning; and these."""
    env = _shown(arm, _wiping.world())
    given = narrowed(log, (env.observation_space.shape or (0,))[0])
    steps = budget.steps * 3 // 2 if arm.startswith("RDP") else budget.steps

    def score(rate: float, observed: int) -> float:
        tried = learn(_learner(arm, rate, observed, budget), given, steps, seeds=budget.tuning, points=5)
        policies = tried.policies if arm.startswith("RDP") else _planning(tried)
        return float(_wiping.scores(policies, env, budget.episodes, budget.tuning).mean())

    tried = {(rate, observed): score(rate, observed) for observed in budget.histories for rate in budget.rates}
    rate, observed = max(tried, key=lambda setting: tried[setting])
    chosen = {"learning rate": rate, "observed": observed, "tried": [[*k, v] for k, v in tried.items()]}
    return learn(_learner(arm, rate, observed, budget), given, steps, seeds=budget.seeds, points=5), chosen


def _planning(run: Run, period: int = PERIOD, latency: int = LATENCY, averaged: bool = False) -> list[Deployed]:
    """Diffusion policies that plan every `period` steps and wait for the answer."""
    ours = run.learner
    assert isinstance(ours, DiffusionPolicy)

    def policy(state: Any) -> Policy:
        planner, now = ours.planner(state), ours.observed - 1
        fast = Blend(planner.shape, ROWS // period, now) if averaged else Follow(now)
        return Normalised(TwoRate(planner, fast, period, latency, ours.observed), state.normaliser)

    return [Deployed.of(policy(state), run.spec) for state in run.states]


def _measures(moving: Scores, still: Scores, faster: float) -> list[Measure]:
    """The conditions."""
    best, calm = (max(SLOW, key=lambda arm: float(scores[arm].mean())) for scores in (moving, still))
    mean, quiet = ({arm: float(x.mean()) for arm, x in scores.items()} for scores in (moving, still))
    gain = mean["RDP"] - mean[best]
    return [
        above(f"share wiped of a moving board, RDP - {best}", mean["RDP"], mean[best],
              paired_difference(moving["RDP"], moving[best])),
        fact(f"share wiped of a moving board, RDP - {best}", mean["RDP"], f"by {GAIN} or more", gain >= GAIN,
             mean[best]),
        fact(f"share wiped of a still board, RDP - {calm}", quiet["RDP"], f"not below by more than {MARGIN}",
             quiet["RDP"] >= quiet[calm] - MARGIN, quiet[calm]),
        fact("share wiped of a moving board, RDP that hears nothing - DP with force", mean["RDP, deaf"],
             f"within {ALIKE}", abs(mean["RDP, deaf"] - mean["DP with force"]) <= ALIKE, mean["DP with force"]),
        fact("time of a plan by that of a step", faster, f"{FASTER} or more", faster >= FASTER),
    ]  # fmt: skip


def _seconds(run: Run) -> tuple[float, float]:
    """What a plan of RDP takes, and a step of its fast policy."""
    ours, state = run.learner, run.states[0]
    assert isinstance(ours, RDP)
    planner, rates = ours.planner(state), ours.policy(state).policy.policy  # type: ignore[attr-defined]
    assert isinstance(rates, TwoRate) and isinstance(rates.fast, Reactive)
    obs, key, no = jnp.zeros(state.obs_shape), jax.random.key(0), jnp.zeros((), bool)
    told = Advised(obs, jnp.zeros(planner.shape), obs, jnp.asarray(5, jnp.int32), ~no, no)

    def plan(at: Any) -> Any:
        window = jnp.broadcast_to(obs + at[0, 0], (ours.observed, *obs.shape))
        return planner(window, key).chunk

    def step(at: Any) -> Any:
        action, carry = rates.fast(dataclasses.replace(told, obs=obs + 0.1 * at[0][0]), at[1], key)
        return action, carry

    first = jnp.zeros(state.action_size), rates.fast.init()
    return seconds_a_call(plan, jnp.zeros(planner.shape), 200), seconds_a_call(step, first, 4_000)


CLAIM = Claim(
    statement="A slow diffusion model over latents with a fast decoder that hears the force keeps contact where a "
    "diffusion policy that plans as seldom loses it, and costs nothing where nothing moves.",
    run=run,
    full=FULL,
    smoke=SMOKE,
    seeds=FULL.seeds,
)
