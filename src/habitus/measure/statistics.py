"""How sure the scores of a few runs make us: interquartile means and bootstrap intervals.

The estimators are those of Agarwal et al., *Deep Reinforcement Learning at the Edge of the
Statistical Precipice* (NeurIPS 2021). The unit that is resampled is one score, so a score must be
an independent repetition of the experiment: for a claim about a *method* that is the mean return
of one seed, for a claim about one *policy* it is the return of one episode.

Plain percentile intervals are too narrow for the few seeds one can afford: of nominal 95 %
intervals around the mean of five normal scores, 83 % hold the truth. The percentiles are therefore
moved outwards until the interval is as wide as Student's t would make it (Hesterberg, *What
Teachers Should Know About the Bootstrap*, 2015, section 4.3), which brings that to 91 %.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import special

from habitus.core.errors import ConfigError

Statistic = Callable[[Float[np.ndarray, "*batch scores"]], Float[np.ndarray, "*batch"]]
Scores = float | ArrayLike | Sequence[ArrayLike]


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and how far it can be trusted.

    Attributes:
        estimate: the statistic of the scores.
        low, high: ends of the interval; infinite where a group of one score says nothing about the spread.
        level: the share of such intervals that are meant to hold the true value.
    """

    estimate: float
    low: float
    high: float
    level: float = 0.95

    def __contains__(self, value: float | int) -> bool:
        return bool(self.low <= value <= self.high)

    @property
    def bounded(self) -> bool:
        """Whether the interval has ends at all."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def ends(self) -> list[float | None]:
        """`[low, high]` as JSON can hold them: an end that is infinite is None."""
        return [end if math.isfinite(end) else None for end in (self.low, self.high)]

    def __str__(self) -> str:
        if not self.bounded:
            return f"{self.estimate:.4g}"
        digits = _decimals(self.high - self.low, self.estimate)
        return f"{self.estimate:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def _decimals(width: float, estimate: float) -> int:
    """Decimals that show the interval to two figures, or an exact estimate to four."""
    scale, figures = (width, 2) if width > 1e-9 * abs(estimate) else (abs(estimate), 4)  # rounding is no width
    return min(max(figures - 1 - math.floor(math.log10(scale)), 0), 12) if scale > 0 else 1


def mean(scores: Float[np.ndarray, "*batch scores"]) -> Float[np.ndarray, "*batch"]:
    """Mean over the last axis."""
    return np.asarray(np.mean(scores, axis=-1))


def iqm(scores: Float[np.ndarray, "*batch scores"]) -> Float[np.ndarray, "*batch"]:
    """Interquartile mean over the last axis: the mean of what is left without the lowest and highest quarter.

    As in `scipy.stats.trim_mean`, a quarter is rounded down, so of four scores two count and of
    three all do.
    """
    n = scores.shape[-1]
    cut = n // 4
    middle = np.partition(scores, (cut, n - cut - 1), axis=-1) if cut else scores
    return np.asarray(np.mean(middle[..., cut : n - cut], axis=-1))


def bootstrap_ci(
    groups: Scores,
    statistic: Statistic = iqm,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """A stratified bootstrap interval of a statistic of all scores together.

    Args:
        groups: the scores, or one array of scores a task; scores are resampled within their task only.
        statistic: maps [*batch, scores] to [*batch], such as `iqm` or `mean`.
        level: nominal coverage of the interval.
        resamples: number of bootstrap resamples.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ConfigError: if there are no scores, one is not finite, or an argument is outside its domain.
    """
    strata = _strata("the scores", groups)
    _check(level, resamples)
    rng = np.random.default_rng(seed)
    distribution = np.empty(resamples)
    for block in _blocks(resamples, sum(x.size for x in strata)):
        size = block.stop - block.start
        drawn = [x[rng.integers(x.size, size=(size, x.size))] for x in strata]
        distribution[block] = statistic(np.concatenate(drawn, axis=1))
    return interval_of(float(statistic(np.concatenate(strata))), distribution, strata, level)


def bootstrap_band(
    curves: Float[np.ndarray, "points runs"],
    statistic: Statistic = iqm,
    *,
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Estimate, low and high of `bootstrap_ci` at each point of a learning curve, the runs resampled whole.

    The band is pointwise: at each point by itself it holds the truth with probability `level`. With
    one run it is infinite.

    Raises:
        ConfigError: if there are no runs, a value is not finite, or an argument is outside its domain.
    """
    _strata("the curves", curves)
    _check(level, resamples)
    runs = curves.shape[1]
    drawn = np.random.default_rng(seed).integers(runs, size=(resamples, runs))
    ends = np.array([_ends(statistic(point[drawn]), [runs], level) for point in curves])
    return statistic(curves), ends[:, 0], ends[:, 1]


