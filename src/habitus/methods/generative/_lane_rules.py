"""Rules of driving as formulas of signal temporal logic, with six parameters, and what is calibrated of these.

Y. Meng and C. Fan, "Diverse Controllable Diffusion Policy with Signal Temporal Logic", RA-L 2024, section IV.
"""

from __future__ import annotations

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core import stl
from habitus.core.protocols import require
from habitus.core.stl.expressions import Scalar
from habitus.envs.worlds.lane_scene import LANES, LIMITS, SCENE, LaneScene, Scene, gap, observe, on_road, path, scene_of

KEEP, LEFT, RIGHT = range(3)
MANOEUVRES = 3
THETA = ("vmin", "vmax", "dmin", "dmax", "dsafe", "thmax")
CASE = MANOEUVRES + SCENE + len(THETA)
SIGNALS = ("speed", "gap", "offset", "heading")


class Case(eqx.Module):
    """What a plan is made for.

    Attributes:
        scene: where everything is.
        manoeuvre: keep the lane, change to the left, or to the right.
        theta: the parameters of its rules, in the order of `THETA`: least and greatest speed [m/s], least and greatest
            offset from the middle of the lane to be in [m], least gap [m], greatest angle to the road [rad].
    """

    scene: Scene
    manoeuvre: Int[Array, ""]
    theta: Float[Array, "6"]

    @classmethod
    def of(cls, vector: Float[Array, "22"]) -> Case:
        """The inverse of `vector`."""
        manoeuvre = jnp.argmax(vector[:MANOEUVRES]).astype(jnp.int32)
        return cls(scene_of(vector[MANOEUVRES : MANOEUVRES + SCENE]), manoeuvre, vector[-len(THETA) :])

    @property
    def vector(self) -> Float[Array, "22"]:
        """As a canonical observation: the manoeuvre's code, the scene, the parameters."""
        code = jax.nn.one_hot(self.manoeuvre, MANOEUVRES)
        return jnp.concatenate([code, observe(self.scene), self.theta])


@cache
def rules(horizon: int) -> tuple[stl.Formula, stl.Formula]:
    """What holds of a plan of so many steps that keeps its lane, and of one that changes it.

    To be in the other lane must begin in the first half, and last. The angle counts relative to its bound, so that it
    is of the size of the other predicates.

    Raises:
        ConfigError: if the horizon is below 2.
    """
    require(horizon >= 2, f"horizon must be 2 steps or more, as half of it is for the change, but is {horizon}.")
    road = "speed >= vmin and speed <= vmax and gap >= dsafe"
    inside, aligned = "(offset >= dmin and offset <= dmax)", "heading / thmax <= 1"
    soon = f"eventually[0,{horizon // 2 - 1}] always"
    names = (*SIGNALS, *THETA)
    keep = stl.parse(f"always ({road} and {inside} and {aligned})", names)
    return keep, stl.parse(f"always ({road}) and {soon} {inside} and {soon} {aligned}", names)


def signals(
    scene: Scene, manoeuvre: Int[Array, ""], controls: Float[Array, "time 2"], world: LaneScene
) -> dict[str, Float[Array, "time"]]:
    """The signals that the rules speak of, after each control: offset from the lane to be in, angle without sign."""
    states = path(scene.ego, controls, world.dt)
    _, offset, road = on_road(scene.curvature, states[:, 0], states[:, 1])
    time = world.dt * jnp.arange(1, len(controls) + 1)
    aim = offset - world.offset(lane_now(scene, world) + side(manoeuvre))
    return {
        "speed": states[:, 3],
        "gap": gap(scene, states, time),
        "offset": aim,
        "heading": jnp.abs(states[:, 2] - road),
    }


def lane_now(scene: Scene, world: LaneScene) -> Int[Array, ""]:
    """The lane that the ego is in."""
    return world.lane(on_road(scene.curvature, scene.ego[0], scene.ego[1])[1])


