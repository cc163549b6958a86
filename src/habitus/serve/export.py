"""Policies as files that act without habitus: ONNX for any runtime, StableHLO for JAX and XLA, or the weights.

What is exported is the deployed policy, so that normalisation, clipping and memory are inside.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from habitus.core.protocols import Policy
from habitus.core.spec import space_to_json
from habitus.serve.engine import blank
from habitus.serve.lowering import lower
from habitus.serve.programs import Arrays, Flat, Program, Slot, named, programs
from habitus.train.log import versions

# How far results may lie from JAX's, relative to the larger of 1 and the largest entry of an array.
TOLERANCE = {"onnx": 1e-5, "stablehlo": 1e-6, "safetensors": 0.0}
NEEDS = {"onnx": ("jax2onnx", "onnx", "onnxruntime"), "stablehlo": ("flatbuffers",), "safetensors": ()}
PLATFORMS = ("cpu", "cuda")  # that a StableHLO program runs on


def export(policy: Policy, to: str, folder: str | Path, *, episodes: int = 4, steps: int = 8, seed: int = 0) -> Path:
    """Writes a policy as files that act without habitus, once they were seen to do what it does.

    The folder then holds `manifest.json` (spaces, names, shapes and types), `carry.safetensors` (the carry that an
    episode begins with), and `policy.onnx` or `policy.stablehlo`, with `rewarded.*` if the policy listens to rewards;
    or what `Deployed.save` writes.

    Args:
        policy: a deployed one, as of a run.
        to: `onnx`, `stablehlo` (read by `jax.export.deserialize`) or `safetensors`.
        episodes, steps: how long the files are compared with the policy, on random observations; the carry of each
            goes its own way within an episode.
        seed: of the comparison.

    Raises:
        ConfigError: for another format, a policy that is not deployed, or a number out of its domain.
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
        save_file({s.name: x for s, x in zip(named(slots, "carry"), carry, strict=True)}, made / "carry.safetensors")
        (made / "manifest.json").write_text(json.dumps(_manifest(policy, found, to, check), indent=1))
        folder.mkdir(exist_ok=True)
        for file in sorted(made.iterdir(), key=lambda file: file.name == "manifest.json"):
            os.replace(file, folder / file.name)
    return folder


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
        with _jax_as_it_was():
            model = to_onnx(jaxpr_as_fun(plain), program.structs, model_name=program.name, input_names=names)
    except Exception as error:  # whatever its translations raise
        raise _no_onnx(program, error) from error
    for value, slot in zip(model.graph.output, program.outputs, strict=True):
        # one more node, as an output may be an input, or another output
        model.graph.node.append(helper.make_node("Identity", [value.name], [slot.name]))
        value.name = slot.name
    _tidy(model.graph)
    file.write_bytes(model.SerializeToString())


@contextmanager
def _jax_as_it_was() -> Iterator[None]:
    """Undoes what jax2onnx leaves in JAX's modules, such as a `jnp.cumsum` that takes no axis by position."""
    before = {module: dict(vars(module)) for module in (jax, jnp, jax.nn, jax.lax, jax.random)}
    try:
        yield
    finally:
        for module, names in before.items():
            for name, value in names.items():
                if vars(module).get(name) is not value:
                    setattr(module, name, value)


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
    spec = policy.spec
    return {
        "format": 1,
        "versions": versions(),
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
    both: list[tuple[Flat, Flat]] = [(jax.jit(p.call), call) for p, call in zip(found, theirs, strict=True)]
    for episode in range(length[0]):
        carries = [list(first), list(first)]
        for step in range(length[1]):
            obs = jax.tree.leaves(draw(space, rng))
            seed = [rng.integers(0, 2**32, 2, np.uint32)] if named(found[0].inputs, "seed") else []
            given: list[tuple[Arrays, Arrays]] = [(obs, seed), ([], [np.float32(rng.normal())])]
            for program, calls, (ahead, behind) in zip(found, both, given, strict=False):
                ours, own = (
                    [np.asarray(x) for x in call(*ahead, *c, *behind)] for call, c in zip(calls, carries, strict=True)
                )
                when = f"step {step + 1} of random episode {episode + 1}"
                for slot, x, y in zip(program.outputs, ours, own, strict=True):
                    worst[slot.name] = max(worst[slot.name], _apart(slot, x, y, tolerance, when))
                carries = [x[len(x) - len(first) :] for x in (ours, own)]
    return {"episodes": length[0], "steps": length[1], "tolerance": tolerance, "largest_difference": worst}


def _apart(slot: Slot, ours: np.ndarray, theirs: np.ndarray, tolerance: float, when: str) -> float:
    found = difference(ours, theirs)
    if found <= tolerance:
        return found
    raise ExportError(
        f"the exported policy differs from the policy by {found:.2g} in {slot.name}, in {when}: {_shown(theirs)} "
        f"instead of {_shown(ours)}; at most {tolerance:g} is allowed."
    )


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
