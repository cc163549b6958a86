"""Parts that experiments share: learning an arm, and logs of mixed quality."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from habitus.core.protocols import Learner
from habitus.data.dataset import Dataset
from habitus.data.scores import normalised_score
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
