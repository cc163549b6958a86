"""A program of JAX's in primitives that other runtimes have too: no keys, no calls, plain arithmetic.

Other runtimes know nothing of JAX's random keys, and a converter that meets one puts noise of the runtime's own in its
place. Here a key is a pair of uint32 and what is drawn from it is computed by additions, shifts and exclusive ors
(J. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011), so that a seed gives the same action
everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.extend.random import threefry_prng_impl as threefry

from habitus.core.errors import ExportError

Values = Sequence[Any]
Flat = Callable[..., list[Any]]

# calls that are replaced by what they call, and the parameter that holds it
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat": "jaxpr",
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vmap_call": "call",
}

# what moves random keys about, and moves both of their words alike
MOVES = {
    "slice", "squeeze", "reshape", "broadcast_in_dim", "concatenate", "stack", "split", "select_n", "gather",
    "dynamic_slice", "dynamic_update_slice", "transpose", "rev", "copy", "optimization_barrier",
}  # fmt: skip


def lower(program: Flat, inputs: Sequence[jax.ShapeDtypeStruct]) -> ClosedJaxpr:
    """`program` of flat arrays, traced for these inputs, without random keys and without calls.

    Raises:
        ExportError: if it draws random numbers by anything but threefry, or in a way that is not known here.
    """
    return jax.make_jaxpr(lambda *values: _inline(program, *values))(*inputs)


def _inline(program: Callable[..., Any], *values: Any) -> list[Any]:
    traced = jax.make_jaxpr(program)(*values)
    return _run(traced.jaxpr, traced.consts, values)


def _run(jaxpr: Jaxpr, consts: Values, inputs: Values) -> list[Any]:
    """The program once more, equation by equation; random keys are their data, uint32 [..., 2]."""
    known = dict(zip(jaxpr.constvars, map(_data, consts), strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(name: Any) -> Any:
        return name.val if isinstance(name, Literal) else known[name]

    for eqn in jaxpr.eqns:
        known.update(zip(eqn.outvars, _apply(eqn, [read(x) for x in eqn.invars]), strict=True))
    return [read(x) for x in jaxpr.outvars]


def _apply(eqn: JaxprEqn, values: list[Any]) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    if name in RULES:
        return RULES[name](params, *values)
    if name in CALLS:
        return _closed(params[CALLS[name]], values)
    if any(_is_key(x.aval) for x in (*eqn.invars, *eqn.outvars)):
        if name not in MOVES:
            raise ExportError(f"the policy draws random numbers by {name}, which only JAX has; export it to stablehlo.")
        words = [[x[..., i] if _is_key(v.aval) else x for v, x in zip(eqn.invars, values, strict=True)] for i in (0, 1)]
        parts = zip(*(_bind(eqn, word) for word in words), strict=True)
        return [jnp.stack(both, -1) for both in parts]
    return _bind(eqn, values)


def _bind(eqn: JaxprEqn, values: list[Any]) -> list[Any]:
    found = eqn.primitive.bind(*values, **eqn.params)
    return list(found) if eqn.primitive.multiple_results else [found]


def _closed(inner: ClosedJaxpr | Jaxpr, values: Values) -> list[Any]:
    if isinstance(inner, ClosedJaxpr):
        return _run(inner.jaxpr, inner.consts, values)
    return _run(inner, (), values)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _data(x: Any) -> Any:
    return jax.random.key_data(x) if hasattr(x, "dtype") and _is_key(x) else x


# --- control flow


def _scan(params: dict[str, Any], *values: Any) -> list[Any]:
    first, carried = params["num_consts"], params["num_carry"]
    consts, carry, rows = values[:first], values[first : first + carried], values[first + carried :]

    def body(carry: Any, row: Any) -> tuple[Any, Any]:
        found = tuple(_closed(params["jaxpr"], [*consts, *carry, *row]))
        return found[:carried], found[carried:]

    carry, rows = lax.scan(body, tuple(carry), tuple(rows), params["length"], params["reverse"])
    return [*carry, *rows]


def _while(params: dict[str, Any], *values: Any) -> list[Any]:
    n, m = params["cond_nconsts"], params["body_nconsts"]
    asked, done, carry = values[:n], values[n : n + m], list(values[n + m :])
    return lax.while_loop(
        lambda carry: _closed(params["cond_jaxpr"], [*asked, *carry])[0],
        lambda carry: _closed(params["body_jaxpr"], [*done, *carry]),
        carry,
    )


def _cond(params: dict[str, Any], which: Any, *values: Any) -> list[Any]:
    branches = [lambda *x, branch=branch: _closed(branch, x) for branch in params["branches"]]
    return lax.switch(which, branches, *values)


# --- random numbers


def _wrap(params: dict[str, Any], data: Any) -> list[Any]:
    if params["impl"] is not threefry:
        raise ExportError(
            f"the policy draws random numbers by {params['impl'].name}, which only JAX has; make its keys with "
            'jax.random.key(seed, impl="threefry2x32"), or export it to stablehlo.'
        )
    return [data]


def _seed(params: dict[str, Any], seed: Any) -> list[Any]:
    _wrap(params, None)
    return [_each(threefry.seed, seed, ndim=0)]


def _split(params: dict[str, Any], key: Any) -> list[Any]:
    return [_each(lambda k: threefry.split(k, params["shape"]), key)]


def _bits(params: dict[str, Any], key: Any) -> list[Any]:
    return [_each(lambda k: threefry.random_bits(k, params["bit_width"], params["shape"]), key)]


def _fold_in(params: dict[str, Any], key: Any, number: Any) -> list[Any]:
    lead = jnp.broadcast_shapes(key.shape[:-1], number.shape)
    keys, numbers = jnp.broadcast_to(key, (*lead, 2)).reshape(-1, 2), jnp.broadcast_to(number, lead).reshape(-1)
    return [_inline(jax.vmap(threefry.fold_in), keys, numbers)[0].reshape(*lead, 2)]


def _each(draw: Callable[[Any], Any], x: Any, ndim: int = 1) -> Any:
    """`draw` of every key; each has `ndim` axes."""
    lead = x.shape[: x.ndim - ndim]
    for _ in lead:
        draw = jax.vmap(draw)
    return _inline(draw, x)[0]


def _threefry(params: dict[str, Any], key0: Any, key1: Any, x0: Any, x1: Any) -> list[Any]:
    """Twenty rounds; after each four a part of the key is added."""
    keys = [key0, key1, key0 ^ key1 ^ np.uint32(0x1BD11BDA)]
    turns = ((13, 15, 26, 6), (17, 29, 16, 24))
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for block in range(5):
        for turn in turns[block % 2]:
            x0 = x0 + x1
            left, right = (lax.full_like(x1, n) for n in (turn, 32 - turn))
            x1 = x0 ^ (lax.shift_left(x1, left) | lax.shift_right_logical(x1, right))
        x0 = x0 + keys[(block + 1) % 3]
        x1 = x1 + (keys[(block + 2) % 3] + np.uint32(block + 1))
    return [x0, x1]


def _counts(params: dict[str, Any]) -> list[Any]:
    """The numbers from 0 of the entries of an array, as their high and low words."""
    number = np.arange(np.prod(params["shape"], dtype=np.int64), dtype=np.uint64).reshape(params["shape"])
    return [jnp.asarray((number >> np.uint64(32)).astype(np.uint32)), jnp.asarray(number.astype(np.uint32))]


# --- arithmetic


def _bitcast(params: dict[str, Any], x: Any) -> list[Any]:
    """The float of these bits, exactly: `+-(1 + m / 2^23) * 2^(e - 127)`."""
    if (x.dtype, params["new_dtype"]) != (np.uint32, np.float32):
        raise ExportError(
            f"the policy reads the bits of {x.dtype} as {params['new_dtype']}, which ONNX runtimes cannot; export it "
            "to stablehlo."
        )
    fraction = (x & np.uint32(0x7FFFFF)).astype(jnp.float32) * np.float32(2.0**-23)
    exponent = ((x >> np.uint32(23)) & np.uint32(0xFF)).astype(jnp.int32)
    with np.errstate(over="ignore"):
        powers = np.ldexp(np.float32(1), np.maximum(np.arange(256), 1) - 127)
    size = (fraction + (exponent > 0)) * jnp.asarray(powers)[exponent]
    return [jnp.where((x >> np.uint32(31)) > 0, -size, size)]


# M. Giles, "Approximating the erfinv function", GPU Computing Gems, 2011: near the middle and in the tails, the
# highest power first. XLA computes with the same.
MIDDLE = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
    0.246640727, 1.50140941,
)  # fmt: skip
TAILS = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
    1.00167406, 2.83297682,
)  # fmt: skip


def _erf_inv(params: dict[str, Any], x: Any) -> list[Any]:
    w = -jnp.log1p(-x * x)
    middle, total = w < 5, jnp.zeros_like(x)
    at = jnp.where(middle, w - 2.5, jnp.sqrt(jnp.maximum(w, 5.0)) - 3.0)
    for near, far in zip(MIDDLE, TAILS, strict=True):
        total = total * at + jnp.where(middle, np.float32(near), np.float32(far))
    return [jnp.where(jnp.abs(x) == 1, x * np.float32(np.inf), total * x)]


RULES: dict[str, Callable[..., list[Any]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "random_wrap": _wrap,
    "random_unwrap": lambda params, key: [key],
    "random_clone": lambda params, key: [key],
    "random_seed": _seed,
    "random_split": _split,
    "random_bits": _bits,
    "random_fold_in": _fold_in,
    "threefry2x32": _threefry,
    "iota_2x32_shape": _counts,
    "bitcast_convert_type": _bitcast,
    "erf_inv": _erf_inv,
    # Equinox's, which outside of any vmap are these
    "unvmap_any": lambda params, x: [jnp.any(x)],
    "unvmap_all": lambda params, x: [jnp.all(x)],
    "unvmap_max": lambda params, x: [jnp.max(x)],
    "nonbatchable": lambda params, *x: list(x),
}
