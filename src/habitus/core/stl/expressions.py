"""Arithmetic over the signals of a trace: what stands on either side of a comparison."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from habitus.core.domains import require
from habitus.core.errors import DataError, suggest

Trace = Mapping[str, Any]
Scalar = float | Float[Array, ""]

INFIX: dict[str, Callable[..., Array]] = {"+": jnp.add, "-": jnp.subtract, "*": jnp.multiply, "/": jnp.divide}
# functions by name, with the number of their arguments
FUNCTIONS: dict[str, tuple[Callable[..., Array], int]] = {
    "abs": (jnp.abs, 1),
    "sqrt": (jnp.sqrt, 1),
    "exp": (jnp.exp, 1),
    "min": (jnp.minimum, 2),
    "max": (jnp.maximum, 2),
}


class Expression(eqx.Module):
    """A number for every step of a trace."""

    @abc.abstractmethod
    def evaluate(self, trace: Trace) -> Float[Array, "*time"]:
        """The values [time], or a single one [] where no signal takes part."""


class Number(Expression):
    """A constant."""

    value: Scalar

    def evaluate(self, trace: Trace) -> Float[Array, "*time"]:
        return jnp.asarray(self.value, jnp.float32)

    def __str__(self) -> str:
        return number(self.value)


class Signal(Expression):
    """A signal of the trace, by name; one that is a scalar there is a parameter."""

    name: str = eqx.field(static=True)

    def evaluate(self, trace: Trace) -> Float[Array, "*time"]:
        return signal_of(trace, self.name)

    def __str__(self) -> str:
        return self.name


class Operation(Expression):
    """An operator or a function of `INFIX` or `FUNCTIONS`, or "neg", applied to other expressions."""

    symbol: str = eqx.field(static=True)
    parts: tuple[Expression, ...]

    def __check_init__(self) -> None:
        known = self.symbol in INFIX or self.symbol in FUNCTIONS or self.symbol == "neg"
        require(known, f"{self.symbol!r} is no operation; known: {', '.join([*INFIX, *FUNCTIONS, 'neg'])}.")

    def evaluate(self, trace: Trace) -> Float[Array, "*time"]:
        values = [part.evaluate(trace) for part in self.parts]
        if self.symbol == "neg":
            return -values[0]
        function = INFIX.get(self.symbol) or FUNCTIONS[self.symbol][0]
        return function(*values)

    def __str__(self) -> str:
        if self.symbol == "neg":
            return f"(-{self.parts[0]})"
        if self.symbol in INFIX:
            return f"({self.parts[0]} {self.symbol} {self.parts[1]})"
        return f"{self.symbol}({', '.join(map(str, self.parts))})"


def signal_of(trace: Trace, name: str) -> Float[Array, "*time"]:
    """A signal [time] or parameter [] of a trace, in float32 or better.

    Raises:
        DataError: if the trace lacks it, or it has more axes than time.
    """
    if name not in trace:
        raise DataError(f"the formula speaks of {name!r}, which the trace lacks: {suggest(name, list(trace))}")
    value = jnp.asarray(trace[name])
    if value.ndim > 1:
        raise DataError(
            f"signal {name!r} has shape {value.shape}, expected [time] or a single number; give its columns names of "
            "their own, or map over a batch with jax.vmap."
        )
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))


def number(value: Any) -> str:
    """A number as the text syntax has it; an ellipsis while JAX traces it."""
    if isinstance(value, jax.core.Tracer):
        return "..."
    return repr(float(value)).removesuffix(".0")
