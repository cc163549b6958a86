"""Dense networks, written for one example."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.domains import require
from habitus.core.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "selu": jax.nn.selu,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
    "silu": jax.nn.silu,
}


def orthogonal(key: PRNGKeyArray, shape: tuple[int, int], gain: float) -> Float[Array, "inputs outputs"]:
    """A random matrix of orthonormal rows or columns, whichever are fewer, times `gain`: uniformly
    distributed (Saxe et al., 2014), and equal to `jax.nn.initializers.orthogonal` up to rounding.

    Gram-Schmidt, twice for the precision, in place of LAPACK's QR: under `vmap` on a machine of few
    cores those calls can fill XLA's threads while each waits for a thread, for ever.
    """
    columns = jax.random.normal(key, (max(shape), min(shape)))

    def orthonormalise(i: Array, basis: Array) -> Array:
        column = columns[:, i]
        for _ in range(2):
            column = column - basis @ (column @ basis)
        return basis.at[:, i].set(column / jnp.linalg.norm(column))

    basis = jax.lax.fori_loop(0, columns.shape[1], orthonormalise, jnp.zeros_like(columns))
    return gain * (basis if shape[0] >= shape[1] else basis.T)


class Linear(eqx.Module):
    """`x @ weight + bias`, with the weight as [in, out] so that a batch is one plain product."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, "outputs"]

    def __init__(self, inputs: int, outputs: int, key: PRNGKeyArray, gain: float | None = None):
        """Args:
        gain: orthogonal initialisation with this gain and zero biases; None for uniform within
            +-1/sqrt(inputs), weights and biases alike (the default of PyTorch).
        """
        if gain is None:
            bound = 1 / max(inputs, 1) ** 0.5
            w_key, b_key = jax.random.split(key)
            self.weight = jax.random.uniform(w_key, (inputs, outputs), minval=-bound, maxval=bound)
            self.bias = jax.random.uniform(b_key, (outputs,), minval=-bound, maxval=bound)
        else:
            self.weight = orthogonal(key, (inputs, outputs), gain)
            self.bias = jnp.zeros(outputs)

    def __call__(self, x: Float[Array, "inputs"]) -> Float[Array, "outputs"]:
        return x @ self.weight + self.bias


class MLP(eqx.Module):
    """Dense layers with one activation between them and none at the end."""

    layers: tuple[Linear, ...]
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        key: PRNGKeyArray,
        activation: str = "relu",
        final_gain: float | None = None,
    ):
        """Args:
            hidden: widths of the hidden layers.
            activation: one of `ACTIVATIONS`.
            final_gain: orthogonal initialisation throughout, with gain sqrt(2) in the hidden layers
                and this gain in the last; None for PyTorch's default initialisation.

        Raises:
            ConfigError: for an unknown activation, or a hidden layer without units.
        """
        require(all(width >= 1 for width in hidden), f"widths of hidden layers must be 1 or more, but are {hidden}.")
        if activation not in ACTIVATIONS:
            raise ConfigError(f"activation must be one of {', '.join(ACTIVATIONS)}, but is {activation!r}.")
        self.activation = activation
        sizes = [inputs, *hidden, outputs]
        keys = jax.random.split(key, len(sizes) - 1)
        gains = [None if final_gain is None else 2**0.5] * len(hidden) + [final_gain]
        self.layers = tuple(Linear(i, o, k, g) for i, o, k, g in zip(sizes[:-1], sizes[1:], keys, gains, strict=True))

    def __call__(self, x: Float[Array, "inputs"]) -> Float[Array, "outputs"]:
        activate = ACTIVATIONS[self.activation]
        for layer in self.layers[:-1]:
            x = activate(layer(x))
        return self.layers[-1](x)
