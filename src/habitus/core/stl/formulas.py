"""The abstract syntax of signal temporal logic: formulas, predicates and connectives, each with its robustness."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from habitus.core.domains import require
from habitus.core.errors import DataError
from habitus.core.stl.expressions import Expression, Scalar, Trace, number, signal_of
from habitus.core.stl.extremes import Extremes


class Formula(eqx.Module):
    """A property of a trace from a step on. `a & b`, `a | b` and `~a` make others; `str` gives its text."""

    @abc.abstractmethod
    def signal(self, trace: Trace, extremes: Extremes, steps: int) -> Float[Array, "time"]:
        """Its robustness at each of the `steps` steps of a trace."""

    def first(self, trace: Trace, extremes: Extremes, steps: int) -> Float[Array, ""]:
        """Its robustness at the first step: `signal(...)[0]`, without the other steps where they are not needed."""
        return self.signal(trace, extremes, steps)[0]

    @property
    @abc.abstractmethod
    def horizon(self) -> int | None:
        """Steps ahead that decide it; None where it looks to the end of the trace."""

    @abc.abstractmethod
    def log_terms(self, steps: int) -> tuple[float, float]:
        """Bounds on the error of smooth robustness, below and above the exact one, in temperatures."""

    @abc.abstractmethod
    def check_reach(self, latest: int, steps: int) -> None:
        """Raises `DataError` if, asked for at steps up to `latest`, a window lies wholly past the end of the trace."""

    def __and__(self, other: Formula) -> And:
        return And((*_flat(And, self), *_flat(And, other)))

    def __or__(self, other: Formula) -> Or:
        return Or((*_flat(Or, self), *_flat(Or, other)))

    def __invert__(self) -> Not:
        return Not(self)


def _flat(kind: Any, formula: Formula) -> tuple[Formula, ...]:
    return formula.parts if isinstance(formula, kind) else (formula,)


class Atom(Formula):
    """A formula about a single step."""

    @property
    def horizon(self) -> int | None:
        return 0

    def log_terms(self, steps: int) -> tuple[float, float]:
        return 0.0, 0.0

    def check_reach(self, latest: int, steps: int) -> None:
        pass


class Affine(Atom):
    """`sum_i weights[i] * x_i + bias >= 0`; its robustness is the left side.

    Predicates under one minimum should have one scale: divide by what is a lot of each, or the unit decides.
    """

    weights: dict[str, Scalar]
    bias: Scalar = 0.0

    def signal(self, trace: Trace, extremes: Extremes, steps: int) -> Float[Array, "time"]:
        total = jnp.asarray(self.bias, jnp.float32)
        for name, weight in self.weights.items():
            total = total + weight * signal_of(trace, name)
        return jnp.broadcast_to(total, (steps,))

    def __str__(self) -> str:
        terms = [f"{number(weight)} * {name}" for name, weight in self.weights.items()]
        return f"({' + '.join([*terms, number(self.bias)])} >= 0)"


class Predicate(Atom):
    """`function(sample) >= 0` for any function, written for one step, from the signals by name to a number.

    It must not read the future: time is the operators' matter. `label` is what `str` calls it.
    """

    function: Callable[[dict[str, Any]], Any] = eqx.field(static=True)
    label: str = eqx.field(static=True, default="predicate")

    def signal(self, trace: Trace, extremes: Extremes, steps: int) -> Float[Array, "time"]:
        samples = jax.tree.map(jnp.asarray, dict(trace))
        axes = jax.tree.map(lambda x: 0 if x.ndim else None, samples)
        found = jax.vmap(self.function, in_axes=(axes,), axis_size=steps)(samples)
        if found.shape != (steps,):
            raise DataError(
                f"{self.label} gives shape {found.shape[1:]} for one step, expected a single number; combine them."
            )
        return found.astype(jnp.promote_types(found.dtype, jnp.float32))

    def __str__(self) -> str:
        return f"{self.label}(...)"


class Compare(Atom):
    """`left >= right`, or `<=`; its robustness is the difference. Strict comparisons have the same."""

    left: Expression
    right: Expression
    symbol: str = eqx.field(static=True, default=">=")

    def __check_init__(self) -> None:
        require(self.symbol in (">=", "<=", ">", "<"), f"{self.symbol!r} is no comparison; use >=, <=, > or <.")

    def signal(self, trace: Trace, extremes: Extremes, steps: int) -> Float[Array, "time"]:
        sides = self.left.evaluate(trace), self.right.evaluate(trace)
        greater, lesser = sides if self.symbol[0] == ">" else sides[::-1]
        return jnp.broadcast_to(greater - lesser, (steps,))

    def __str__(self) -> str:
        return f"({self.left} {self.symbol} {self.right})"


class Not(Formula):
    """`-r`."""

    part: Formula

    def signal(self, trace: Trace, extremes: Extremes, steps: int) -> Float[Array, "time"]:
        return -self.part.signal(trace, extremes, steps)

    def first(self, trace: Trace, extremes: Extremes, steps: int) -> Float[Array, ""]:
        return -self.part.first(trace, extremes, steps)

    @property
    def horizon(self) -> int | None:
        return self.part.horizon

    def log_terms(self, steps: int) -> tuple[float, float]:
        return self.part.log_terms(steps)[::-1]  # type: ignore[return-value]

    def check_reach(self, latest: int, steps: int) -> None:
        self.part.check_reach(latest, steps)

    def __str__(self) -> str:
        return f"(not {self.part})"


class _Several(Formula):
    """A connective of any number of formulas."""

    parts: tuple[Formula, ...]

    def __check_init__(self) -> None:
        require(len(self.parts) > 0, f"{type(self).__name__} needs at least one formula.")

    def _signals(self, trace: Trace, extremes: Extremes, steps: int) -> list[Array]:
        return [part.signal(trace, extremes, steps) for part in self.parts]

    def _worst(self, steps: int) -> tuple[float, float]:
        below, above = zip(*(part.log_terms(steps) for part in self.parts), strict=True)
        return max(below), max(above)

    @property
    def horizon(self) -> int | None:
        return furthest(*(part.horizon for part in self.parts))

    def check_reach(self, latest: int, steps: int) -> None:
        for part in self.parts:
            part.check_reach(latest, steps)


class And(_Several):
    """`min_i r_i`."""

    def signal(self, trace: Trace, extremes: Extremes, steps: int) -> Float[Array, "time"]:
        return extremes.least_among(self._signals(trace, extremes, steps))

    def first(self, trace: Trace, extremes: Extremes, steps: int) -> Float[Array, ""]:
        return extremes.least_among([part.first(trace, extremes, steps) for part in self.parts])

    def log_terms(self, steps: int) -> tuple[float, float]:
        below, above = self._worst(steps)
        return below + math.log(len(self.parts)), above

    def __str__(self) -> str:
        return f"({' and '.join(map(str, self.parts))})"


class Or(_Several):
    """`max_i r_i`."""

    def signal(self, trace: Trace, extremes: Extremes, steps: int) -> Float[Array, "time"]:
        return extremes.greatest_among(self._signals(trace, extremes, steps))

    def first(self, trace: Trace, extremes: Extremes, steps: int) -> Float[Array, ""]:
        return extremes.greatest_among([part.first(trace, extremes, steps) for part in self.parts])

    def log_terms(self, steps: int) -> tuple[float, float]:
        below, above = self._worst(steps)
        return below, above + math.log(len(self.parts))

    def __str__(self) -> str:
        return f"({' or '.join(map(str, self.parts))})"


class Implies(Formula):
    """`max(-r_left, r_right)`."""

    left: Formula
    right: Formula

    @property
    def _plain(self) -> Or:
        return Or((Not(self.left), self.right))

    def signal(self, trace: Trace, extremes: Extremes, steps: int) -> Float[Array, "time"]:
        return self._plain.signal(trace, extremes, steps)

    @property
    def horizon(self) -> int | None:
        return self._plain.horizon

    def log_terms(self, steps: int) -> tuple[float, float]:
        return self._plain.log_terms(steps)

    def check_reach(self, latest: int, steps: int) -> None:
        self._plain.check_reach(latest, steps)

    def __str__(self) -> str:
        return f"({self.left} -> {self.right})"


def furthest(*horizons: int | None) -> int | None:
    """The greatest of several horizons; None where one has no end."""
    known = [h for h in horizons if h is not None]
    return max(known) if len(known) == len(horizons) else None