def paired_difference(
    a: Scores,
    b: Scores,
    statistic: Statistic = mean,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """How much higher `a` scores than `b`, where the scores at the same place share a seed.

    What the seeds have in common (the log, the first states) cancels, so this is narrower than the
    difference of two separate intervals.

    Args:
        a, b: scores, or one array of scores a task, alike in shape.
        statistic: of the differences.
        level, resamples, seed: as in `bootstrap_ci`.

    Raises:
        ConfigError: if the shapes differ, or as in `bootstrap_ci`.
    """
    ours, theirs = _strata("the first scores", a), _strata("the second scores", b)
    sizes = [[x.size for x in strata] for strata in (ours, theirs)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"paired scores must match one to one, but the groups hold {sizes[0]} and {sizes[1]} scores; "
            "give both the same seeds, or use probability_of_improvement, which needs no pairs."
        )
    differences = [x - y for x, y in zip(ours, theirs, strict=True)]
    return bootstrap_ci(differences, statistic, level=level, resamples=resamples, seed=seed)


def probability_of_improvement(
    a: Scores, b: Scores, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """How often a run of `a` beats a run of `b`: P(a > b) + P(a = b) / 2, averaged over tasks.

    Where every score of one lies above every score of the other, resampling cannot show doubt and
    the interval is a point; look at `bootstrap_ci` of both instead.

    Args:
        a, b: scores, or one array of scores a task; the number of scores may differ, the tasks may not.
        level, resamples, seed: as in `bootstrap_ci`.

    Raises:
        ConfigError: if the numbers of tasks differ, or as in `bootstrap_ci`.
    """
    ours, theirs = _strata("the first scores", a), _strata("the second scores", b)
    if len(ours) != len(theirs):
        raise ConfigError(f"both must be scored on the same tasks, but there are {len(ours)} and {len(theirs)} groups.")
    _check(level, resamples)
    rng = np.random.default_rng(seed)
    estimate, distribution = 0.0, np.zeros(resamples)
    for x, y in zip(ours, theirs, strict=True):
        wins = ((x[:, None] > y) + 0.5 * (x[:, None] == y)) / (x.size * y.size * len(ours))
        estimate += float(wins.sum())
        for block in _blocks(resamples, x.size + y.size):
            often_x, often_y = (_counts(rng, block.stop - block.start, z.size) for z in (x, y))
            distribution[block] += ((often_x @ wins) * often_y).sum(axis=1)
    return interval_of(estimate, distribution, ours + theirs, level)


def _strata(what: str, groups: Scores) -> list[Float[np.ndarray, " _"]]:
    """The groups as flat float arrays; a flat list of scores is one group."""
    parts: list[Any] = list(groups) if np.iterable(groups) else [groups]
    if all(np.ndim(part) == 0 for part in parts):
        parts = [parts]
    strata = [np.asarray(part, dtype=np.float64).ravel() for part in parts]
    if any(x.size == 0 for x in strata):
        raise ConfigError(f"{what} are empty; an interval needs at least one score in every group.")
    for index, x in enumerate(strata):
        if not np.isfinite(x).all():
            raise ConfigError(
                f"{what} hold {x[~np.isfinite(x)][0]} in group {index}; a run that diverged has no score: "
                "leave it out and say so, or give it the worst score there is."
            )
    return strata


def _blocks(resamples: int, scores: int) -> Iterator[slice]:
    """Slices of the resamples, so small that the scores drawn for one take some megabytes."""
    size = max(1, 1_000_000 // scores)
    return (slice(start, min(start + size, resamples)) for start in range(0, resamples, size))


def _counts(rng: np.random.Generator, resamples: int, scores: int) -> Float[np.ndarray, "resamples scores"]:
    """How often each resample holds each score: all that a statistic of pairs needs to know."""
    return rng.multinomial(scores, np.full(scores, 1 / scores), size=resamples).astype(np.float64)


def _check(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"level must lie between 0 and 1, such as 0.95, but is {level}.")
    if resamples < 1:
        raise ConfigError(f"resamples must be at least 1, but is {resamples}.")


def interval_of(
    estimate: float, distribution: Float[np.ndarray, " resamples"], strata: list[Float[np.ndarray, " _"]], level: float
) -> Interval:
    """The interval that a bootstrap distribution of the scores in `strata` supports."""
    low, high = _ends(distribution, [x.size for x in strata], level)
    return Interval(estimate, low, high, level)


def _ends(distribution: Float[np.ndarray, " resamples"], sizes: list[int], level: float) -> tuple[float, float]:
    """The expanded percentiles of a bootstrap distribution over groups of these sizes."""
    if min(sizes) == 1:  # one score says nothing about the spread
        return -math.inf, math.inf
    scores = sum(sizes)
    freedom = scores - len(sizes)
    t = special.stdtrit(freedom, (1 - level) / 2)
    tail = special.ndtr(math.sqrt(scores / freedom) * t)
    low, high = np.quantile(distribution, [tail, 1 - tail])
    return float(low), float(high)
