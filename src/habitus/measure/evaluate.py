"""How good is a policy, and how sure are we."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from habitus.core.errors import ConfigError
from habitus.core.policy import Deployed
from habitus.core.protocols import Policy, require
from habitus.envs.registry import World, make
from habitus.measure.statistics import Interval, bootstrap_ci, iqm, mean
from habitus.train.collect import Episodes, run_episodes
from habitus.train.run import Run
from habitus.train.runtime import prepare


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The episodes of one policy, or of several that differ by their training seed.

    Attributes:
        episodes: one entry a policy: returns, lengths, success, the seed and the costs of every episode.
        costs: names of the world's costs, in order.
    """

    episodes: tuple[Episodes, ...]
    costs: tuple[str, ...] = ()

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted returns, float [policies, episodes]."""
        return np.stack([e.returns for e in self.episodes])

    @property
    def lengths(self) -> np.ndarray:
        """Episode lengths in steps, int [policies, episodes]."""
        return np.stack([e.lengths for e in self.episodes])

    @property
    def success(self) -> np.ndarray | None:
        """Success, bool [policies, episodes], or None where the world does not report it."""
        rows = [e.success for e in self.episodes]
        return None if any(row is None for row in rows) else np.stack([row for row in rows if row is not None])

    @property
    def scores(self) -> np.ndarray:
        """The independent repetitions: mean return of each policy, or each episode of a single one."""
        return self.returns.mean(1) if len(self.episodes) > 1 else self.returns[0]

    def iqm(self, level: float = 0.95) -> Interval:
        """Interquartile mean of the scores, with its bootstrap interval."""
        return bootstrap_ci(self.scores, iqm, level=level)

    def mean(self, level: float = 0.95) -> Interval:
        """Mean of the scores, with its bootstrap interval."""
        return bootstrap_ci(self.scores, mean, level=level)

    def success_rate(self, level: float = 0.95) -> Interval | None:
        """Share of successful episodes, with its bootstrap interval, or None."""
        won = self.success
        if won is None:
            return None
        return bootstrap_ci(won.mean(1) if len(self.episodes) > 1 else won[0].astype(float), mean, level=level)

    def cost_rates(self, level: float = 0.95) -> dict[str, Interval]:
        """Each cost of the world: its mean per step, with its bootstrap interval.

        The repetitions are the policies, or the episodes of a single one, each of which counts alike.
        """
        spent = [e.costs for e in self.episodes if e.costs is not None]
        if len(spent) < len(self.episodes):
            return {}
        if len(spent) > 1:
            rates = np.stack([c.sum(0) / e.lengths.sum() for c, e in zip(spent, self.episodes, strict=True)])
        else:
            rates = spent[0] / self.lengths[0][:, None]
        return {name: bootstrap_ci(rates[:, i], mean, level=level) for i, name in enumerate(self.costs)}

    def rows(self) -> list[tuple[str, str]]:
        """The figures, as (name, text)."""
        unit = (
            f"{len(self.episodes)} seeds of {self.returns.shape[1]}"
            if len(self.episodes) > 1
            else f"{self.returns.shape[1]}"
        )
        out = [
            ("episodes", unit),
            ("return, interquartile mean", str(self.iqm())),
            ("return, mean", str(self.mean())),
            ("worst episode", f"{self.returns.min():.4g}"),
            ("length, mean", f"{self.lengths.mean():.4g}"),
        ]
        rate = self.success_rate()
        out += [] if rate is None else [("success", str(rate))]
        return out + [(f"cost per step, {name}", str(found)) for name, found in self.cost_rates().items()]

    def __str__(self) -> str:
        return "\n".join(f"{name:<28}{value}" for name, value in self.rows())


def evaluate(
    policy: Policy | Sequence[Policy] | Run,
    env: World | None = None,
    episodes: int = 20,
    seed: int = 0,
    **options: Any,
) -> Evaluation:
    """Runs whole episodes and says what they show.

    Args:
        policy: a policy in the user's spaces, several that differ by their training seed, or a run.
        env: a world: a name, an id, or an object; the run's own if it is None.
        episodes: for each policy.
        seed: of the first episode; the following ones count up.
        options: parameters of the world (see `make`).

    Raises:
        ConfigError: if there is nothing to evaluate, or no world to do it in.
        SpaceMismatch: if the policy acts in other spaces than the world has.
    """
    prepare()
    require(episodes > 0, f"episodes must be above 0, but is {episodes}.")
    if env is None and isinstance(policy, Run):
        env = policy.env
    if env is None:
        raise ConfigError("evaluate() needs a world to evaluate in; give env=...")
    policies = policy.policies if isinstance(policy, Run) else [policy] if isinstance(policy, Policy) else list(policy)
    require(len(policies) > 0, "evaluate() needs at least one policy.")
    world = make(env, **options)
    for one in policies:
        if isinstance(one, Deployed):
            one.spec.check_same(world.spec)
    return Evaluation(tuple(run_episodes(one, world, episodes, seed) for one in policies), world.costs)
