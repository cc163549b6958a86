"""Cloning steps beside any learner with a stochastic actor: what it keeps to imitate, and how it does."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.errors import ConfigError
from habitus.core.experience import Transition
from habitus.core.protocols import require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, Shared, descend, when
from habitus.nets.distributions import Distribution
from habitus.train.ranking import Ranking, Rows, Watch

S = TypeVar("S", bound=eqx.Module)


class Live(eqx.Module):
    """Demonstrations that the learner's own better episodes replace."""

    ranking: Ranking
    watch: Watch


Memory = Live | Shared | None


class Imitating(eqx.Module):
    """A part of a learner whose state has `actor`, `actor_opt`, `normaliser` and the `memory` that `remember` makes.

    It calls `watch` with each roll-out and then `imitate`. What a live memory begins with is the log
    of `spec`, ranked like any other episodes; without a log that is RAPID.
    """

    buffer: Literal["live", "fixed"] = "live"  # whether own episodes join the demonstrations
    bc_updates: int = 5  # cloning steps after each update; authors' code
    bc_batch_size: int = 256  # pairs in one of them; authors' code
    capacity: int = 10_000  # pairs kept; authors' code
    return_weight: float = 1.0  # of the episode's return, in its rank; authors' code
    local_weight: float = 0.1  # of its share of observations that are no repetition; authors' code
    global_weight: float = 0.001  # of how rare its observations are; authors' code
    per_level: bool = False  # keep only the best episode that begins with the same observation

    def __check_init__(self) -> None:
        require(self.buffer in ("live", "fixed"), f"buffer must be 'live' or 'fixed', but is {self.buffer!r}.")
        require(self.bc_updates >= 0, f"bc_updates must be 0 or more, but is {self.bc_updates}.")
        for name in ("bc_batch_size", "capacity"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more, but is {getattr(self, name)}.")
        for name in ("return_weight", "local_weight", "global_weight"):
            require(getattr(self, name) >= 0, f"{name} must be 0 or more, but is {getattr(self, name)}.")

    @property
    @abc.abstractmethod
    def cloning_optimizer(self) -> optax.GradientTransformation:
        """What descends on the cloning loss; its state is that of the actor's own optimiser."""

    @property
    def _weights(self) -> tuple[Any, Any, Any]:
        return self.return_weight, self.local_weight, self.global_weight

    def remember(self, spec: Spec, num_envs: int) -> Memory:
        """The memory at the start.

        Raises:
            ConfigError: if there would be nothing to imitate, or episodes have no greatest length.
        """
        if self.bc_updates == 0:
            return None
        log = spec.dataset
        if self.buffer == "fixed":
            if log is None:
                raise ConfigError(
                    "a fixed buffer holds demonstrations only, so it needs some: give data=..., or 'live'."
                )
            return Shared(self._ranked(spec))
        if spec.horizon is None:
            raise ConfigError(
                "whole episodes are ranked, and this world's have no greatest length; wrap it in TimeLimit, or make "
                "it with max_episode_steps=..."
            )
        ranking = self._ranked(spec)
        return Live(ranking, Watch.start(ranking, num_envs, spec.horizon, 0 if log is None else len(log.starts)))

    def _ranked(self, spec: Spec) -> Ranking:
        """The demonstrations, if any, in their order."""
        if spec.dataset is None:
            return Ranking.empty(spec, self.capacity, self.per_level)
        with jax.ensure_compile_time_eval():  # else XLA computes this from constants while it compiles, slowly
            rows = Rows.of_log(spec.dataset)
        rows = jax.lax.optimization_barrier(rows)
        empty = Ranking.empty(spec, self.capacity, self.per_level)
        return empty.insert(rows, jnp.ones(len(rows.ret), bool), self._weights)

    def watch(self, memory: Memory, rollout: Transition) -> Memory:
        """The memory after some more transitions [time, env]: their finished episodes are ranked with the others.

        Raises:
            ConfigError: if they are of another number of copies than `remember` was told.
        """
        if not isinstance(memory, Live):
            return memory
        copies, expected = rollout.reward.shape[1], len(memory.watch.length)
        if copies != expected:
            raise ConfigError(
                f"the roll-outs are of {copies} copies of the world, but the learner watches {expected}; give it "
                f"num_envs={copies}."
            )
        watch, rows, known = memory.watch.add(rollout)
        return Live(memory.ranking.insert(rows, known, self._weights), watch)

    def cloning_loss(
        self, actor: Callable[..., Distribution], state: Any, batch: Rows, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`-mean log pi(a|s)` over remembered pairs."""
        obs = batch.obs.astype(jnp.float32) if batch.obs.dtype == bool else batch.obs
        log_prob = jax.vmap(lambda o, a: actor(state.normaliser(o)).log_prob(a))(obs, batch.action)
        return -log_prob.mean(), {"cloning_loss": -log_prob.mean()}

    def imitate(self, state: S, key: PRNGKeyArray) -> tuple[S, Metrics]:
        """`bc_updates` cloning steps of the actor, none while there is nothing to imitate."""
        memory: Memory = state.memory  # type: ignore[attr-defined]
        if memory is None:
            return state, {}
        ranking: Ranking = memory.ranking if isinstance(memory, Live) else memory.value

        def step(actors: Any, key: PRNGKeyArray) -> tuple[Any, Metrics]:
            batch = ranking.sample(key, self.bc_batch_size)
            *actors, found = descend(self.cloning_optimizer, self.cloning_loss, *actors, state, batch, key)
            return tuple(actors), found

        def steps(actors: Any) -> tuple[Any, Metrics]:
            arrays, static = eqx.partition(actors, eqx.is_array)

            def one(arrays: Any, key: PRNGKeyArray) -> tuple[Any, Metrics]:
                after, found = step(eqx.combine(arrays, static), key)
                return eqx.filter(after, eqx.is_array), found

            arrays, found = jax.lax.scan(one, arrays, jax.random.split(key, self.bc_updates))
            return eqx.combine(arrays, static), jax.tree.map(jnp.mean, found)

        before = (state.actor, state.actor_opt)  # type: ignore[attr-defined]
        (actor, actor_opt), found = when(ranking.size > 0, steps, before)
        kept = jnp.arange(self.capacity) < ranking.size
        earned = jnp.where(kept, ranking.rows.ret, 0.0).sum() / jnp.maximum(ranking.size, 1)
        found |= {"remembered": ranking.size.astype(jnp.float32), "remembered_return": earned}
        return dataclasses.replace(state, actor=actor, actor_opt=actor_opt), found  # type: ignore[type-var, call-arg]
