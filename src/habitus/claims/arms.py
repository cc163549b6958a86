"""Parts that experiments share: learning an arm, logs of mixed quality, whole episodes, and time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from habitus.core.policy import Deployed
from habitus.core.protocols import Env, Learner
from habitus.data.dataset import Dataset
from habitus.data.scores import normalised_score
from habitus.train.collect import Episodes, run_episodes
from habitus.train.loop import learn
from habitus.train.run import Run
from habitus.train.standard import make_offline


def final_scores(
    learner: Learner, log: Dataset, steps: int, seeds: Sequence[int], episodes: int, **options: Any
) -> tuple[Float[np.ndarray, "seeds"], Run]:
    """Learns offline; the normalised score of each seed over the last three of fifteen evaluations, and the run."""
    last = [round(steps * share) for share in (13 / 15, 14 / 15, 1.0)]
    run = learn(learner, log, steps, seeds=seeds, evaluations=last, episodes=episodes, points=10, **options)
    return normalised_score(log, run.returns.mean(0)), run


def mixed_log(task: str, share: float, rows: int) -> Dataset:
    """A standard task's random log in which a `share` of the rows is from its expert."""
    good = round(share * rows)
    random, expert = (make_offline(task, split, size=rows) for split in ("random", "expert"))
    meta = dict(random.meta) | {"split": f"mixed-{100 * share:g}"}
    log = Dataset.concat([random.subset(rows=slice(0, rows - good)), expert.subset(rows=slice(0, good))], meta=meta)
    return dataclasses.replace(log, meta=meta | {"behaviour_return": float(log.returns[log.complete].mean())})


def acted(policies: Sequence[Deployed], env: Env, episodes: int, seeds: Sequence[int]) -> list[Episodes]:
    """What the policy of each seed does, in episodes that are that seed's own: the same ones for every arm."""
    firsts = (1_000_000 + 10_000 * seed for seed in seeds)
    return [run_episodes(policy, env, episodes, first) for policy, first in zip(policies, firsts, strict=True)]


def seconds_a_call(act: Callable[[Any], Any], first: Any, calls: int) -> float:
    """Wall time of `act` in a compiled loop, each call given what the last one answered; the least of three."""
    loop = eqx.filter_jit(lambda first: jax.lax.fori_loop(0, calls, lambda _, at: act(at), first))
    jax.block_until_ready(loop(first))  # compiles
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(loop(first))
        taken.append(time.perf_counter() - began)
    return min(taken) / calls
