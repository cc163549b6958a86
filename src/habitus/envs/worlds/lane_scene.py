"""A bending road of three lanes with other cars on it: rules of driving can be kept here in many ways, or broken."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.experience import Action, Step
from habitus.core.protocols import Env, require
from habitus.envs.actions import fit_action

LANES, CARS = 3, 3
LENGTH, RADIUS = 4.084, 1.2  # of a car, and of the two discs that cover it [m]
LIMITS = (0.5, 5.0)  # greatest turn rate [rad/s] and acceleration [m/s^2]
NEAREST, FURTHEST = -5.0, 20.0  # within which gaps are told apart [m]
BEND = 0.015  # greatest curvature [1/m]
SCENE = 4 + 3 * CARS  # numbers in an observation


class Scene(eqx.Module):
    """Where everything is. The middle of the road passes the origin in the direction of x; left is positive.

    Attributes:
        ego: x [m], y [m], heading [rad] and speed [m/s].
        curvature: of the middle of the road, 1/m; above 0 it bends to the left.
        cars: for each other car its place along the road [m], its offset from the middle [m] and its speed [m/s].
    """

    ego: Float[Array, "4"]
    curvature: Float[Array, ""]
    cars: Float[Array, "cars 3"]


def scene_of(obs: Float[Array, "13"]) -> Scene:
    """The scene that an observation of `LaneScene` shows; the ego is beside the origin."""
    return Scene(jnp.concatenate([jnp.zeros(1), obs[:3]]), obs[3] / 100, obs[4:].reshape(CARS, 3))


def observe(scene: Scene) -> Float[Array, "13"]:
    """What a scene looks like, from wherever the ego is: `scene_of(observe(s))` is `s`, moved along the road."""
    arc, offset, heading = on_road(scene.curvature, scene.ego[0], scene.ego[1])
    own = jnp.stack([offset, scene.ego[2] - heading, scene.ego[3], 100 * scene.curvature])
    return jnp.concatenate([own, scene.cars.at[:, 0].add(-arc).ravel()])


def on_road(
    curvature: Float[Array, ""], x: Float[Array, "*shape"], y: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Of a point, its place along the road, its offset from the middle, and the heading of the road beside it.

    With curvature k the middle is a circle around (0, 1/k). The offset, `1/k` less the distance to it, is written as
    `(2y - k(x^2 + y^2)) / (1 + sqrt((kx)^2 + (1 - ky)^2))`, which is exact at k = 0 as well.
    """
    along, across = curvature * x, 1 - curvature * y
    offset = (2 * y - curvature * (x**2 + y**2)) / (1 + jnp.sqrt(along**2 + across**2))
    heading = jnp.arctan2(along, across)
    straight = jnp.abs(curvature) < 1e-6
    return jnp.where(straight, x, heading / jnp.where(straight, 1.0, curvature)), offset, heading


def placed(
    curvature: Float[Array, ""], arc: Float[Array, "*shape"], offset: Float[Array, "*#shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"], Float[Array, "*shape"]]:
    """The inverse of `on_road`: x, y and the heading of the road there."""
    heading = curvature * arc
    half = jnp.sinc(heading / (2 * jnp.pi))
    x = arc * jnp.sinc(heading / jnp.pi) - jnp.sin(heading) * offset
    y = arc * jnp.sin(heading / 2) * half + jnp.cos(heading) * offset
    return x, y, heading


def path(ego: Float[Array, "4"], controls: Float[Array, "time 2"], dt: float | Array) -> Float[Array, "time 4"]:
    """The states of the ego after each of its controls: Euler steps of

    `x' = v cos th, y' = v sin th, th' = w, v' = a`, all at once.
    """
    heading, speed = (ego[2:] + dt * jnp.cumsum(controls, 0)).T
    before_heading = jnp.concatenate([ego[2:3], heading[:-1]])
    before_speed = jnp.concatenate([ego[3:4], speed[:-1]])
    velocity = before_speed[:, None] * jnp.stack([jnp.cos(before_heading), jnp.sin(before_heading)], 1)
    return jnp.concatenate([ego[:2] + dt * jnp.cumsum(velocity, 0), heading[:, None], speed[:, None]], 1)


