"""Whole episodes as a source: for learners to whom the step of an episode matters."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray

from habitus.core.experience import Trajectory, Transition
from habitus.core.protocols import Env, Explorer, HostEnv, Policy, Source, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics
from habitus.data.dataset import Dataset
from habitus.envs.host import HostCanonical
from habitus.envs.registry import canonical
from habitus.envs.wrappers import Canonical
from habitus.train.collect import EpisodeTally, HostCollector, collect, start


class WholeEpisodes(Source):
    """Each draw is one fresh episode of each of `num_envs` copies of a world, from start to end.

    A batch is a `Trajectory` [num_envs, horizon], not `valid` after the end of an episode. An episode counts
    as `horizon` environment steps, however long it is.
    """

    env: Canonical | HostCanonical
    num_envs: int
    log: Dataset | None

    def __init__(self, env: Env | HostEnv, num_envs: int = 1, log: Dataset | None = None):
        """Args:
            env: a world in the user's spaces whose episodes have a longest length.
            num_envs: copies that act side by side; a host world says so itself.
            log: handed to the learner as `Spec.dataset`; never drawn from.

        Raises:
            ConfigError: if episodes need not end, or a count is not positive.
            SpaceMismatch: if the log and the world differ in their spaces.
        """
        self.env = canonical(env)
        self.num_envs = self.env.num_envs if isinstance(self.env, HostEnv) else num_envs
        require(self.num_envs > 0, f"num_envs must be above 0, but is {num_envs}.")
        require(
            self.env.env.horizon is not None,
            "whole episodes need a world whose episodes end: make it with max_episode_steps=...",
        )
        if log is not None:
            self.env.env.spec.check_same(log.spec, "the log")
        self.log = None if log is None else log.canonical()

    @property
    def horizon(self) -> int:
        """The longest episode in steps."""
        assert self.env.env.horizon is not None
        return self.env.env.horizon

    @property
    def pure(self) -> bool:
        return self.env.pure

    @property
    def acts(self) -> bool:
        return True

    @property
    def spec(self) -> Spec:
        return dataclasses.replace(self.env.env.spec, dataset=self.log)

    def init(self, explorer: Explorer, key: PRNGKeyArray) -> Any:
        if isinstance(self.env, HostEnv):
            return HostEpisodes(int(jax.random.randint(key, (), 0, 2**30)))
        return EpisodeTally.start(self.num_envs, self.env.costs)

    def draw(self, state: Any, explorer: Explorer, key: PRNGKeyArray) -> tuple[Any, Trajectory]:
        if isinstance(state, HostEpisodes):
            assert isinstance(self.env, HostCanonical)
            return state, state.draw(self.env, explorer, self.horizon)
        assert isinstance(self.env, Canonical)
        batch = whole_episodes(self.env, explorer, self.num_envs, self.horizon, key)
        ends = batch.valid & (batch.steps.done | (jnp.arange(self.horizon) == self.horizon - 1))
        cost = None if batch.steps.cost is None else jnp.where(batch.valid[..., None], batch.steps.cost, 0.0)
        reward, zero = jnp.where(batch.valid, batch.steps.reward, 0.0), jnp.zeros(self.num_envs)
        fresh = dataclasses.replace(state, ret=zero, length=zero.astype(jnp.int32))
        tally = fresh.add(reward.T, ends.T, None if cost is None else jnp.swapaxes(cost, 0, 1))
        if state.steps is not None:
            tally = dataclasses.replace(tally, steps=state.steps + batch.valid.sum())
        return tally, batch

    def draws(self, steps: int) -> int:
        return -(-steps // (self.num_envs * self.horizon))

    def steps(self, draws: int) -> int:
        return draws * self.num_envs * self.horizon

    def report(self, state: Any) -> tuple[Any, Metrics]:
        return (state, state.report()) if isinstance(state, HostEpisodes) else state.report()

    def snapshot(self, state: Any) -> Any:
        return {"seed": np.asarray(state.seed)} if isinstance(state, HostEpisodes) else state

    def restore(self, state: Any, saved: Any) -> Any:
        if isinstance(state, HostEpisodes):
            state.seed = int(saved["seed"])
            return state
        return saved


def whole_episodes(env: Env, explorer: Policy, num_envs: int, horizon: int, key: PRNGKeyArray) -> Trajectory:
    """One episode of each of `num_envs` copies of a compiled world, [num_envs, horizon]; both in the same spaces."""
    start_key, key = jax.random.split(key)
    _, rows = collect(env, start(env, num_envs, explorer, start_key), explorer, key, horizon)
    steps = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rows)
    over = jnp.cumsum(steps.done, 1) - steps.done
    return trajectory(steps, over == 0)


def trajectory(steps: Transition, valid: Bool[Array, "episodes horizon"]) -> Trajectory:
    """Episodes from their start, with the time and the return to go of each row."""
    time = jnp.broadcast_to(jnp.arange(valid.shape[1], dtype=jnp.int32), valid.shape)
    paid = jnp.where(valid, steps.reward, 0.0)
    return Trajectory(steps, valid, time, jnp.cumsum(paid[:, ::-1], 1)[:, ::-1])


class HostEpisodes:
    """What a source of whole episodes remembers of a world in Python: the next seed, and episodes since the last
    report. Changes in place."""

    def __init__(self, seed: int):
        self.seed = seed
        self.returns: list[float] = []
        self.lengths: list[int] = []

    def draw(self, env: HostCanonical, explorer: Any, horizon: int) -> Trajectory:
        """One episode of each copy."""
        collector = HostCollector(env, explorer, self.seed)
        self.seed += env.num_envs
        rows: list[Transition] = []
        valid, over = [], np.zeros(env.num_envs, bool)
        for _ in range(horizon):
            valid.append(~over)
            rows.append(collector.step(explorer) if not over.all() else rows[-1])
            over |= rows[-1].terminated | rows[-1].truncated
        steps = jax.tree.map(lambda *xs: np.stack(xs, 1), *rows)
        shown = np.stack(valid, 1)
        self.returns += np.where(shown, steps.reward, 0.0).sum(1).tolist()
        self.lengths += shown.sum(1).tolist()
        return trajectory(steps, jnp.asarray(shown))

    def report(self) -> Metrics:
        """As `EpisodeTally.report`."""
        found: dict[str, list[Any]] = {"return": self.returns or [np.nan], "length": self.lengths or [np.nan]}
        metrics = {f"episode/{name}": jnp.asarray(float(np.mean(values))) for name, values in found.items()}
        metrics["episode/finished"] = jnp.asarray(float(len(self.returns)))
        self.returns, self.lengths = [], []
        return metrics
