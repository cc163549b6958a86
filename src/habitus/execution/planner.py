"""What plans: a chunk of future actions for a window of observations.

The rows of a chunk are steps of the world. With `observe` observations in the window and its newest taken now,
row `observe - 1` is the action of now (Chi et al. 2023, "Diffusion Policy", RSS).
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from habitus.core.domains import require
from habitus.core.errors import ConfigError, SpaceMismatch
from habitus.core.experience import Obs
from habitus.core.trees import select


class Start(eqx.Module):
    """A chunk to go on from, and the noise levels on the way down.

    A planner that refines its chunk step by step makes one network call for each row of `levels`.

    Attributes:
        chunk: the noisy chunk.
        levels: of each row before each call, from 0; -1 is clean, and such a row is left as it is.
        after: of each row after each call; -1 is clean.
    """

    chunk: Float[Array, "rows columns"]
    levels: Int[Array, "calls rows"]
    after: Int[Array, "calls rows"]


class Plan(eqx.Module):
    """What a planner answers.

    Attributes:
        chunk: actions, one a row; or whatever else a fast policy can read, such as a latent.
        calls: how many network calls it took.
    """

    chunk: Float[Array, "rows columns"]
    calls: Int[Array, ""]


class Planner(eqx.Module):
    """A chunk policy: `planner(window, key, start=None) -> Plan`, for one window, without memory."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a chunk."""

    @abc.abstractmethod
    def blank(self) -> Obs:
        """One observation of zeros: its structure, shapes and types."""

    def candidate(self, i: Int[Array, ""], n: int) -> Planner:
        """What draws candidate `i` of `n`, for planners whose candidates differ by more than chance."""
        del i, n
        return self

    @abc.abstractmethod
    def __call__(self, window: Obs, key: PRNGKeyArray, start: Start | None = None) -> Plan:
        """A chunk for the last observations [observe, ...], the newest one last.

        Args:
            start: a chunk to go on from instead of pure noise, for planners that can.
        """


class Sampled(Planner):
    """Plans by a function that draws a chunk, such as a flow or one of the samplers.

    Attributes:
        draw: `draw(window, key) -> chunk`.
        length, action_size: shape of a chunk.
        obs_shape: of one observation, of real numbers.
        calls: network calls of one plan, to be reported.

    Raises:
        ConfigError: if a count is below 1.
    """

    draw: Callable[[Obs, PRNGKeyArray], Float[Array, "rows columns"]]
    length: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    obs_shape: tuple[int, ...] = eqx.field(static=True)
    calls: int = eqx.field(default=1, static=True)

    def __check_init__(self) -> None:
        for name in ("length", "action_size", "calls"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more, but is {getattr(self, name)}.")

    @property
    def shape(self) -> tuple[int, int]:
        return self.length, self.action_size

    def blank(self) -> Array:
        return jnp.zeros(self.obs_shape)

    def __call__(self, window: Obs, key: PRNGKeyArray, start: Start | None = None) -> Plan:
        if start is not None:
            raise ConfigError("this planner draws from nothing only; use Denoising to go on from a chunk.")
        return Plan(self.draw(window, key), jnp.asarray(self.calls, jnp.int32))


class BestPlan(Planner):
    """Draws `n` plans and keeps the one that a scorer likes best; of equals, the first.

    Candidate i has the key `fold_in(key, i)`, so those of a smaller n are among those of a larger one (unless the
    planner's `candidate` depends on n). A candidate whose score is not a number is never preferred to one whose score
    is. Network calls of all of them are counted.

    J. Song et al., "Hume: Introducing System-2 Thinking in Visual-Language-Action Model", 2025 (best of N by value).

    Attributes:
        planner: what draws.
        scorer: `scorer(window, chunk) -> score`.
        n: how many are drawn.

    Raises:
        ConfigError: if n is below 1.
    """

    planner: Planner
    scorer: Callable[[Obs, Array], Float[Array, ""]]
    n: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        require(self.n >= 1, f"n must be 1 or more, but is {self.n}.")

    @property
    def shape(self) -> tuple[int, int]:
        return self.planner.shape

    def blank(self) -> Obs:
        return self.planner.blank()

    def __call__(self, window: Obs, key: PRNGKeyArray, start: Start | None = None) -> Plan:
        def draw(i: Int[Array, ""], key: PRNGKeyArray) -> Plan:
            return self.planner.candidate(i, self.n)(window, key, start)

        drawn = jax.vmap(draw)(jnp.arange(self.n), candidate_keys(key, self.n))
        best = best_of(jax.vmap(lambda chunk: self.scorer(window, chunk))(drawn.chunk))
        return Plan(drawn.chunk[best], drawn.calls.sum().astype(jnp.int32))


def candidate_keys(key: PRNGKeyArray, n: int) -> Key[Array, "n"]:
    """`n` keys; those of a smaller n are the first of these."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))


def best_of(scores: Float[Array, "n"]) -> Int[Array, ""]:
    """Index of the highest score, the first among equals; NaN is below every number."""
    return jnp.argmax(jnp.where(jnp.isnan(scores), -jnp.inf, scores))


def empty_window(planner: Planner, observe: int) -> Obs:
    """A window of zeros [observe, ...]."""
    return jax.tree.map(lambda x: jnp.zeros((observe, *jnp.shape(x)), jnp.asarray(x).dtype), planner.blank())


def seen(window: Obs, obs: Obs, started: Bool[Array, ""]) -> Obs:
    """The window once `obs` was seen; the first observation of an episode fills all of it.

    Raises:
        SpaceMismatch: if the observation has not the structure, shape and type of those in the window.
    """
    expected = jax.tree.map(lambda x: (x.shape[1:], str(x.dtype)), window)
    found = jax.tree.map(lambda x: (jnp.shape(x), str(jnp.asarray(x).dtype)), obs)
    if expected != found:
        raise SpaceMismatch(
            f"the observation is {found}, but the planner expects {expected} (shape and type of each part); "
            "let its blank() return what it will be shown."
        )

    def push(past: Array, new: Array) -> Array:
        following = jnp.concatenate([past[1:], jnp.asarray(new)[None]])
        return jnp.where(started, following, jnp.broadcast_to(new, past.shape))

    return jax.tree.map(push, window, obs)


def when_due(due: Bool[Array, ""], act: Callable[[], Any], otherwise: Any) -> Any:
    """`act()` if `due`, else `otherwise`, of the same structure.

    Under any number of `jax.vmap`s the act is skipped in steps in which it is due for none; `lax.cond` alone
    would then run it always.
    """
    return jax.lax.cond(eqxi.unvmap_any(due), lambda: select(due, act(), otherwise), lambda: otherwise)


def check_horizon(planner: Planner, execute: int, observe: int) -> None:
    """Raises `ConfigError` unless a chunk holds the rows `observe - 1` to `observe - 2 + execute`."""
    require(execute >= 1 and observe >= 1, f"execute is {execute} and observe {observe}; both must be 1 or more.")
    require(
        planner.shape[0] >= observe - 1 + execute,
        f"a plan of {planner.shape[0]} rows is too short for observe={observe} and execute={execute}, which need "
        f"observe - 1 + execute = {observe - 1 + execute} rows; plan further ahead or execute fewer.",
    )
