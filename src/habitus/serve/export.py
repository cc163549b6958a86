"""Policies as files that act without habitus: ONNX for any runtime, StableHLO for JAX and XLA, or the weights.

What is exported is the deployed policy as pure functions of arrays, so that normalisation, clipping and memory are
inside. `act` takes the parts of an observation, the carry and, if the policy draws, a seed, and gives the action and
the next carry. `rewarded` is there if the policy must hear what its actions earned.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jax import export as jax_export
from jax.extend.core import jaxpr_as_fun
from safetensors.numpy import save_file

from habitus.core.domains import require
from habitus.core.errors import ConfigError, ExportError, MissingExtra, suggest
from habitus.core.policy import Deployed
from habitus.core.spec import space_to_json
from habitus.serve.engine import blank
from habitus.serve.lowering import lower
from habitus.train.host import listens

# How far results may lie from JAX's, relative to the larger of 1 and the largest entry of an array.
TOLERANCE = {"onnx": 1e-5, "stablehlo": 1e-6, "safetensors": 0.0}
NEEDS = {"onnx": ("jax2onnx", "onnx", "onnxruntime"), "stablehlo": ("flatbuffers",), "safetensors": ()}
PLATFORMS = ("cpu", "cuda")  # that a StableHLO program runs on

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


def export(policy: Deployed, to: str, folder: str | Path, *, episodes: int = 4, steps: int = 8, seed: int = 0) -> Path:
    """Writes a policy as files that act without habitus, once they were seen to do what it does.

    The folder then holds `manifest.json` (spaces, names, shapes and types), `carry.safetensors` (the carry that an
    episode begins with), and `policy.onnx` or `policy.stablehlo`, with `rewarded.*` if the policy listens to rewards;
    or what `Deployed.save` writes.

    Args:
        to: `onnx`, `stablehlo` (read by `jax.export.deserialize`) or `safetensors`.
        episodes, steps: how long the files are compared with the policy, on random observations; the carry of each
            goes its own way within an episode.
        seed: of the comparison.

    Raises:
        ConfigError: for another format or a number out of its domain.
        MissingExtra: if the extra of the format's name is not installed; `safetensors` needs none.
        ExportError: if the policy cannot be said in this format, or its files act differently. Nothing is written.
    """
    if to not in TOLERANCE:
        raise ConfigError(f"policies are not exported to {to!r}: {suggest(to, list(TOLERANCE))}")
    if not isinstance(policy, Deployed):
        raise ConfigError(f"export needs a deployed policy, but got a {type(policy).__name__}; see Deployed.of.")
    require(episodes >= 1 and steps >= 1, f"episodes is {episodes} and steps {steps}; both must be 1 or more.")
    if not all(importlib.util.find_spec(name) for name in NEEDS[to]):
        raise MissingExtra(f"export to {to}", to)
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    found, carry = programs(policy)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as where:
        made = Path(where)
        theirs = _write(policy, found, to, made)
        check = _compared(policy, found, theirs, carry, TOLERANCE[to], (episodes, steps), np.random.default_rng(seed))
        slots = found[0].inputs
        save_file({s.name: x for s, x in zip(_named(slots, "carry"), carry, strict=True)}, made / "carry.safetensors")
        (made / "manifest.json").write_text(json.dumps(_manifest(policy, found, to, check), indent=1))
        folder.mkdir(exist_ok=True)
        for file in sorted(made.iterdir(), key=lambda file: file.name == "manifest.json"):
            os.replace(file, folder / file.name)
    return folder


# --- the policy as functions of arrays


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


def _named(slots: Sequence[Slot], kind: str) -> list[Slot]:
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


# --- the formats


def _write(policy: Deployed, found: Sequence[Program], to: str, folder: Path) -> list[Flat]:
    """Writes the files and reads them back; what they hold, callable."""
    if to == "safetensors":
        policy.save(folder)
        again, _ = programs(Deployed.load(folder))
        return [jax.jit(program.call) for program in again]
    write, read = (_write_onnx, _read_onnx) if to == "onnx" else (_write_stablehlo, _read_stablehlo)
    made = []
    for program in found:
        file = folder / _file(program, to)
        write(program, file)
        made.append(read(program, file))
    return made


def _file(program: Program, to: str) -> str:
    return f"{'policy' if program.name == 'act' else program.name}.{to}"


def _write_stablehlo(program: Program, file: Path) -> None:
    traced = jax_export.export(jax.jit(program.call), platforms=PLATFORMS)(*program.structs)
    file.write_bytes(traced.serialize())


def _read_stablehlo(program: Program, file: Path) -> Flat:
    return jax.jit(jax_export.deserialize(bytearray(file.read_bytes())).call)


def _write_onnx(program: Program, file: Path) -> None:
    from jax2onnx import to_onnx
    from onnx import helper

    plain = lower(program.call, program.structs)
    names = [slot.name for slot in program.inputs]
    try:
        model = to_onnx(jaxpr_as_fun(plain), program.structs, model_name=program.name, input_names=names)
    except Exception as error:  # whatever its translations raise
        raise _no_onnx(program, error) from error
    for value, slot in zip(model.graph.output, program.outputs, strict=True):
        # one more node, as an output may be an input, or another output
        model.graph.node.append(helper.make_node("Identity", [value.name], [slot.name]))
        value.name = slot.name
    _tidy(model.graph)
    file.write_bytes(model.SerializeToString())


def _tidy(graph: Any) -> set[str]:
    """Drops constants that nothing uses, which runtimes complain of; the names that a graph and those in it use."""
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                used |= _tidy(attribute.g)
    kept = [x for x in graph.initializer if x.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return used


def _read_onnx(program: Program, file: Path) -> Flat:
    import onnxruntime

    names = [slot.name for slot in program.inputs]
    # its errors have no base class of their own
    try:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _no_onnx(program, error) from error

    def run(*arrays: Any) -> list[Any]:
        try:
            return session.run(None, {k: np.asarray(x) for k, x in zip(names, arrays, strict=True)})
        except Exception as error:
            raise _no_onnx(program, error) from error

    return run


def _no_onnx(program: Program, error: Exception) -> ExportError:
    says = (str(error).splitlines() or [""])[0]
    return ExportError(
        f"{program.name} of this policy cannot be said in ONNX ({type(error).__name__}: {says}); "
        "export it to stablehlo."
    )


def _manifest(policy: Deployed, found: Sequence[Program], to: str, check: dict[str, Any]) -> dict[str, Any]:
    from habitus import __version__

    spec = policy.spec
    return {
        "format": 1,
        "habitus": __version__,
        "kind": to,
        "observation_space": space_to_json(spec.observation_space),
        "action_space": space_to_json(spec.action_space),
        "horizon": spec.horizon,
        "carry": "carry.safetensors",
        "programs": {
            program.name: {
                "file": "policy.json" if to == "safetensors" else _file(program, to),
                "inputs": [dataclasses.asdict(slot) for slot in program.inputs],
                "outputs": [dataclasses.asdict(slot) for slot in program.outputs],
            }
            for program in found
        },
        "check": check,
    }


# --- the comparison


def _compared(
    policy: Deployed,
    found: Sequence[Program],
    theirs: Sequence[Flat],
    first: Arrays,
    tolerance: float,
    length: tuple[int, int],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Both act on the same random observations, seeds and rewards, each with its own carry; how far apart they came.

    Raises:
        ExportError: at the first difference above the tolerance.
    """
    space, worst = policy.spec.observation_space, {slot.name: 0.0 for slot in found[0].outputs}
    pairs = [(program, jax.jit(program.call), call) for program, call in zip(found, theirs, strict=True)]
    for episode in range(length[0]):
        carries = [list(first), list(first)]
        for step in range(length[1]):
            obs = jax.tree.leaves(draw(space, rng))
            seed = [rng.integers(0, 2**32, 2, np.uint32)] if _named(found[0].inputs, "seed") else []
            given = [(obs, seed), ([], [np.float32(rng.normal())])]
            for (program, *calls), (ahead, behind) in zip(pairs, given, strict=False):
                results = [
                    [np.asarray(x) for x in call(*ahead, *c, *behind)] for call, c in zip(calls, carries, strict=True)
                ]
                for slot, ours, own in zip(program.outputs, *results, strict=True):
                    apart = difference(ours, own)
                    worst[slot.name] = max(worst[slot.name], apart)
                    if not apart <= tolerance:
                        raise ExportError(
                            f"the exported policy differs from the policy by {apart:.2g} in {slot.name}, in step "
                            f"{step + 1} of random episode {episode + 1}: {_shown(own)} instead of {_shown(ours)}; at "
                            f"most {tolerance:g} is allowed."
                        )
                carries = [x[len(x) - len(first) :] for x in results]
    return {"episodes": length[0], "steps": length[1], "tolerance": tolerance, "largest_difference": worst}


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of two arrays, relative to the larger of 1 and the largest entry; infinite for others."""
    if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
        return float("inf")
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(np.where(finite, 0, a), np.where(np.isfinite(b), 0, b), equal_nan=True):
        return float("inf")
    a, b = a[finite], b[finite]
    return float(np.abs(a - b).max(initial=0.0) / np.abs(a).max(initial=1.0))


def _shown(x: np.ndarray) -> str:
    return np.array2string(x.ravel(), precision=8, threshold=6)


def draw(space: spaces.Space, rng: np.random.Generator) -> Any:
    """A random observation: uniform within bounds that are near each other, else around 0."""
    if isinstance(space, spaces.Dict):
        return {name: draw(part, rng) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(draw(part, rng) for part in space.spaces)
    example = blank(space)
    if not isinstance(space, spaces.Box):
        counts = getattr(space, "nvec", getattr(space, "n", 2)) if not isinstance(space, spaces.MultiBinary) else 2
        return (example + rng.integers(0, counts, example.shape)).astype(example.dtype)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    near = high - low < 1e6
    inside = rng.uniform(np.where(near, low, 0), np.where(near, high, 1))
    return np.where(near, inside, np.clip(rng.normal(size=low.shape), low, high)).astype(example.dtype)
