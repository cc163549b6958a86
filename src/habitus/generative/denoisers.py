"""Networks that tell noise from data: a U-Net over time, and a residual MLP for short or flat things.

Both are called as `network(x, level)` for one example `x` [time, columns] and a code of its noise level. `unet` has
the U-Net of diffusion policies, which is told what to condition on, and `gpt` a small transformer.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray

from habitus.core.domains import require
from habitus.core.errors import SpaceMismatch
from habitus.nets.embedding import sinusoidal
from habitus.nets.mlp import Linear, dense

GROUPS = 8


class LevelCode(eqx.Module):
    """The noise level as features: waves, then two dense layers.

    A level may be several numbers: one for each time step, or the time and the size of a step. Each has its waves.
    """

    first: Linear
    second: Linear
    waves: int = eqx.field(static=True)
    levels: int = eqx.field(static=True)

    def __init__(self, features: int, key: PRNGKeyArray, levels: int = 1, waves: int | None = None):
        """Args:
            levels: how many numbers a level is.
            waves: features of each of them before the dense layers, even; by default a quarter of `features`.

        Raises:
            ConfigError: if a count is out of its domain.
        """
        self.waves, self.levels = features // 4 if waves is None else waves, levels
        require(levels >= 1, f"a noise level is 1 number or more, but levels is {levels}.")
        require(self.waves >= 2 and self.waves % 2 == 0, f"waves must be even and 2 or more, but are {self.waves}.")
        a, b = jax.random.split(key)
        self.first, self.second = Linear.random(levels * self.waves, features, a), Linear.random(features, features, b)

    def __call__(self, level: Num[Array, "..."]) -> Float[Array, "features"]:
        code = level_waves(level, self.levels, self.waves)
        return jax.nn.silu(self.second(jax.nn.silu(self.first(code))))


def level_waves(level: Num[Array, "..."], levels: int, waves: int) -> Float[Array, "features"]:
    """The waves of each of the `levels` numbers of a noise level, one after the other.

    Raises:
        SpaceMismatch: if there are more or fewer.
    """
    if level.size != levels:
        raise SpaceMismatch(
            f"the network is made for noise levels of {levels} numbers, but is given {level.size}; make one for them."
        )
    numbers = level.ravel().astype(jnp.float32)
    return jnp.concatenate([sinusoidal(numbers[i], waves) for i in range(levels)])


class Conv(eqx.Module):
    """A convolution over time with zeros around it, so that the length stays, or with `stride` 2 is halved.

    It is one product of the rows side by side, which is several times faster on a CPU than XLA's convolution.
    """

    dense: Linear
    width: int = eqx.field(static=True)
    stride: int = eqx.field(static=True)

    def __init__(self, inputs: int, outputs: int, width: int, key: PRNGKeyArray, stride: int = 1):
        self.dense, self.width, self.stride = Linear.random(width * inputs, outputs, key), width, stride

    def __call__(self, x: Float[Array, "time inputs"]) -> Float[Array, "less outputs"]:
        before = (self.width - 1) // 2
        padded = jnp.pad(x, ((before, self.width - 1 - before), (0, 0)))
        rows = [padded[i : i + len(x) : self.stride] for i in range(self.width)]
        return self.dense(jnp.concatenate(rows, axis=1))


class GroupNorm(eqx.Module):
    """Zero mean and unit variance over time and over each of eight groups of channels; then a learned scale."""

    scale: Float[Array, "channels"]
    shift: Float[Array, "channels"]

    def __init__(self, channels: int):
        self.scale, self.shift = jnp.ones(channels), jnp.zeros(channels)

    def __call__(self, x: Float[Array, "time channels"]) -> Float[Array, "time channels"]:
        groups = x.reshape(len(x), GROUPS, -1)
        mean = groups.mean((0, 2), keepdims=True)
        var = ((groups - mean) ** 2).mean((0, 2), keepdims=True)
        return ((groups - mean) * jax.lax.rsqrt(var + 1e-6)).reshape(x.shape) * self.scale + self.shift


class Block(eqx.Module):
    """Convolution, normalisation, ReLU."""

    conv: Conv
    norm: GroupNorm

    def __init__(self, inputs: int, outputs: int, width: int, key: PRNGKeyArray):
        self.conv, self.norm = Conv(inputs, outputs, width, key), GroupNorm(outputs)

    def __call__(self, x: Float[Array, "time inputs"], shift: Array | float = 0.0) -> Float[Array, "time outputs"]:
        return jax.nn.relu(self.norm(self.conv(x) + shift))


class Down(eqx.Module):
    """Two blocks at one resolution; the code of the level enters the first."""

    level: Linear
    first: Block
    second: Block

    def __init__(self, inputs: int, outputs: int, code: int, key: PRNGKeyArray):
        a, b, c = jax.random.split(key, 3)
        self.level = Linear.random(code, outputs, a)
        self.first, self.second = Block(inputs, outputs, 3, b), Block(outputs, outputs, 3, c)

    def __call__(self, x: Float[Array, "time inputs"], code: Float[Array, "code"]) -> Float[Array, "time outputs"]:
        return self.second(self.first(x, self.level(code)))


class Up(eqx.Module):
    """Doubles the resolution, then two blocks that also see what was there on the way down."""

    level: Linear
    widen: Block
    first: Block
    second: Block

    def __init__(self, inputs: int, outputs: int, code: int, key: PRNGKeyArray):
        a, b, c, d = jax.random.split(key, 4)
        self.level, self.widen = Linear.random(code, outputs, a), Block(inputs, outputs, 2, b)
        self.first, self.second = Block(2 * outputs, outputs, 3, c), Block(outputs, outputs, 3, d)

    def __call__(
        self, x: Float[Array, "short inputs"], skip: Float[Array, "time outputs"], code: Float[Array, "code"]
    ) -> Float[Array, "time outputs"]:
        x = jnp.repeat(x, 2, axis=0)
        x = jnp.pad(x, ((0, max(0, len(skip) - len(x))), (0, 0)), mode="edge")[: len(skip)]
        x = self.widen(x, self.level(code))
        return self.second(self.first(jnp.concatenate([x, skip], axis=1)))


class UNet(eqx.Module):
    """A U-Net over time: [time, columns] to [time, columns], of any length.

    `blocks` resolutions, each half the one before with twice the channels (Jackson et al. 2024; Ronneberger et
    al. 2015).
    """

    code: LevelCode
    down: tuple[Down, ...]
    up: tuple[Up, ...]
    out: Conv

    def __init__(self, columns: int, features: int, blocks: int, key: PRNGKeyArray):
        """Args:
            features: channels at the finest resolution, a multiple of 8.

        Raises:
            ConfigError: if a number is out of its domain.
        """
        require(features >= GROUPS and features % GROUPS == 0, f"features must be a multiple of 8, but is {features}.")
        require(blocks >= 1, f"blocks must be 1 or more, but is {blocks}.")
        code_key, down_key, up_key, out_key = jax.random.split(key, 4)
        sizes = [columns] + [features * 2**i for i in range(blocks)]
        downs, ups = jax.random.split(down_key, blocks), jax.random.split(up_key, blocks)
        self.code = LevelCode(features, code_key)
        self.down = tuple(Down(sizes[i], sizes[i + 1], features, downs[i]) for i in range(blocks))
        self.up = tuple(Up(sizes[i + 2], sizes[i + 1], features, ups[i]) for i in reversed(range(blocks - 1)))
        self.out = Conv(features, columns, 1, out_key)

    def __call__(self, x: Float[Array, "time columns"], level: Float[Array, ""]) -> Float[Array, "time columns"]:
        code, skips = self.code(level), []
        for i, down in enumerate(self.down):
            x = down(_halved(x) if i else x, code)
            skips.append(x)
        for up, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = up(x, skip, code)
        return self.out(x)


def _halved(x: Float[Array, "time channels"]) -> Float[Array, "short channels"]:
    """The greater of every two neighbours; a last row without one is dropped."""
    n = len(x) // 2
    return x[: 2 * n].reshape(n, 2, -1).max(1)


def check_residual(width: int, blocks: int, prefix: str = "") -> None:
    """Raises `ConfigError` unless a residual MLP can have these sizes; `prefix` of their names as they were given."""
    require(width >= 8 and width % 8 == 0, f"{prefix}width must be a multiple of 8, but is {width}.")
    require(blocks >= 1, f"{prefix}blocks must be 1 or more, but is {blocks}.")


class ResidualMLP(eqx.Module):
    """Dense layers with shortcuts: anything of a fixed shape, given the level and, if wanted, a vector besides."""

    enter: Linear
    blocks: tuple[tuple[Linear, Linear], ...]
    out: Linear
    code: LevelCode
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        blocks: int,
        key: PRNGKeyArray,
        condition: int = 0,
        levels: int = 1,
        waves: int | None = None,
    ):
        """Args:
            shape: of one example.
            width: features of each layer, a multiple of 8.
            condition: size of what it is given besides, all flat and together.
            levels, waves: of its noise level, see `LevelCode`.

        Raises:
            ConfigError: if a number is out of its domain.
        """
        check_residual(width, blocks)
        enter_key, code_key, out_key, *keys = jax.random.split(key, 3 + 2 * blocks)
        size = 1
        for n in shape:
            size *= n
        self.shape, self.code = tuple(shape), LevelCode(width, code_key, levels, waves)
        self.enter = Linear.random(size + width + condition, width, enter_key)
        self.out = Linear.random(width, size, out_key)
        layers = dense([(width, width)] * (2 * blocks), jnp.stack(keys))
        self.blocks = tuple(zip(layers[::2], layers[1::2], strict=True))

    def __call__(
        self, x: Float[Array, "*shape"], level: Num[Array, "..."], *condition: Float[Array, "..."]
    ) -> Float[Array, "*shape"]:
        h = self.enter(jnp.concatenate([x.ravel(), self.code(level), *(c.ravel() for c in condition)]))
        for first, second in self.blocks:
            h = h + second(jax.nn.silu(first(jax.nn.silu(h))))
        return self.out(jax.nn.silu(h)).reshape(self.shape)