def side(manoeuvre: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """How many lanes to the left a manoeuvre leads."""
    return jnp.asarray([0, 1, -1])[manoeuvre]


def possible(scene: Scene, world: LaneScene) -> Bool[Array, "3"]:
    """Which manoeuvres lead to a lane that there is."""
    lane = lane_now(scene, world) + side(jnp.arange(MANOEUVRES))
    return (lane >= 0) & (lane < LANES)


def robustness(
    case: Case, plan: Float[Array, "time 2"], world: LaneScene, temperature: Scalar | None = None
) -> Float[Array, ""]:
    """How robustly a plan keeps the rules of its case: above 0 it does.

    Args:
        plan: controls as shares of their limits.
        temperature: of the smooth robustness, `1 / tau`; None for the exact one.
    """
    found = signals(case.scene, case.manoeuvre, plan * jnp.asarray(LIMITS), world)
    trace = found | dict(zip(THETA, case.theta, strict=True))
    keep, change = rules(len(plan))

    def judged(formula: stl.Formula) -> Array:
        return stl.robustness(formula, trace, temperature=temperature)

    return jax.lax.cond(case.manoeuvre == KEEP, lambda: judged(keep), lambda: judged(change))


def driven(scene: Scene, plan: Float[Array, "time 2"], world: LaneScene) -> Int[Array, ""]:
    """The manoeuvre that a plan turns out to be: into which lane it leads, at most one away."""
    last = path(scene.ego, plan * jnp.asarray(LIMITS), world.dt)[-1]
    there = world.lane(on_road(scene.curvature, last[0], last[1])[1])
    return jnp.asarray([KEEP, LEFT, RIGHT])[jnp.clip(there - lane_now(scene, world), -1, 1)].astype(jnp.int32)


def calibrated(scene: Scene, plan: Float[Array, "time 2"], world: LaneScene) -> Case:
    """The case with the parameters that a logged plan keeps, with a little to spare (authors' flexible values).

    A plan that never touches another car keeps the rules of its own case.
    """
    manoeuvre = driven(scene, plan, world)
    found = signals(scene, manoeuvre, plan * jnp.asarray(LIMITS), world)
    settled = (manoeuvre == KEEP) | (jnp.arange(len(plan)) >= len(plan) // 2 - 1)
    offset = found["offset"]
    theta = [
        jnp.maximum(found["speed"].min() - 1.0, -0.3),
        found["speed"].max() + 1.0,
        jnp.where(settled, offset, jnp.inf).min() - 0.3,
        jnp.where(settled, offset, -jnp.inf).max() + 0.3,
        jnp.maximum(found["gap"].min() - 0.1, 0.0),
        found["heading"].max() + 0.1,
    ]
    return Case(scene, manoeuvre, jnp.stack(theta))


def loosened(case: Case, key: PRNGKeyArray) -> Float[Array, "3 6"]:
    """For each manoeuvre the parameters to try it with: its own for that of the case, wider ones for the others."""
    vmin, vmax, dmin, dmax, dsafe, thmax = case.theta
    slower, faster, right, left, nearer, turned = jax.random.uniform(key, (6,))
    changing = jnp.arange(MANOEUVRES) != KEEP
    columns = [
        jnp.maximum(vmin - (1.3 + 1.7 * slower), -0.3),
        vmax + (1.3 + 1.7 * faster),
        jnp.where(changing, -2.5 + 2.0 * right, jnp.minimum(dmin, 0.0) - 2.5 * right),
        jnp.where(changing, 0.5 + 2.0 * left, jnp.maximum(dmax, 0.0) + 2.5 * left),
        jnp.maximum(dsafe - 1.5 * nearer, 0.0),
        thmax + 0.3 * turned,
    ]
    wider = jnp.stack([jnp.broadcast_to(column, (MANOEUVRES,)) for column in columns], 1)
    return jnp.where((jnp.arange(MANOEUVRES) == case.manoeuvre)[:, None], case.theta, wider)
