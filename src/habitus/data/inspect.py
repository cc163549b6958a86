"""What a log holds, at a glance: size, returns, lengths, coverage, defects."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from gymnasium import spaces

from habitus.core.spec import Spec
from habitus.data import maker
from habitus.data.dataset import Dataset
from habitus.data.defects import Defect
from habitus.data.measures import (
    entropy_of_visits,
    of_equal_size,
    state_action_coverage,
    trajectory_quality,
    unique_pairs,
)
from habitus.data.summary import pieces, summarise
from habitus.data.validate import check

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
_SATURATED = 0.999  # of the way from the middle of the action's range to its bound


@dataclasses.dataclass(frozen=True)
class Feature:
    """One dimension of the observations or actions: its range, and for actions how often it is at a bound."""

    name: str
    low: float
    high: float
    mean: float
    std: float
    saturated: float | None = None


@dataclasses.dataclass(frozen=True)
class DataCard:
    """What `inspect` found.

    Attributes:
        name: of the data set.
        observation_space, action_space: as text.
        steps, episodes, complete, bytes: sizes; `complete` counts episodes recorded to their end.
        terminated: share of the complete episodes that terminated.
        returns: quantiles of the returns of complete episodes (least, 25%, median, 75%, greatest),
            and their mean; None without any.
        mean_return: their mean, or None.
        lengths: the same quantiles of the lengths of all episodes.
        features: each dimension of canonical observations and actions; empty for images and integers.
        action_shares: how often each discrete action was taken, or None.
        saturation: share of real actions at a bound, or None.
        unique_pairs: distinct pairs of observation and action, real numbers in cells.
        visit_entropy: of those pairs [nats].
        trajectory_quality: 0 random, 1 expert; None without references.
        coverage: distinct pairs over those of the reference log; None without one.
        defects: see `habitus.data.validate.check`.
    """

    name: str
    observation_space: str
    action_space: str
    steps: int
    episodes: int
    complete: int
    bytes: int
    terminated: float
    returns: tuple[float, ...] | None
    mean_return: float | None
    lengths: tuple[float, ...]
    features: tuple[Feature, ...]
    action_shares: tuple[float, ...] | None
    saturation: float | None
    unique_pairs: float
    visit_entropy: float
    trajectory_quality: float | None
    coverage: float | None
    defects: tuple[Defect, ...]

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each fact, for a table; features are left to `features`."""
        out = [
            ("steps", f"{self.steps:,} in {self.episodes:,} episodes, {self.complete:,} complete"),
            ("size", f"{self.bytes / 2**20:.1f} MiB"),
            ("observations", self.observation_space),
            ("actions", self.action_space),
            ("episode length", _spread(self.lengths)),
        ]
        if self.returns is not None and self.mean_return is not None:
            out.append(("return", f"{self.mean_return:.4g} on average; {_spread(self.returns)}"))
            out.append(("ends", f"{self.terminated:.0%} of complete episodes terminate, the others are cut"))
        if self.saturation is not None:
            out.append(("actions at a bound", f"{self.saturation:.1%}"))
        if self.action_shares is not None:
            out.append(("actions taken", ", ".join(f"{i}: {share:.0%}" for i, share in enumerate(self.action_shares))))
        out.append(("distinct pairs", f"{self.unique_pairs:,.0f} (entropy {self.visit_entropy:.2f} nats)"))
        if self.trajectory_quality is not None:
            out.append(("trajectory quality (TQ)", f"{self.trajectory_quality:.2f}, where random is 0 and expert 1"))
        if self.coverage is not None:
            out.append(("coverage (SACo)", f"{self.coverage:.2f} of the reference log"))
        out += [(defect.severity, str(defect)) for defect in self.defects] or [("defects", "none found")]
        return out


def inspect(dataset: Dataset, reference: Dataset | None = None) -> DataCard:
    """The card of a data set.

    Args:
        reference: the log that coverage is measured against; for a standard data set made from
            controllers, the `replay` split of its task unless given. The longer of the two is cut.
    """
    reference = reference or reference_log(dataset)
    complete = dataset.returns[dataset.complete]
    known = {"random_return", "expert_return"} <= dataset.meta.keys()
    log = dataset.canonical()
    features = _features("obs", log.obs, dataset) + _features("action", log.action, dataset)
    saturated = [feature.saturated for feature in features if feature.saturated is not None]
    shares = _shares(log.action, log.action_space) if isinstance(log.action_space, spaces.Discrete) else None
    return DataCard(
        name=dataset.name,
        observation_space=str(dataset.observation_space),
        action_space=str(dataset.action_space),
        steps=len(dataset),
        episodes=len(dataset.starts),
        complete=len(complete),
        bytes=dataset.nbytes,
        terminated=float(dataset.terminated[dataset.ends[dataset.complete]].mean()) if len(complete) else 0.0,
        returns=_quantiles(complete) if len(complete) else None,
        mean_return=float(complete.mean()) if len(complete) else None,
        lengths=_quantiles(dataset.lengths),
        features=tuple(features),
        action_shares=shares,
        saturation=float(np.mean(saturated)) if saturated else None,
        unique_pairs=unique_pairs(dataset, reference),
        visit_entropy=entropy_of_visits(dataset, reference),
        trajectory_quality=trajectory_quality(dataset) if known and len(complete) else None,
        coverage=state_action_coverage(*of_equal_size(dataset, reference)) if reference is not None else None,
        defects=tuple(check(dataset)),
    )


def reference_log(dataset: Dataset) -> Dataset | None:
    """The log that the coverage of a standard data set is measured against: the replay of its task; else None."""
    task = dataset.meta.get("task")
    if task not in maker.TASKS or dataset.meta.get("maker") != maker.VERSION:
        return None
    return maker.make_offline(task, "replay", dataset.meta.get("seed", 0), len(dataset))


def _quantiles(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(q) for q in np.quantile(values, QUANTILES))


def _spread(quantiles: tuple[float, ...]) -> str:
    low, first, middle, third, high = quantiles
    if low == high:
        return f"always {low:.4g}"
    return f"{low:.4g} to {high:.4g}, half of them in {first:.4g} to {third:.4g}, median {middle:.4g}"


def _shares(actions: Any, space: spaces.Discrete) -> tuple[float, ...]:
    counts = np.bincount(np.asarray(actions[:]), minlength=int(space.n))
    return tuple(float(share) for share in counts / counts.sum())


def _features(name: str, column: Any, dataset: Dataset) -> list[Feature]:
    """Each dimension of a canonical column of vectors, in the user's units."""
    if column.dtype.kind != "f" or len(column.shape) != 2:
        return []
    labels = _labels(dataset) if name == "obs" else [f"action[{i}]" for i in range(column.shape[1])]
    bounded = name == "action" and Spec(dataset.observation_space, dataset.action_space).bounded
    raw = dataset.action.reshape(len(dataset), -1) if name == "action" else column
    found = summarise(raw)
    at_bound: list[Any] = _share_at_bound(column) if bounded else [None] * len(labels)
    return [
        Feature(
            label, float(found.low[i]), float(found.high[i]), float(found.mean[i]), float(found.std[i]), at_bound[i]
        )
        for i, label in enumerate(labels)
    ]


def _labels(dataset: Dataset) -> list[str]:
    names = Spec(dataset.observation_space, dataset.action_space).names
    return [f"{name}[{i}]" for name, part in names.items() for i in range(part.stop - part.start)]


def _share_at_bound(column: Any) -> list[float]:
    counts = [(np.abs(piece) >= _SATURATED).sum(0) for piece in pieces(column)]
    return [float(share) for share in np.sum(counts, 0) / len(column)]
