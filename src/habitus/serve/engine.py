"""A policy compiled for serving: for one observation and for a batch, for one action and for a chunk of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from habitus.core.domains import require
from habitus.core.policy import Deployed
from habitus.core.trees import select
from habitus.serve.protocol import ServeError, array
from habitus.train.host import flatten, listens, unflatten


class Engine:
    """What acts for all sessions. Everything is compiled by `compile`, and nothing afterwards.

    Attributes:
        batch: most observations of one request.
        chunk: actions of an answer that is a chunk: what the policy does next if it is shown the same again.
    """

    def __init__(self, policy: Deployed, batch: int = 1, chunk: int = 1):
        require(batch >= 1 and chunk >= 1, f"batch is {batch} and chunk {chunk}; both must be 1 or more.")
        self.policy, self.spec, self.batch, self.chunk = policy, policy.spec, batch, chunk
        # the policies of a run are kept in NumPy
        self.arrays, rest = flatten(jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, policy))
        self.hears = listens(policy)
        fresh = policy.init()
        self.single = jax.tree.map(np.asarray, fresh)
        self.many = jax.tree.map(lambda x: np.broadcast_to(x, (batch, *x.shape)).copy(), self.single)
        self._one = {n: jax.jit(_program(rest, n, False)) for n in {1, chunk}}
        self._many = {n: jax.jit(_program(rest, n, True)) for n in {1, chunk}}
        self._hear = jax.jit(lambda arrays, carry, reward: unflatten(arrays, rest).rewarded(carry, reward))
        self._hear_many = jax.jit(lambda arrays, *x: jax.vmap(unflatten(arrays, rest).rewarded)(*x))
        self.obs_bytes = sum(np.asarray(x).nbytes for x in jax.tree.leaves(blank(self.spec.observation_space)))

    def compile(self) -> float:
        """Runs everything once; returns the seconds that took."""
        began = time.perf_counter()
        obs, key = blank(self.spec.observation_space), jax.random.key(0)
        for batched in (False, True) if self.batch > 1 else (False,):
            seen = jax.tree.map(lambda x: np.stack([x] * self.batch), obs) if batched else obs
            carry = self.many if batched else self.single
            for n in {1, self.chunk}:
                for _ in range(2):  # the carry that comes back is the compiled program's own
                    _, carry, _ = self._run(seen, carry, key, 0, n, batched)
            self.hear(carry, np.zeros(self.batch if batched else (), np.float32), batched)
        return time.perf_counter() - began

    def act(
        self, obs: Any, carry: Any, key: Any, tick: int, n: int, batched: bool
    ) -> tuple[np.ndarray, Any, dict[str, np.ndarray]]:
        """`n` actions (a leading axis if above 1), the carry after them, and what the policy reports after the first.

        Raises:
            ServeError: `policy_failed`, if an action is not finite.
        """
        action, carry, report = self._run(obs, carry, key, tick, n, batched)
        if not np.isfinite(action).all():
            raise ServeError("policy_failed", "the policy's action is not finite; the session is as it was before.")
        return action, carry, report

    def _run(self, obs: Any, carry: Any, key: Any, tick: int, n: int, batched: bool) -> tuple[np.ndarray, Any, Any]:
        program = (self._many if batched else self._one)[n]
        action, carry, report = program(self.arrays, obs, carry, key, np.uint32(tick))
        return np.asarray(action), carry, {name: np.asarray(value) for name, value in report.items()}

    def hear(self, carry: Any, reward: np.ndarray, batched: bool) -> Any:
        """The carry once a reward is heard."""
        if not self.hears:
            return carry
        return (self._hear_many if batched else self._hear)(self.arrays, carry, np.asarray(reward, np.float32))

    def observation(self, value: Any, batch: int | None) -> Any:
        """An observation of a message, or a batch of them padded to `self.batch` by repeating the last.

        Raises:
            ServeError: `malformed`, `wrong_shape` or `not_finite`.
        """
        lead = () if batch is None else (batch,)
        found = _read(self.spec.observation_space, value, lead, "obs")
        if batch is None or batch == self.batch:
            return found
        rows = np.minimum(np.arange(self.batch), batch - 1)
        return jax.tree.map(lambda x: x[rows], found)


def _program(rest: Any, n: int, batched: bool) -> Callable[..., Any]:
    def run(arrays: Any, obs: Any, carry: Any, key: Any, tick: Any) -> tuple[Any, Any, Any]:
        policy = unflatten(arrays, rest)

        def one(carry: Any, tick: Any) -> tuple[Any, tuple[Any, Any]]:
            own = select(tick == 0, key, jax.random.fold_in(key, tick))  # as in a `Session`
            if batched:
                keys = jax.random.split(own, jax.tree.leaves(obs)[0].shape[0])
                action, after = jax.vmap(policy)(obs, carry, keys)
                # the actions say how many there are, where the carry is empty
                return after, (action, jax.vmap(lambda own, _: policy.report(own))(after, action))
            action, after = policy(obs, carry, own)
            return after, (action, policy.report(after))

        if n == 1:
            carry, (action, report) = one(carry, tick)
            return action, carry, report
        carry, (actions, reports) = jax.lax.scan(one, carry, tick + jnp.arange(n, dtype=jnp.uint32))
        return actions, carry, jax.tree.map(lambda x: x[0], reports)

    return run


def blank(space: spaces.Space) -> Any:
    """One observation of a space."""
    if isinstance(space, spaces.Dict):
        return {name: blank(part) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(blank(part) for part in space.spaces)
    kind = np.float32 if np.dtype(space.dtype).kind == "f" else np.int32  # type: ignore[arg-type]
    kind = space.dtype if np.dtype(space.dtype) == np.uint8 else kind  # type: ignore[assignment,arg-type]
    low = np.full(space.shape or (), getattr(space, "start", 0))
    return low.astype(kind)


def _read(space: spaces.Space, value: Any, lead: tuple[int, ...], name: str) -> Any:
    """A value of a message as one of a space, with leading axes."""
    if isinstance(space, spaces.Dict):
        if not isinstance(value, dict) or set(value) != set(space.spaces):
            raise ServeError("wrong_shape", f"{name} must be a map of {', '.join(space.spaces)}.")
        return {key: _read(part, value[key], lead, f"{name}.{key}") for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, list) or len(value) != len(space.spaces):
            raise ServeError("wrong_shape", f"{name} must be a list of {len(space.spaces)} parts.")
        return tuple(_read(p, v, lead, f"{name}.{i}") for i, (p, v) in enumerate(zip(space.spaces, value, strict=True)))
    found, wanted = array(value), (*lead, *(space.shape or ()))
    if found.shape != wanted:
        raise ServeError("wrong_shape", f"{name} has shape {list(found.shape)}, but must have {list(wanted)}.")
    if not np.isfinite(found).all():
        raise ServeError("not_finite", f"{name} holds NaN or infinity; send only finite numbers.")
    example = blank(space)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = found.astype(example.dtype)
    if not np.isfinite(cast).all() or (example.dtype.kind != "f" and not np.array_equal(cast, found)):
        raise ServeError("wrong_shape", f"{name} holds numbers that {example.dtype} cannot.")
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        last = example + (space.n if isinstance(space, spaces.Discrete) else space.nvec) - 1
        if (cast < example).any() or (cast > last).any():
            raise ServeError("wrong_shape", f"{name} holds integers that are not in {space}.")
    return cast
