"""How much a log exploits and how much it explores (Schweighofer et al., 2022, arXiv 2111.04714).

Trajectory quality compares its returns with those of a random and of an expert policy; coverage
compares how many distinct pairs of state and action it holds with a reference log, as a rule the
whole replay of an online run. Both are defined for deterministic worlds: where transitions are
random, the count of pairs says less about what a log teaches.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, UInt64

from habitus.core.errors import ConfigError, DataError
from habitus.core.spec import Spec
from habitus.data.canonical import CHUNK
from habitus.data.dataset import Dataset
from habitus.data.hyperloglog import HyperLogLog, hash_rows
from habitus.data.scores import reference_returns
from habitus.data.summary import summarise

EXACT_ROWS = 5_000_000  # beyond, pairs are counted with HyperLogLog
BINS, MANY_DIMENSIONS, FEWER_BINS = 100, 6, 20


def mean_return(dataset: Dataset) -> float:
    """Mean undiscounted return of the complete episodes.

    Raises:
        DataError: if there is none.
    """
    if not dataset.complete.any():
        raise DataError(f"{dataset.name} has no complete episode, so it has no return; mark terminated or truncated.")
    return float(dataset.returns[dataset.complete].mean())


def trajectory_quality(
    dataset: Dataset, random_return: float | None = None, expert_return: float | None = None
) -> float:
    """TQ: the mean return, from 0 for a random policy to 1 for the expert; not clipped.

    Without both references those of the data set are used.

    Raises:
        DataError: if a reference is missing, if they are equal, or if no episode is complete.
    """
    if random_return is None or expert_return is None:
        random_return, expert_return = reference_returns(dataset)
    if random_return == expert_return:
        raise DataError(f"the random and the expert return are both {expert_return}; nothing lies between them.")
    return (mean_return(dataset) - random_return) / (expert_return - random_return)


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Cells in which real observations and actions count as the same.

    `bins` edges divide the range of each dimension in the reference log, ends included; what lies
    outside falls into the cells at the ends. Integers are themselves, images count when equal.

    Attributes:
        edges: float64 [dimensions, bins], of the canonical observation, then of the action.
        spec: of the reference.
    """

    edges: Float[np.ndarray, "dimensions bins"]
    spec: Spec

    @classmethod
    def of(cls, reference: Dataset, bins: int | None = None) -> Grid:
        """The grid of a reference log; 100 edges a dimension, or 20 where there are more than six.

        Raises:
            ConfigError: for fewer than two edges.
        """
        log = reference.canonical()
        real = [column for column in (log.obs, log.action) if _is_real(column)]
        dimensions = sum(column.shape[1] for column in real)
        bins = bins or (FEWER_BINS if dimensions > MANY_DIMENSIONS else BINS)
        if bins < 2:
            raise ConfigError(f"a grid of {bins} edges divides nothing; give at least 2.")
        limits = [limit for column in real for limit in zip(*summarise(column)[:2], strict=True)]
        edges = [np.linspace(low, high, bins) for low, high in limits]
        return cls(np.stack(edges) if edges else np.zeros((0, bins)), Spec(log.observation_space, log.action_space))

    def hashes(self, dataset: Dataset) -> UInt64[np.ndarray, "rows"]:
        """A number for each row, equal for rows in the same cell.

        Raises:
            SpaceMismatch: if the log has other spaces than the reference.
        """
        log = dataset.canonical()
        self.spec.check_same(Spec(log.observation_space, log.action_space), dataset.name)
        chunks = range(0, len(log), CHUNK)
        return np.concatenate([hash_rows(self._cells(log, slice(start, start + CHUNK))) for start in chunks])

    def _cells(self, log: Dataset, rows: slice) -> UInt64[np.ndarray, "rows words"]:
        words, used = [], 0
        for column in (log.obs, log.action):
            part = np.asarray(column[rows])
            if _is_real(column):
                dimensions = part.shape[1]
                edges = self.edges[used : used + dimensions]
                words += [np.digitize(part[:, i], edges[i])[:, None] for i in range(dimensions)]
                used += dimensions
            elif part.ndim > 2:
                words.append(_bytes_as_words(part))
            else:
                words.append(part.reshape(len(part), -1))
        return np.concatenate([word.astype(np.uint64) for word in words], 1)


def unique_pairs(
    dataset: Dataset, reference: Dataset | None = None, *, bins: int | None = None, exact: bool | None = None
) -> float:
    """u(D): how many distinct pairs of observation and action the log holds.

    Args:
        reference: the log whose ranges the cells divide, which must be the same for all logs that
            are compared; the log itself if None.
        bins: edges of each real dimension, see `Grid`.
        exact: a count by 64-bit hashes if True, HyperLogLog's estimate (error 0.8%) if False; by
            default exact up to five million rows.
    """
    hashes = Grid.of(reference or dataset, bins).hashes(dataset)
    if exact if exact is not None else len(hashes) <= EXACT_ROWS:
        return float(len(np.unique(hashes)))
    counter = HyperLogLog()
    counter.add(hashes)
    return counter.count()


def of_equal_size(dataset: Dataset, reference: Dataset) -> tuple[Dataset, Dataset]:
    """Both logs, the longer one cut to the first rows, so that their coverage can be compared."""
    size = min(len(dataset), len(reference))
    ours, theirs = (log if len(log) == size else log.subset(slice(0, size)) for log in (dataset, reference))
    return ours, theirs


def state_action_coverage(
    dataset: Dataset,
    reference: Dataset,
    *,
    bins: int | None = None,
    log: bool = False,
    exact: bool | None = None,
    any_size: bool = False,
) -> float:
    """SACo: distinct pairs of the log over those of the reference; may exceed 1.

    Args:
        log: the ratio of the logarithms (lSACo) instead.
        any_size: allow logs of different size, though longer ones cover more for that reason alone.
        bins, exact: see `unique_pairs`.

    Raises:
        DataError: if the sizes differ, or for `log` if the reference holds a single pair.
    """
    if len(dataset) != len(reference) and not any_size:
        raise DataError(
            f"{dataset.name} has {len(dataset)} rows and the reference {len(reference)}: coverage grows with size, "
            "so cut the longer one (of_equal_size)."
        )
    ours, theirs = (unique_pairs(each, reference, bins=bins, exact=exact) for each in (dataset, reference))
    if not log:
        return ours / theirs
    if theirs <= 1:
        raise DataError("the reference holds a single pair, whose logarithm is 0; compare with a larger one.")
    return float(np.log(ours) / np.log(theirs))


def entropy_of_visits(dataset: Dataset, reference: Dataset | None = None, *, bins: int | None = None) -> float:
    """Shannon entropy [nats] of how often each distinct pair occurs; its exponential is at most `unique_pairs`."""
    counts = np.unique(Grid.of(reference or dataset, bins).hashes(dataset), return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _is_real(column: Any) -> bool:
    return column.dtype.kind == "f" and len(column.shape) == 2


def _bytes_as_words(images: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(images).reshape(len(images), -1).view(np.uint8)
    padding = -flat.shape[1] % 8
    return np.pad(flat, ((0, 0), (0, padding))).view(np.uint64)
