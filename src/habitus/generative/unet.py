"""The U-Net of diffusion policies: over the time of an action chunk, conditioned by scales and shifts (FiLM).

C. Chi et al., "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion", RSS 2023. M. Janner, Y. Du,
J. Tenenbaum and S. Levine, "Planning with Diffusion for Flexible Behavior Synthesis", ICML 2022. E. Perez et al.,
"FiLM: Visual Reasoning with a General Conditioning Layer", AAAI 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray

from habitus.core.domains import require
from habitus.core.errors import SpaceMismatch
from habitus.generative.denoisers import GROUPS, Conv, GroupNorm, level_waves
from habitus.nets.mlp import Linear


class Doubled(eqx.Module):
    """A transposed convolution of width 4 and stride 2 that doubles the length: `y[2 i + k - 1] += x[i] w[k]`.

    Even rows see `x[q]` and `x[q - 1]`, odd ones `x[q + 1]` and `x[q]`, so each kind is one product.
    """

    even: Float[Array, "both outputs"]
    odd: Float[Array, "both outputs"]
    bias: Float[Array, "outputs"]

    def __init__(self, inputs: int, outputs: int, key: PRNGKeyArray):
        a, b, c = jax.random.split(key, 3)
        bound = 1 / (2 * inputs) ** 0.5
        self.even, self.odd = (
            jax.random.uniform(k, (2 * inputs, outputs), minval=-bound, maxval=bound) for k in (a, b)
        )
        self.bias = jax.random.uniform(c, (outputs,), minval=-bound, maxval=bound)

    def __call__(self, x: Float[Array, "time inputs"]) -> Float[Array, "double outputs"]:
        none = jnp.zeros_like(x[:1])
        even = jnp.concatenate([x, jnp.concatenate([none, x[:-1]])], axis=1) @ self.even
        odd = jnp.concatenate([jnp.concatenate([x[1:], none]), x], axis=1) @ self.odd
        return jnp.stack([even, odd], axis=1).reshape(2 * len(x), -1) + self.bias


class ConvBlock(eqx.Module):
    """Convolution, normalisation in eight groups, Mish."""

    conv: Conv
    norm: GroupNorm

    def __init__(self, inputs: int, outputs: int, width: int, key: PRNGKeyArray):
        self.conv, self.norm = Conv(inputs, outputs, width, key), GroupNorm(outputs)

    def __call__(self, x: Float[Array, "time inputs"]) -> Float[Array, "time outputs"]:
        return jax.nn.mish(self.norm(self.conv(x)))


class FilmBlock(eqx.Module):
    """Two blocks with `scale * x + shift` between them, and the input (by a dense layer if it must) added."""

    first: ConvBlock
    second: ConvBlock
    film: Linear
    past: Linear | None

    def __init__(self, inputs: int, outputs: int, width: int, condition: int, key: PRNGKeyArray):
        a, b, c, d = jax.random.split(key, 4)
        self.first, self.second = ConvBlock(inputs, outputs, width, a), ConvBlock(outputs, outputs, width, b)
        self.film = Linear.random(condition, 2 * outputs, c)
        self.past = None if inputs == outputs else Linear.random(inputs, outputs, d)

    def __call__(
        self, x: Float[Array, "time inputs"], condition: Float[Array, "condition"]
    ) -> Float[Array, "time outputs"]:
        scale, shift = jnp.split(self.film(jax.nn.mish(condition)), 2)
        moved = self.second(scale * self.first(x) + shift)
        return moved + (x if self.past is None else self.past(x))


class Stage(eqx.Module):
    """Two blocks at one resolution, and the way to the next one, if there is one."""

    first: FilmBlock
    second: FilmBlock
    leave: Conv | Doubled | None

    def __init__(
        self, inputs: int, outputs: int, width: int, condition: int, key: PRNGKeyArray, leave: Conv | Doubled | None
    ):
        a, b = jax.random.split(key)
        self.first = FilmBlock(inputs, outputs, width, condition, a)
        self.second, self.leave = FilmBlock(outputs, outputs, width, condition, b), leave

    def __call__(
        self, x: Float[Array, "time inputs"], condition: Float[Array, "condition"]
    ) -> tuple[Float[Array, "time outputs"], Float[Array, "next outputs"]]:
        """What the blocks made, and the same at the next resolution."""
        x = self.second(self.first(x, condition), condition)
        return x, x if self.leave is None else self.leave(x)


class ConditionalUNet(eqx.Module):
    """A U-Net over time, [time, columns] to [time, columns], given the noise level and what to condition on.

    Each resolution has half the length of the one before. On the way up each stage but the finest sees what was
    there on the way down; the finest skip is not used, as in the authors' code. The length must be a multiple of
    `2^(resolutions - 1)`.
    """

    enter: tuple[Linear, Linear]
    down: tuple[Stage, ...]
    middle: Stage
    up: tuple[Stage, ...]
    out: tuple[ConvBlock, Linear]
    columns: int = eqx.field(static=True)
    condition: int = eqx.field(static=True)
    levels: int = eqx.field(static=True)
    embedding: int = eqx.field(static=True)

    def __init__(
        self,
        columns: int,
        condition: int,
        key: PRNGKeyArray,
        channels: Sequence[int] = (256, 512, 1024),
        width: int = 5,
        embedding: int = 256,
        levels: int = 1,
    ):
        """Args:
            columns: of the chunk.
            condition: size of what it is conditioned on, all flat and together; 0 for nothing.
            channels: of each resolution, the finest first, multiples of 8.
            width: of the convolutions, odd.
            embedding: waves of each number of the noise level, even.
            levels: how many numbers a noise level is: 1, or as many as the chunk has steps, which ties it to their
                count.

        Raises:
            ConfigError: if a number is out of its domain.
        """
        good = len(channels) >= 1 and all(n >= GROUPS and n % GROUPS == 0 for n in channels)
        require(good, f"channels must be multiples of 8, at least one, but are {tuple(channels)}.")
        require(width >= 1 and width % 2 == 1, f"width must be odd, but is {width}.")
        require(embedding >= 2 and embedding % 2 == 0, f"embedding must be even and 2 or more, but is {embedding}.")
        require(levels >= 1 and columns >= 1, f"levels is {levels} and columns {columns}; both must be 1 or more.")
        require(condition >= 0, f"condition must be 0 or more, but is {condition}.")
        keys = iter(jax.random.split(key, 4 * len(channels) + 4))
        size, deep = embedding + condition, len(channels)
        sizes = [columns, *channels]
        self.columns, self.condition, self.levels, self.embedding = columns, condition, levels, embedding
        self.enter = (
            Linear.random(levels * embedding, 4 * embedding, next(keys)),
            Linear.random(4 * embedding, embedding, next(keys)),
        )
        self.down = tuple(
            Stage(a, b, width, size, next(keys), Conv(b, b, 3, next(keys), stride=2) if i < deep - 1 else None)
            for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
        )
        self.middle = Stage(sizes[-1], sizes[-1], width, size, next(keys), None)
        self.up = tuple(
            Stage(2 * b, a, width, size, next(keys), Doubled(a, a, next(keys)))
            for a, b in reversed(list(zip(sizes[1:-1], sizes[2:], strict=True)))
        )
        self.out = ConvBlock(sizes[1], sizes[1], width, next(keys)), Linear.random(sizes[1], columns, next(keys))

    def __call__(
        self, x: Float[Array, "time columns"], level: Num[Array, "..."], *condition: Float[Array, "..."]
    ) -> Float[Array, "time columns"]:
        """Raises:
        SpaceMismatch: if the length of `x`, the noise level or the condition is not what it is made for.
        """
        part = 2 ** (len(self.down) - 1)
        if len(x) % part:
            raise SpaceMismatch(
                f"the chunk has {len(x)} steps, but a U-Net of {len(self.down)} resolutions needs a multiple of "
                f"{part}; choose another length, or fewer resolutions."
            )
        given = sum(c.size for c in condition)
        if given != self.condition:
            raise SpaceMismatch(f"the network is made to be given {self.condition} numbers besides, but gets {given}.")
        code = self.enter[1](jax.nn.mish(self.enter[0](level_waves(level, self.levels, self.embedding))))
        code = jnp.concatenate([code, *(c.ravel() for c in condition)])
        skips = []
        for stage in self.down:
            skip, x = stage(x, code)
            skips.append(skip)
        _, x = self.middle(x, code)
        for stage, skip in zip(self.up, reversed(skips[1:]), strict=True):
            _, x = stage(jnp.concatenate([x, skip], axis=1), code)
        return self.out[1](self.out[0](x))
