"""A deployed policy as pure functions of arrays, which other runtimes can be given.

`act` takes the parts of an observation, the carry and, if the policy draws, a seed, and gives the action and the next
carry. `rewarded` is there if the policy must hear what its actions earned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from habitus.core.errors import ExportError
from habitus.core.policy import Deployed
from habitus.serve.engine import blank
from habitus.train.host import listens

Arrays = Sequence[Any]
Flat = Callable[..., list[Any]]


@dataclasses.dataclass(frozen=True)
class Slot:
    """An array that goes in or comes out.

    Attributes:
        name: `obs`, `carry`, `seed` or `reward`, `action` or `next` (the next carry), with dots where there are parts.
        path: keys and indices that lead to it from the whole observation or carry.
    """

    name: str
    path: tuple[str | int, ...]
    shape: tuple[int, ...]
    dtype: str

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """What JAX calls it."""
        return jax.ShapeDtypeStruct(self.shape, np.dtype(self.dtype))


@dataclasses.dataclass(frozen=True)
class Program:
    """A pure function of arrays, in the order of `inputs`, that gives a list of them, in the order of `outputs`."""

    name: str
    call: Flat
    inputs: list[Slot]
    outputs: list[Slot]

    @property
    def structs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes and types of the inputs."""
        return [slot.struct for slot in self.inputs]


def programs(policy: Deployed) -> tuple[list[Program], list[np.ndarray]]:
    """`act`, and `rewarded` if the policy listens; and the arrays of the first carry.

    Raises:
        ExportError: if the carry changes its form from step to step, or two of its parts would have the same name.
    """
    first = policy.init()
    obs = blank(policy.spec.observation_space)
    carry, form = jax.tree.flatten(jax.tree.map(_raw, first))
    n, m = len(jax.tree.leaves(obs)), len(carry)

    def restored(leaves: Arrays) -> Any:
        return jax.tree.map(_typed, jax.tree.unflatten(form, leaves), first)

    def act(*arrays: Any) -> list[Any]:
        seen = jax.tree.unflatten(jax.tree.structure(obs), arrays[:n])
        data = arrays[n + m] if len(arrays) > n + m else jnp.zeros(2, jnp.uint32)
        key = jax.random.wrap_key_data(data, impl="threefry2x32")
        action, after = policy(seen, restored(arrays[n : n + m]), key)
        return [action, *_leaves(after, form)]

    def rewarded(*arrays: Any) -> list[Any]:
        return _leaves(policy.rewarded(restored(arrays[:-1]), arrays[-1]), form)

    seed, reward = _slots("seed", np.zeros(2, np.uint32)), _slots("reward", np.zeros((), np.float32))
    before, after = _slots("carry", jax.tree.unflatten(form, carry)), _slots("next", jax.tree.unflatten(form, carry))
    inputs = [*_slots("obs", obs), *before]
    action = jax.eval_shape(act, *(slot.struct for slot in inputs))
    outputs = [*_slots("action", action[0]), *after]
    if _reads(act, [*inputs, *seed], len(inputs)):
        inputs += seed
    found = [Program("act", act, inputs, outputs)]
    if listens(policy):
        found.append(Program("rewarded", rewarded, [*before, *reward], after))
    _check(found)
    return found, [np.asarray(x, order="C") for x in carry]


def _leaves(carry: Any, form: Any) -> list[Any]:
    found, own = jax.tree.flatten(jax.tree.map(_raw, carry))
    if own != form:
        raise ExportError(f"the carry begins as {form}, but goes on as {own}; let init() return what a call returns.")
    return found


def _raw(x: Any) -> Any:
    """A leaf of a carry as an array that files can hold: random keys are their data."""
    return jax.random.key_data(x) if _is_key(x) else jnp.asarray(x)


def _typed(x: Any, like: Any) -> Any:
    return jax.random.wrap_key_data(x, impl=jax.random.key_impl(like)) if _is_key(like) else x


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _slots(name: str, tree: Any) -> list[Slot]:
    found = []
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = tuple(next(getattr(k, a) for a in ("key", "idx", "name") if hasattr(k, a)) for k in keys)
        found.append(Slot(".".join(map(str, (name, *path))), path, np.shape(leaf), str(leaf.dtype)))
    return found


def named(slots: Sequence[Slot], kind: str) -> list[Slot]:
    """The slots of a kind, such as all parts of the `carry`."""
    return [slot for slot in slots if slot.name.partition(".")[0] == kind]


def _reads(call: Flat, inputs: Sequence[Slot], which: int) -> bool:
    """Whether an input has a part in what a function gives."""
    traced = jax_export.export(jax.jit(call))(*(slot.struct for slot in inputs))
    return which in traced.module_kept_var_idx


def _check(found: Sequence[Program]) -> None:
    for program in found:
        given = jax.eval_shape(program.call, *program.structs)
        for slot, x in zip(program.outputs, given, strict=True):
            if (x.shape, str(x.dtype)) != (slot.shape, slot.dtype):
                raise ExportError(
                    f"{slot.name} is {slot.dtype}{list(slot.shape)} at first, but {x.dtype}{list(x.shape)} after a "
                    "step; let init() return what a call returns."
                )
        for slots in (program.inputs, program.outputs):
            names = [slot.name for slot in slots]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ExportError(f"two parts would be called {twice[0]}; rename one, without a dot in its name.")
