"""What `learn` hands back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from habitus.core.policy import Deployed
from habitus.core.protocols import Env, HostEnv, Learner
from habitus.core.spec import Spec


@dataclasses.dataclass
class Run:
    """A finished, or interrupted, run of a learner.

    Attributes:
        learner: the learner, with its hyperparameters.
        spec: the contract it learned under.
        env: the world it was evaluated in, or None.
        seeds: one for each state.
        states: the learner's final state of each seed, on the host.
        history: for each metric its chunk means, float [chunks, seeds]; 'step', 'update' and 'seconds'
            (wall time) are [chunks].
        evaluations: for each evaluation 'step', 'update', 'returns' [seeds][episodes] and 'lengths'; sums of
            'costs' [seeds][episodes][costs] where the world reports costs.
        seconds: wall time by kind of work: compile and start, learn, evaluate, save.
        folder: where the run is kept, or None.
        interrupted: whether Ctrl-C ended it early.
    """

    learner: Learner
    spec: Spec
    env: Env | HostEnv | None
    seeds: Sequence[int]
    states: list[PyTree]
    history: dict[str, np.ndarray]
    evaluations: list[dict[str, Any]]
    seconds: dict[str, float]
    folder: Path | None = None
    interrupted: bool = False

    @property
    def policies(self) -> list[Deployed]:
        """The policy of each seed, in the user's spaces."""
        return [Deployed.of(self.learner.policy(state), self.spec) for state in self.states]

    @property
    def policy(self) -> Deployed:
        """The policy of the first seed, in the user's spaces."""
        return Deployed.of(self.learner.policy(self.states[0]), self.spec)

    @property
    def returns(self) -> np.ndarray:
        """Mean return of each evaluation, float [evaluations, seeds]."""
        return np.array([[np.mean(episodes) for episodes in row["returns"]] for row in self.evaluations])

    def save_policies(self) -> None:
        """Writes the policy of each seed to `<folder>/policy/seed-<seed>`, if there is a folder."""
        if self.folder is None:
            return
        for seed, policy in zip(self.seeds, self.policies, strict=True):
            policy.save(self.folder / "policy" / f"seed-{seed}")

    def __repr__(self) -> str:
        from habitus.train.setup import slug_of

        where = f", folder={str(self.folder)!r}" if self.folder else ""
        updates = int(self.history["update"][-1])
        return f"Run({slug_of(self.learner)!r}, seeds={list(self.seeds)}, updates={updates}{where})"


def merge(parts: Sequence[Run]) -> Run:
    """One run of the seeds of several, cut to the shortest of their histories."""
    n = min(len(part.history["update"]) for part in parts)
    m = min(len(part.evaluations) for part in parts)
    points = ("step", "update", "seconds")
    history = {k: parts[0].history[k][:n] for k in points}
    for name in set.intersection(*(set(part.history) for part in parts)).difference(points):
        history[name] = np.concatenate([part.history[name][:n] for part in parts], axis=1)
    evaluations = []
    for rows in zip(*(part.evaluations[:m] for part in parts), strict=True):
        joined: dict[str, Any] = {
            k: rows[0][k] if k in ("step", "update") else sum((row[k] for row in rows), []) for k in rows[0]
        }
        evaluations.append(joined)
    return dataclasses.replace(
        parts[0],
        seeds=[seed for part in parts for seed in part.seeds],
        states=[state for part in parts for state in part.states],
        history=history,
        evaluations=evaluations,
        seconds={k: sum(part.seconds.get(k, 0.0) for part in parts) for k in parts[0].seconds},
        interrupted=any(part.interrupted for part in parts),
    )
