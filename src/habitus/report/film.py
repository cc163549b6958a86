"""One episode of a saved policy, drawn: frames on one sheet that a style sheet alone can play."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8
from PIL import Image

from habitus.core.errors import HabitusError
from habitus.core.experience import Obs
from habitus.core.policy import Deployed
from habitus.core.protocols import Carry, Env, EnvState
from habitus.core.trees import take
from habitus.envs.adapters.gymnasium import GymnasiumEnv
from habitus.envs.registry import BUILT_IN, make
from habitus.envs.render import render

Frame = UInt8[np.ndarray, "height width 3"]

FRAMES = 60  # kept of an episode: this many, up to twice as many
LONGEST = 1_000  # steps shown of a world without a time limit
WIDTH = 320  # pixels of a frame, at most
COLUMNS = 8


@dataclasses.dataclass(frozen=True)
class Film:
    """An episode as one picture, its frames in rows of `columns` from the top left.

    Attributes:
        sheet: the picture as a `data:` address.
        columns, rows: frames across and down; the last frame fills what is left over.
        width, height: of one frame in pixels.
        returned: undiscounted return of the episode.
        length: steps of the episode.
    """

    sheet: str
    columns: int
    rows: int
    width: int
    height: int
    returned: float
    length: int


class Moment(NamedTuple):
    """One moment of an episode: how to draw it, the reward that came with it, and whether it is the last."""

    draw: Callable[[], Frame]
    reward: float
    last: bool


class Reel:
    """Evenly spaced frames of an episode whose length is not known beforehand."""

    def __init__(self, moments: Iterable[Moment]) -> None:
        self.frames: list[Frame] = []
        self.returned, self.length, stride = 0.0, 0, 1
        for time, moment in enumerate(moments):
            self.returned, self.length = self.returned + moment.reward, time
            if time % stride == 0 or moment.last:
                self.frames.append(moment.draw())
            if len(self.frames) > 2 * FRAMES and not moment.last:
                self.frames, stride = self.frames[::2], 2 * stride


def film(folder: Path, world: str, seed: int) -> Film:
    """Plays one episode of a saved policy and draws it.

    Args:
        folder: of the policy.
        world: a built-in name, or a Gymnasium id.
        seed: of the episode.

    Raises:
        HabitusError: saying why it cannot be shown, if the policy cannot be loaded or the world not made or drawn.
    """
    if world.startswith("gymnax:"):
        raise HabitusError(f"{world} cannot be drawn: gymnax's worlds have no common way to")
    policy = Deployed.load(folder)
    try:
        moments = _built_in(policy, world, seed) if world in BUILT_IN else _in_gymnasium(policy, world, seed)
        reel = Reel(moments)
    except HabitusError:
        raise
    except Exception as error:  # worlds of others, their drawing and its libraries each fail in their own way
        raise HabitusError(f"{world} could not be drawn on this machine ({type(error).__name__}: {error})") from error
    sheet, rows, (height, width) = _sheet(reel.frames)
    return Film(sheet, COLUMNS, rows, width, height, reel.returned, reel.length)


def _built_in(policy: Deployed, world: str, seed: int) -> Iterator[Moment]:
    env = make(world)
    assert isinstance(env, Env)
    policy.spec.check_same(env.spec, world)
    limit = env.horizon or LONGEST
    states, reward, done = jax.device_get(_episode(policy, env, jax.random.key(seed), limit))
    length = int(np.argmax(done)) + 1 if done.any() else limit
    for time in range(length + 1):
        gained = float(reward[time - 1]) if time else 0.0
        yield Moment(partial(render, env, take(states, time)), gained, time == length)


@eqx.filter_jit
def _episode(
    policy: Deployed, env: Env, key: PRNGKeyArray, limit: int
) -> tuple[EnvState, Float[Array, " limit"], Bool[Array, " limit"]]:
    """`limit + 1` states, and the rewards and ends on the way; what follows the first end is of no meaning."""
    reset_key, key = jax.random.split(key)
    first, obs = env.reset(reset_key)

    def one(at: tuple[EnvState, Obs, Carry], key: PRNGKeyArray) -> tuple[Any, Any]:
        state, obs, carry = at
        act_key, step_key = jax.random.split(key)
        action, carry = policy(obs, carry, act_key)
        state, step = env.step(state, action, step_key)
        after = state, step.obs, policy.rewarded(carry, step.reward)
        return after, (state, step.reward, step.terminated | step.truncated)

    _, (states, reward, done) = jax.lax.scan(one, (first, obs, policy.init()), jax.random.split(key, limit))
    return jax.tree.map(lambda x, rest: jnp.concatenate([x[None], rest]), first, states), reward, done


def _in_gymnasium(policy: Deployed, world: str, seed: int) -> Iterator[Moment]:
    host = make(world, render_mode="rgb_array")
    assert isinstance(host, GymnasiumEnv)
    policy.spec.check_same(host.spec, world)
    env, act = host.copies[0], eqx.filter_jit(policy)
    key, carry = jax.random.key(seed), policy.init()
    try:
        obs, _ = env.reset(seed=seed)
        yield Moment(lambda: _frame(env, world), 0.0, False)
        for time in range(1, LONGEST + 1):
            key, act_key = jax.random.split(key)
            action, carry = act(obs, carry, act_key)
            obs, reward, terminated, truncated, _ = env.step(native(env.action_space, action))
            carry = policy.rewarded(carry, jnp.float32(reward))
            last = bool(terminated or truncated or time == LONGEST)
            yield Moment(lambda: _frame(env, world), float(reward), last)
            if last:
                return
    finally:
        host.close()


def native(space: gymnasium.Space, action: Any) -> np.ndarray | int:
    """The action as environments want it: an integer for Discrete spaces, else an array."""
    return int(action) if isinstance(space, gymnasium.spaces.Discrete) else np.asarray(action, space.dtype)


def _frame(env: gymnasium.Env, world: str) -> Frame:
    frame = np.asarray(env.render())
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise HabitusError(f"{world} draws {frame.dtype} arrays of shape {frame.shape}, not uint8 [height, width, 3]")
    return frame


def _sheet(frames: list[Frame]) -> tuple[str, int, tuple[int, int]]:
    """All frames on one picture, as a `data:` address, its rows, and the size of a frame.

    There are always two rows or more, as CSS has no animation of a single step.
    """
    height, width = frames[0].shape[:2]
    scale = min(1.0, WIDTH / width)
    size = round(width * scale), round(height * scale)
    rows = max(2, math.ceil(len(frames) / COLUMNS))
    picture = Image.new("RGB", (COLUMNS * size[0], rows * size[1]))
    for i in range(COLUMNS * rows):
        small = Image.fromarray(frames[min(i, len(frames) - 1)]).resize(size, Image.Resampling.LANCZOS)
        picture.paste(small, (i % COLUMNS * size[0], i // COLUMNS * size[1]))
    # Flat drawings are small without loss, photographs only with it.
    flat = Image.fromarray(frames[0]).getcolors(maxcolors=2_000) is not None
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=flat, quality=80, method=4 if flat else 2)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/webp;base64,{data}", rows, (size[1], size[0])
