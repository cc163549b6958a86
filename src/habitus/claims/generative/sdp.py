"""SDP: does a rolling buffer keep the success of whole chains at a quarter of their network calls?

Two objects are to be picked and placed, with a slow gripper, so that a chunk of four steps is short. Every arm
has the same log, network width and number of updates; success is counted in fresh episodes. As the paper's
baseline may be beaten by a better sampler, DDIM with as many calls is reported beside it.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from habitus.claims.generative import _picking
from habitus.claims.harness import Claim, Measure, Outcome, above, fact
from habitus.measure.statistics import paired_difference
from habitus.methods.generative.diffusion_policy import DiffusionPolicy
from habitus.methods.generative.sdp import SDP
from habitus.train.loop import learn
from habitus.train.run import Run

LEAST_SUCCESS = 0.4  # of whole chains, or nothing is learned from the comparison
MARGIN = 0.08


@dataclasses.dataclass(frozen=True)
class Budget:
    """Sizes of the experiment."""

    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    demonstrations: int = 500
    steps: int = 30_000
    batch_size: int = 128
    episodes: int = 200
    width: int = 256
    blocks: int = 2


FULL = Budget()
SMOKE = Budget(seeds=(10, 11), demonstrations=3, steps=10, batch_size=8, episodes=2, width=16, blocks=1)


def run(budget: Budget) -> Outcome:
    """Every arm: its success, its network calls for each action, and its time."""
    world = _picking.world(speed=0.02, limit=240)
    log = _picking.demonstrations(world, budget.demonstrations)
    size: dict[str, Any] = dict(batch_size=budget.batch_size, width=budget.width, blocks=budget.blocks)
    whole = DiffusionPolicy(levels=48, predicted=17, executed=4, **size)
    learners = {"DP": whole, "SDP": SDP(**size), "SDP, one level": SDP(regimes=(1.0, 0.0, 0.0, 0.0), **size),
                "SDP, each step": SDP(executed=1, **size)}  # fmt: skip
    runs = {name: learn(learner, log, budget.steps, seeds=budget.seeds, points=5) for name, learner in learners.items()}
    runs["DDIM"] = dataclasses.replace(runs["DP"], learner=dataclasses.replace(whole, sampling_steps=12, eta=0.0))
    success = {name: _picking.successes(r.policies, world, budget.episodes, budget.seeds) for name, r in runs.items()}
    calls = {name: _picking.calls_per_action(r.policies[0], world) for name, r in runs.items()}
    figures = {
        "success": {name: x.tolist() for name, x in success.items()},
        "network calls per action": calls,
        "milliseconds per action": {name: _milliseconds(r, world) for name, r in runs.items()},
    }
    notes = [
        f"{budget.demonstrations} demonstrations of an expert with eight ways to do it, recorded under noise of 0.2.",
        "Batches are half of the card's and networks are residual MLPs; a U-Net over 17 steps would take hours.",
        f"DDIM has the network of DP and 12 steps: its success is {float(success['DDIM'].mean()):.3f}.",
        "Milliseconds are of one action at a time on this machine, the mean over an episode, plans included.",
    ]
    return Outcome(_measures(success, calls), notes, figures)


def _measures(success: dict[str, Float[np.ndarray, "seeds"]], calls: dict[str, float]) -> list[Measure]:
    """The conditions."""
    mean = {arm: float(x.mean()) for arm, x in success.items()}
    kept, uses = (paired_difference(success["SDP"], success[arm]) for arm in ("DP", "SDP, one level"))
    quarter = abs(calls["SDP"] - calls["DP"] / 4) < 1e-6
    return [
        fact("success, DP", mean["DP"], f"at least {LEAST_SUCCESS}, or the comparison says nothing",
             mean["DP"] >= LEAST_SUCCESS),
        fact("network calls per action, SDP", calls["SDP"], "a quarter of DP's", quarter, calls["DP"]),
        above("success, SDP - DP", mean["SDP"], mean["DP"], kept, -MARGIN),
        above("success, SDP - trained at one level only", mean["SDP"], mean["SDP, one level"], uses),
    ]  # fmt: skip


def _milliseconds(run: Run, world: Any, steps: int = 40) -> float:
    """Wall time of one action, in a session of one episode."""
    session = run.policies[0].session(seed=0)
    _, obs = world.reset(jax.random.key(0))
    obs = np.asarray(obs)
    session.act(obs)  # compiles
    began = time.perf_counter()
    for _ in range(steps):
        session.act(obs)
    return 1e3 * (time.perf_counter() - began) / steps


CLAIM = Claim(
    statement="A buffer of actions whose noise grows with their distance makes each chunk clean in a fraction of the "
    "network calls of a whole chain, at the same success.",
    run=run,
    full=FULL,
    smoke=SMOKE,
    seeds=FULL.seeds,
)
