"""Pictures of the built-in worlds, drawn in NumPy: a few milliseconds each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from habitus.core.errors import SpaceMismatch
from habitus.core.protocols import Env, EnvState
from habitus.envs.worlds.acrobot import Acrobot
from habitus.envs.worlds.bit_flip import BitFlip
from habitus.envs.worlds.cartpole import CartPole
from habitus.envs.worlds.cartpole_swingup import CartPoleSwingUp
from habitus.envs.worlds.combination_lock import CombinationLock
from habitus.envs.worlds.finite import FiniteMDP, LinearMDP, TabularLock
from habitus.envs.worlds.four_rooms import GOAL, SIZE, WALLS, FourRooms
from habitus.envs.worlds.frozen_lake import FrozenLake
from habitus.envs.worlds.icu5 import FEATURES, ICU5
from habitus.envs.worlds.keydoor import HEADINGS, OPEN, KeyDoor
from habitus.envs.worlds.lane_scene import LANES, LENGTH, LaneScene, placed
from habitus.envs.worlds.mountaincar_continuous import MountainCarContinuous
from habitus.envs.worlds.pendulum import Pendulum
from habitus.envs.worlds.planar_goals import PlanarGoals
from habitus.envs.worlds.planar_pick import HALF, OBSTACLE, RADIUS, InstructedPick, PlanarPick
from habitus.envs.worlds.planar_wipe import CELLS, EDGE, PlanarWipe, drift_of
from habitus.envs.worlds.pointmaze import PointMaze
from habitus.envs.wrappers import Wrapper

HEIGHT = WIDTH = 240
PAPER, INK, FAINT, BODY, GOAL_COLOUR = (250, 250, 247), (52, 58, 64), (206, 212, 218), (28, 126, 214), (55, 178, 77)
Point = tuple[float, float]
Colour = tuple[int, int, int]


def render(env: Env, state: EnvState) -> np.ndarray:
    """One state as a picture: uint8 [height, width, 3].

    Args:
        env: a built-in world, in wrappers or not.
        state: one of its states, not a batch of them.

    Raises:
        SpaceMismatch: if there is no drawing of this world.
    """
    while isinstance(env, Wrapper):
        state, env = env.inner(state), env.env
    if type(env) not in DRAWINGS:
        raise SpaceMismatch(f"there is no drawing of {type(env).__name__}; only the built-in worlds can be drawn.")
    canvas = np.full((HEIGHT, WIDTH, 3), PAPER, np.float32)
    numbers = np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(state)])
    DRAWINGS[type(env)](env, numbers, canvas)
    return canvas.round().astype(np.uint8)


def _pendulum(env: Pendulum, state: np.ndarray, canvas: np.ndarray) -> None:
    pivot = (WIDTH / 2, HEIGHT / 2)
    _line(canvas, pivot, _polar(pivot, 85.0, state[0]), 9.0, BODY)
    _line(canvas, pivot, pivot, 3.0, PAPER)


def _cartpole(env: CartPole | CartPoleSwingUp, state: np.ndarray, canvas: np.ndarray) -> None:
    rail, scale = 170.0, WIDTH / (2.4 * env.max_position)
    cart = (WIDTH / 2 + scale * float(state[0]), rail)
    _line(canvas, (0, rail), (WIDTH, rail), 1.0, FAINT)
    _line(canvas, (cart[0] - 15, rail), (cart[0] + 15, rail), 9.0, INK)
    # The angle grows to the right, unlike the pendulum's.
    _line(canvas, cart, _polar(cart, 100.0, -state[2]), 4.0, BODY)


def _mountain_car(env: MountainCarContinuous, state: np.ndarray, canvas: np.ndarray) -> None:
    def place(position: float) -> Point:
        share = (position - env.min_position) / (env.max_position - env.min_position)
        return WIDTH * share, HEIGHT * (0.55 - 0.3 * float(np.sin(3 * position)))

    road = [place(x) for x in np.linspace(env.min_position, env.max_position, 24)]
    for start, end in zip(road, road[1:], strict=False):
        _line(canvas, start, end, 1.5, INK)
    x, y = place(env.goal_position)
    _line(canvas, (x, y), (x, y - 30), 2.0, GOAL_COLOUR)
    x, y = place(float(state[0]))
    _line(canvas, (x, y - 8), (x, y - 8), 8.0, BODY)


def _acrobot(env: Acrobot, state: np.ndarray, canvas: np.ndarray) -> None:
    axle = (WIDTH / 2, HEIGHT / 2)
    elbow = _polar(axle, 52.0, np.pi + state[0])
    _line(canvas, (0, axle[1] - 52), (WIDTH, axle[1] - 52), 1.0, GOAL_COLOUR)
    _line(canvas, axle, elbow, 6.0, INK)
    _line(canvas, elbow, _polar(elbow, 52.0, np.pi + state[0] + state[1]), 6.0, BODY)


def _pointmaze(env: PointMaze, state: np.ndarray, canvas: np.ndarray) -> None:
    scale = _cells(canvas, env.walls)
    goal, at = state[4:6] * scale, state[:2] * scale
    _line(canvas, goal, goal, env.radius * scale, GOAL_COLOUR)
    _line(canvas, at, at + state[2:4] * scale / 4, 2.0, INK)
    _line(canvas, at, at, 6.0, BODY)


def _planar_pick(env: PlanarPick, state: np.ndarray, canvas: np.ndarray) -> None:
    """The gripper is a ring when open and a disc when closed; y points up."""
    scale = WIDTH / (2 * HALF)

    def disc(at: Any, radius: float, colour: Colour) -> None:
        place = (scale * (HALF + at[0]), scale * (HALF - at[1]))
        _line(canvas, place, place, scale * radius, colour)

    disc(OBSTACLE, RADIUS, FAINT)
    for target in (state[8:10], state[10:12]):
        disc(target, env.reach, GOAL_COLOUR)
        disc(target, env.reach - 0.01, PAPER)
    for thing in (state[4:6], state[6:8]):
        disc(thing, 0.02, INK)
    disc(state[:2], 0.028, BODY)
    if not state[2]:
        disc(state[:2], 0.014, PAPER)
    if isinstance(env, InstructedPick):  # a dot in the object and in the target that it is to go to
        thing, target = state[12:14].astype(int)
        for place in (state[4 + 2 * thing :][:2], state[8 + 2 * target :][:2]):
            disc(place, 0.01, GOAL_COLOUR)


def _planar_goals(env: PlanarGoals, state: np.ndarray, canvas: np.ndarray) -> None:
    """A line goes from each object to where it is wanted."""
    _planar_pick(env.plane, state[:12], canvas)
    things, goals = (WIDTH / (2 * HALF) * (HALF + x.reshape(2, 2) * (1, -1)) for x in (state[4:8], state[12:]))
    for thing, target in zip(things, goals, strict=True):
        _line(canvas, tuple(thing), tuple(target), 1.0, INK)


def _lane_scene(env: LaneScene, state: np.ndarray, canvas: np.ndarray) -> None:
    """80 m of road around the ego, which drives to the right; left is up."""
    scale = WIDTH / 80

    def point(x: float, y: float) -> Point:
        return WIDTH / 2 + scale * (x - float(state[0])), HEIGHT / 2 - scale * y

    def on_plane(arc: Any, offset: Any) -> list[list[float]]:
        given = (jnp.asarray(x, jnp.float32) for x in (state[4], *np.broadcast_arrays(arc, offset)))
        return [np.asarray(x).tolist() for x in placed(*given)]

    arcs = np.linspace(-60, 60, 25)
    for line in range(LANES + 1):
        x, y, _ = on_plane(arcs, (line - LANES / 2) * env.width)
        places = [point(*at) for at in zip(x, y, strict=True)]
        edge = line in (0, LANES)
        for start, end in zip(places, places[1:], strict=False):
            _line(canvas, start, end, 2.0 if edge else 1.0, INK if edge else FAINT)

    def car(colour: Colour, x: float, y: float, heading: float) -> None:
        half = (LENGTH / 2 - 0.9) * np.array([np.cos(heading), np.sin(heading)])
        _line(canvas, point(x - half[0], y - half[1]), point(x + half[0], y + half[1]), 0.9 * scale, colour)

    others = state[5:].reshape(-1, 3)
    for at in zip(*on_plane(others[:, 0], others[:, 1]), strict=True):
        car(INK, *at)
    car(BODY, *(float(x) for x in state[:3]))


def _planar_wipe(env: PlanarWipe, state: np.ndarray, canvas: np.ndarray) -> None:
    """The board with its wiped cells, and the tool; z points up."""
    x, z, _, amplitude, number, phase, offset, start = state[:8]
    wiped, time = state[9:-1], state[-1]
    scale = WIDTH

    def place(x: float, z: float) -> Point:
        return scale * (0.5 + x), HEIGHT / 2 - scale * z

    lift = offset + float(drift_of(env.drift, time, start))
    for cell in range(CELLS):
        at = [2 * EDGE * (cell + share) / CELLS - EDGE for share in (0, 1)]
        ends = [place(v, amplitude * np.sin(number * v + phase) + lift) for v in at]
        _line(canvas, ends[0], ends[1], 2.0, GOAL_COLOUR if wiped[cell] else INK)
    tip = place(x, z)
    _line(canvas, (tip[0], tip[1] - 4), (tip[0], tip[1] - 24), 4.0, BODY)


def _four_rooms(env: FourRooms, state: np.ndarray, canvas: np.ndarray) -> None:
    scale = _cells(canvas, WALLS)
    for (row, column), colour in ((GOAL, GOAL_COLOUR), (divmod(int(state[0]), SIZE), BODY)):
        centre = ((column + 0.5) * scale, (row + 0.5) * scale)
        _line(canvas, centre, centre, scale / 3, colour)


def _frozen_lake(env: FrozenLake, state: np.ndarray, canvas: np.ndarray) -> None:
    scale = _cells(canvas, np.zeros((len(env.lake), len(env.lake[0])), bool))
    colours = {"H": FAINT, "G": GOAL_COLOUR}
    discs = [(cell, 2.5, colours[kind]) for cell, kind in enumerate("".join(env.lake)) if kind in colours]
    for cell, size, colour in [*discs, (int(state.item()), 4.0, BODY)]:
        row, column = divmod(cell, len(env.lake[0]))
        centre = ((column + 0.5) * scale, (row + 0.5) * scale)
        _line(canvas, centre, centre, scale / size, colour)


def _keydoor(env: KeyDoor, state: np.ndarray, canvas: np.ndarray) -> None:
    agent, heading, key, carried, door, lock = state[:2], int(state[2]), state[3:5], state[5], state[6:8], state[8]
    walls = np.zeros((env.size, env.size), bool)
    walls[[0, -1], :] = walls[:, [0, -1]] = walls[:, int(door[0])] = True
    walls[int(door[1]), int(door[0])] = False
    scale = _cells(canvas, walls)
    key = agent + 0.25 if carried else key
    discs = [
        (np.full(2, env.size - 2), 3, GOAL_COLOUR),
        (door, 2.2, FAINT if lock == OPEN else INK),
        (agent, 3, BODY),
        (agent + 0.3 * HEADINGS[heading], 8, BODY),
        (key, 6, INK),
    ]
    for place, size, colour in discs:
        centre = ((place[0] + 0.5) * scale, (place[1] + 0.5) * scale)
        _line(canvas, centre, centre, scale / size, colour)


def _bit_flip(env: BitFlip, state: np.ndarray, canvas: np.ndarray) -> None:
    step = WIDTH / (env.bits + 1)
    for i, bit in enumerate(state):
        row, column = divmod(i, env.bits)
        centre = ((column + 1) * step, HEIGHT * (0.4 + 0.2 * row))
        _line(canvas, centre, centre, step / 3, (GOAL_COLOUR if row else BODY) if bit else FAINT)


def _icu5(env: ICU5, state: np.ndarray, canvas: np.ndarray) -> None:
    """A column for each number, from -4 to 4; a mark where a cost begins."""
    step = WIDTH / (len(FEATURES) + 1)

    def height(value: float) -> float:
        return HEIGHT / 2 - float(np.clip(value, -4, 4)) / 4 * (HEIGHT / 2 - step / 4)

    for i, (name, value) in enumerate(zip(FEATURES, state, strict=True)):
        x = (i + 1) * step
        _line(canvas, (x, height(-4)), (x, height(4)), 2, FAINT)
        _line(canvas, (x - step / 4, height(0)), (x + step / 4, height(0)), 2, FAINT)
        if name in env.costs:
            _line(canvas, (x - step / 4, height(-1)), (x + step / 4, height(-1)), 4, GOAL_COLOUR)
        _line(canvas, (x, height(value)), (x, height(value)), step / 4, BODY)


def _finite(env: FiniteMDP, state: np.ndarray, canvas: np.ndarray) -> None:
    states = int(env.observation_space.n)
    rows = 3 if isinstance(env, TabularLock) else int(np.ceil(np.sqrt(states)))
    _discs(canvas, states, rows, int(state[0]))


def _combination_lock(env: CombinationLock, state: np.ndarray, canvas: np.ndarray) -> None:
    """A column for each step; above the good latents, below the bad one."""
    latent, step = (int(x) for x in state[:2])
    _discs(canvas, 3 * (env.length + 1), 3, 3 * min(step, env.length) + latent)


def _discs(canvas: np.ndarray, count: int, rows: int, at: int) -> None:
    """So many discs, column by column; one of them in the colour of the body."""
    step = WIDTH / (-(-count // rows) + 1)
    for i in range(count):
        column, row = divmod(i, rows)
        centre = ((column + 1) * step, HEIGHT / 2 + (row - (rows - 1) / 2) * step)
        _line(canvas, centre, centre, step / 3, BODY if i == at else FAINT)


def _polar(origin: Point, length: float, angle: float) -> Point:
    """The point at `length` pixels from `origin`, at an angle from upright that grows anticlockwise."""
    return origin[0] - length * float(np.sin(angle)), origin[1] - length * float(np.cos(angle))


def _cells(canvas: np.ndarray, walls: np.ndarray) -> float:
    """Fills the cells that are wall; returns pixels a cell."""
    scale = min(HEIGHT / walls.shape[0], WIDTH / walls.shape[1])
    rows, columns = (
        np.minimum((np.arange(n) / scale).astype(int), m) for n, m in zip((HEIGHT, WIDTH), walls.shape, strict=True)
    )
    outside = np.pad(walls, ((0, 1), (0, 1)), constant_values=False)
    canvas[outside[np.ix_(rows, columns)]] = FAINT
    return scale


def _line(canvas: np.ndarray, start: Any, end: Any, radius: float, colour: Colour) -> None:
    """A stroke with round ends and smooth edges from `start` to `end`, pixels (x, y); a disc if they are one."""
    (x0, y0), (x1, y1) = start, end
    left, right = (int(np.clip(v, 0, WIDTH)) for v in (min(x0, x1) - radius - 1, max(x0, x1) + radius + 2))
    top, bottom = (int(np.clip(v, 0, HEIGHT)) for v in (min(y0, y1) - radius - 1, max(y0, y1) + radius + 2))
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32) + 0.5
    dx, dy = float(x1 - x0), float(y1 - y0)
    along = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
    distance = np.hypot(x - x0 - along * dx, y - y0 - along * dy)
    cover = np.clip(radius + 0.5 - distance, 0, 1)[..., None]
    patch = canvas[top:bottom, left:right]
    patch += cover * (np.array(colour, np.float32) - patch)


DRAWINGS: dict[type[Env], Callable[[Any, np.ndarray, np.ndarray], None]] = {
    Pendulum: _pendulum,
    CartPole: _cartpole,
    CartPoleSwingUp: _cartpole,
    MountainCarContinuous: _mountain_car,
    Acrobot: _acrobot,
    PointMaze: _pointmaze,
    PlanarPick: _planar_pick,
    PlanarGoals: _planar_goals,
    LaneScene: _lane_scene,
    PlanarWipe: _planar_wipe,
    InstructedPick: _planar_pick,
    FourRooms: _four_rooms,
    BitFlip: _bit_flip,
    FrozenLake: _frozen_lake,
    KeyDoor: _keydoor,
    ICU5: _icu5,
    CombinationLock: _combination_lock,
    FiniteMDP: _finite,
    TabularLock: _finite,
    LinearMDP: _finite,
}