def gap(scene: Scene, states: Float[Array, "time 4"], time: Float[Array, "time"]) -> Float[Array, "time"]:
    """Distances [m] from the ego in later states to the nearest car as it will be then, `time` seconds on.

    Between discs, two on each car: below 0 they overlap. Cut to [-5, 20].
    """
    ends = (LENGTH / 2 - RADIUS) * jnp.array([1.0, -1.0])
    arc, offset, speed = scene.cars.T[:, :, None]
    x, y, heading = placed(scene.curvature, arc + time * speed, offset)
    facing = jnp.stack([jnp.cos(heading), jnp.sin(heading)])
    others = jnp.stack([x, y])[:, None] + ends[:, None, None] * facing[:, None]
    others = others.reshape(2, -1, len(time))  # [x and y, discs, time]
    place, turned = states[:, :2].T, jnp.stack([jnp.cos(states[:, 2]), jnp.sin(states[:, 2])])
    # which two discs are nearest has no gradient, and only their distance needs one: far less work than a minimum
    own = jax.lax.stop_gradient(place[:, None] + ends[:, None] * turned[:, None])
    square = ((others[:, :, None] - own[:, None]) ** 2).sum(0).reshape(-1, len(time))
    disc, end = jnp.divmod(jnp.argmin(square, 0), 2)
    nearest = jnp.where(disc == jnp.arange(2 * CARS)[:, None], others, 0.0).sum(1)
    square = ((place + ends[end] * turned - nearest) ** 2).sum(0)
    distance = jnp.sqrt(jnp.maximum(square, 1e-6)) - 2 * RADIUS  # the root has no slope at 0
    return jnp.clip(distance, NEAREST, FURTHEST)


class LaneScene(Env):
    """Drives among three cars that keep to their lanes and speeds; the cars of a lane are equally fast.

    Action: turn rate within 0.5 rad/s and acceleration within 5 m/s^2, each held for `dt` seconds. The reward is the
    way made along the road in a step, divided by 10 m/s. An episode terminates when cars touch or the ego's centre
    leaves the road; `info` tells "collision" and "off_road" apart. One car is always beside the ego in another lane.

    Observation, 13 numbers: the ego's offset from the middle of the road, its heading relative to the road, its speed,
    100 times the curvature; and of each car the way ahead of the ego along the road, the offset and the speed.
    """

    dt: float = 0.5
    """seconds of a step"""
    width: float = 3.5
    """of a lane [m]"""
    limit: int = eqx.field(default=40, static=True)
    """steps of an episode in `make`"""

    def __check_init__(self) -> None:
        require(self.dt > 0, f"dt must be above 0, but is {self.dt}.")
        require(self.width > 2 * RADIUS, f"width must be above {2 * RADIUS}, as cars must pass, but is {self.width}.")
        require(self.limit >= 1, f"limit must be 1 or more, but is {self.limit}.")

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (SCENE,))

    @property
    def action_space(self) -> spaces.Box:
        bound = np.array(LIMITS, np.float32)
        return spaces.Box(-bound, bound)

    def reset(self, key: PRNGKeyArray) -> tuple[Scene, Float[Array, "13"]]:
        lane_key, own_key, speed_key, bend_key, where_key, arc_key, beside_key = jax.random.split(key, 7)
        lane = jax.random.randint(lane_key, (), 0, LANES)
        speeds = jax.random.uniform(speed_key, (LANES + 1,), minval=3.0, maxval=10.0)
        bend, bends = jax.random.uniform(bend_key, (2,))
        curvature = jnp.where(bends < 0.5, 0.0, BEND * (2 * bend - 1))
        lanes = jax.random.randint(where_key, (CARS,), 0, LANES)
        beside = (lane + jax.random.randint(beside_key, (), 1, LANES)) % LANES
        lanes = lanes.at[1].set(beside)  # the second is beside, the first behind, the third ahead
        low, high = jnp.array([-35.0, -12.0, 17.0]), jnp.array([-17.0, 12.0, 40.0])
        arc = low + (high - low) * jax.random.uniform(arc_key, (CARS,))
        cars = jnp.stack([arc, self.offset(lanes), speeds[lanes]], 1)
        wander, turned = 0.2 * jax.random.normal(own_key, (2,))
        ego = jnp.stack([jnp.zeros(()), self.offset(lane) + wander, 0.1 * turned, speeds[LANES]])
        scene = Scene(ego, curvature, cars)
        return scene, observe(scene)

    def step(self, state: Scene, action: Action, key: PRNGKeyArray) -> tuple[Scene, Step]:
        bound = jnp.asarray(LIMITS)
        action = jnp.clip(fit_action(self.action_space, action), -bound, bound)
        cars = state.cars.at[:, 0].add(self.dt * state.cars[:, 2])
        moved = Scene(path(state.ego, action[None], self.dt)[0], state.curvature, cars)
        arc, offset, _ = on_road(state.curvature, moved.ego[0], moved.ego[1])
        collision = gap(moved, moved.ego[None], jnp.zeros(1))[0] < 0
        off_road = jnp.abs(offset) > LANES * self.width / 2
        obs = observe(moved)
        reward = (arc / (10 * self.dt)).astype(jnp.float32)
        info = {"collision": collision, "off_road": off_road}
        return scene_of(obs), Step(obs, reward, collision | off_road, jnp.array(False), info)

    def offset(self, lane: Array) -> Float[Array, "*shape"]:
        """Of the middle of a lane from that of the road [m]; lanes are counted from the right."""
        return (lane - (LANES - 1) / 2) * self.width

    def lane(self, offset: Float[Array, "*shape"]) -> Array:
        """The lane at an offset, as an integer from the right; the outermost one beyond the road."""
        found = jnp.round(offset / self.width + (LANES - 1) / 2).astype(jnp.int32)
        return jnp.clip(found, 0, LANES - 1)
