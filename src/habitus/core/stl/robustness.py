"""How robustly a trace satisfies a formula, exactly or smoothly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from habitus.core.domains import require
from habitus.core.errors import DataError
from habitus.core.stl.expressions import Scalar, Trace
from habitus.core.stl.extremes import LARGE, Extremes
from habitus.core.stl.formulas import Formula


def robustness(
    formula: Formula,
    trace: Trace,
    *,
    temperature: Scalar | None = None,
    valid: Bool[Array, "time"] | None = None,
    strict: bool = True,
) -> Float[Array, ""]:
    """The robustness of a trace at its first step: above 0 it satisfies the formula, below 0 it does not.

    A pure function of arrays: map over a batch of traces with `jax.vmap`, differentiate with `jax.grad`. Exact
    robustness is differentiable almost everywhere, and its gradient reaches one step of one predicate; where several
    attain the extreme they share it.

    Args:
        formula: what to satisfy; its numbers may be traced.
        trace: signals by name: [time], all of one length, or single numbers that stand for every step (parameters of
            the formula). A `Predicate` may also read signals with more axes.
        temperature: above 0, in units of robustness, for the smooth semantics:
            `max(x) ~ temperature * log sum_i exp(x_i / temperature)` and `min(x) = -max(-x)`. `smoothing_error` says
            how far from the exact value that can be. It is `1 / tau` where a paper writes `log sum exp(tau x) / tau`.
        valid: True where a step is real, for traces that are padded at the end: windows then end with it.
        strict: whether a window that lies wholly past the end of the trace is an error. Otherwise nothing is there to
            violate "always" (robustness infinity) or to fulfil "eventually" and "until" (minus infinity).

    Raises:
        ConfigError: if the temperature is not above 0.
        DataError: if the trace lacks a signal, its lengths differ, or, with `strict`, it is too short.
    """
    steps = _steps(trace)
    if strict:
        formula.check_reach(0, steps)
    return _unbounded(formula.first(trace, _extremes(temperature, valid, steps), steps))


def robustness_signal(
    formula: Formula,
    trace: Trace,
    *,
    temperature: Scalar | None = None,
    valid: Bool[Array, "time"] | None = None,
) -> Float[Array, "time"]:
    """The robustness at every step: that of the rest of the trace from there on.

    Windows are cut at the end of the trace; near it some are empty, which counts as under `strict=False`. The
    arguments are those of `robustness`.
    """
    steps = _steps(trace)
    return _unbounded(formula.signal(trace, _extremes(temperature, valid, steps), steps))


def _extremes(temperature: Scalar | None, valid: Array | None, steps: int) -> Extremes:
    require(temperature is None or temperature > 0, f"temperature must be above 0, but is {temperature}.")
    if valid is not None and valid.shape != (steps,):
        raise DataError(f"valid has shape {valid.shape}, expected ({steps},), a flag for each step of the trace.")
    return Extremes(None if temperature is None else 1.0 * temperature, valid)


def _unbounded(found: Float[Array, "*time"]) -> Float[Array, "*time"]:
    """With infinities where `LARGE` stands for them."""
    return jnp.where(found > LARGE / 2, jnp.inf, jnp.where(found < -LARGE / 2, -jnp.inf, found))


def smoothing_error(formula: Formula, steps: int, temperature: float) -> tuple[float, float]:
    """How far smooth robustness on a trace of so many steps can lie below the exact one, and how far above it.

    A soft maximum of n values errs by `temperature * log n` at most, upwards; a soft minimum as much downwards. Errors
    of nested operators add up; a negation swaps them.
    """
    below, above = formula.log_terms(steps)
    return temperature * below, temperature * above


def horizon(formula: Formula) -> int | None:
    """Steps ahead of the present that decide the formula, or None where it looks to the end of the trace.

    On a trace of `horizon + 1` steps or more no window of the first step is cut.
    """
    return formula.horizon


def _steps(trace: Trace) -> int:
    """The length of a trace. Raises `DataError` if there is none, or several."""
    lengths = {name: len(leaf) for name, x in trace.items() for leaf in jax.tree.leaves(x) if jnp.ndim(leaf) > 0}
    if not lengths or 0 in lengths.values():
        raise DataError("the trace has no steps; give at least one signal [time], by its name.")
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"the signals of a trace have one length, but here there are {listed}; cut them alike.")
    return next(iter(lengths.values()))
