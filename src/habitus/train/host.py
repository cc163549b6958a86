"""What the loop needs for worlds that run in Python: compiled acting and updating, called cheaply, and
a ring buffer in NumPy.

Calling a compiled function with a module costs a millisecond of Python to take the module apart. At
one call for each step of a world that is more than the step itself, so here trees are taken apart once
and the compiled programs are called with flat lists of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from habitus.core.experience import Transition
from habitus.core.protocols import Policy
from habitus.core.spec import Spec
from habitus.core.trees import is_array
from habitus.train.buffer import empty_transitions, stored

Arrays = list[Array]


def flatten(tree: PyTree) -> tuple[Arrays, Hashable]:
    """The arrays of a tree, and the rest of it as something that can be looked up."""
    leaves, structure = jax.tree.flatten(tree)
    rest = tuple(None if is_array(x) else x for x in leaves)
    return [x for x in leaves if is_array(x)], (structure, rest, tuple(is_array(x) for x in leaves))


def unflatten(arrays: Arrays, rest: Any) -> PyTree:
    """Inverse of `flatten`."""
    structure, others, mask = rest
    queue = iter(arrays)
    return jax.tree.unflatten(structure, [next(queue) if own else x for own, x in zip(mask, others, strict=True)])


class Actor:
    """A policy for a batch of observations, compiled, with its arrays at hand."""

    def __init__(
        self,
        program: Callable[..., tuple[Array, Any]],
        arrays: Arrays,
        init: Callable[[], Any],
        hear: Callable[..., Any] | None = None,
    ):
        """Args:
        hear: the policy's `rewarded` for a batch, compiled; None if it does not listen.
        """
        self.program, self.arrays, self.init, self.hear = program, arrays, init, hear

    @classmethod
    def of(cls, policy: Policy) -> Actor:
        """Takes a policy apart."""
        arrays, rest = flatten(policy)
        return cls(_acting(rest), arrays, policy.init, _hearing(rest) if listens(policy) else None)

    def __call__(self, obs: Any, carry: Any, key: PRNGKeyArray, tick: int) -> tuple[np.ndarray, Any]:
        """Actions for the batch; waits for the policy's parameters. `tick` makes successive calls differ."""
        action, carry = self.program(self.arrays, obs, carry, key, np.uint32(tick))
        return np.asarray(action), carry

    def rewarded(self, carry: Any, reward: Any) -> Any:
        """The carries of the batch once rewards [batch] are heard; costs nothing if the policy does not listen."""
        return carry if self.hear is None else self.hear(self.arrays, carry, np.asarray(reward, np.float32))


def listens(policy: Policy) -> bool:
    """Whether rewards change the carry of a policy, or of one that it holds."""
    carry = policy.init()
    if not jax.tree.leaves(carry):
        return False
    traced = jax.make_jaxpr(policy.rewarded)(carry, np.float32(0)).jaxpr
    return list(traced.outvars) != list(traced.invars[:-1])


def act_on_batch(policy: Policy, obs: Any, carry: Any, key: PRNGKeyArray, tick: Array) -> tuple[Array, Any]:
    """The policy over a batch, one key each."""
    keys = jax.random.split(jax.random.fold_in(key, tick), jax.tree.leaves(obs)[0].shape[0])
    return jax.vmap(policy)(obs, carry, keys)


@cache
def _acting(rest: Any) -> Callable[..., tuple[Array, Any]]:
    return jax.jit(lambda arrays, *inputs: act_on_batch(unflatten(arrays, rest), *inputs))


@cache
def _hearing(rest: Any) -> Callable[..., Any]:
    return jax.jit(lambda arrays, carry, reward: jax.vmap(unflatten(arrays, rest).rewarded)(carry, reward))


class HostBuffer:
    """The last `capacity` transitions; changes in place."""

    def __init__(self, spec: Spec, capacity: int):
        self.data = jax.tree.map(np.array, empty_transitions(spec, capacity))
        self.capacity, self.position, self.size = capacity, 0, 0

    def add(self, rows: Transition) -> None:
        """Overwrites the oldest rows."""
        rows, n = stored(rows, self.data), rows.size
        at = slice(self.position, self.position + n)
        for store, new in zip(jax.tree.leaves(self.data), jax.tree.leaves(rows), strict=True):
            store[at] = new
        self.position, self.size = (self.position + n) % self.capacity, min(self.size + n, self.capacity)

    def sample(self, rng: np.random.Generator, n: int) -> Transition:
        """`n` rows, uniformly and with replacement."""
        rows = rng.integers(0, self.size, n)
        return jax.tree.map(lambda x: x[rows], self.data)

    def arrays(self) -> dict[str, np.ndarray]:
        """Contents and position, for a checkpoint; only the rows that are filled."""
        leaves = jax.tree.leaves(jax.tree.map(lambda x: x[: self.size], self.data))
        head = {"position": np.asarray(self.position), "size": np.asarray(self.size)}
        return head | {f"column{i}": leaf for i, leaf in enumerate(leaves)}

    def load(self, saved: dict[str, np.ndarray]) -> None:
        """Puts the contents of a checkpoint back."""
        self.position, self.size = int(saved["position"]), int(saved["size"])
        for i, store in enumerate(jax.tree.leaves(self.data)):
            store[: self.size] = saved[f"column{i}"]
