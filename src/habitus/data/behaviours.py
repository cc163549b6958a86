"""Controllers written by hand, whose roll-outs are the standard data sets that need no learning."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.protocols import Policy
from habitus.envs.worlds.combination_lock import ARMS, CombinationLock
from habitus.envs.worlds.lane_scene import LANES, LENGTH, LIMITS, LaneScene, scene_of
from habitus.envs.worlds.planar_goals import PlanarGoals
from habitus.envs.worlds.planar_pick import OBSTACLE, TARGETS, PlanarPick
from habitus.envs.worlds.planar_wipe import DRAG, FORCE, SPEED
from habitus.envs.worlds.pointmaze import PointMaze


class SwingUp(Policy):
    """Pumps energy into the pendulum until it rises, then holds it there (Astrom and Furuta, 2000).

    With the angle from upright t and its rate w, the energy w^2/6 + 5 cos t is 5 at rest upright.
    """

    stiffness: float = 15.0
    """torque per angle near upright [N m/rad]"""
    damping: float = 3.0
    """torque per angular velocity near upright [N m s/rad]"""

    def __call__(
        self, obs: Float[Array, "3"], carry: tuple[()], key: PRNGKeyArray
    ) -> tuple[Float[Array, "1"], tuple[()]]:
        cos, sin, speed = obs
        hold = -(self.stiffness * jnp.arctan2(sin, cos) + self.damping * speed)
        missing = 5.0 - (speed**2 / 6 + 5 * cos)
        pump = jnp.where(jnp.abs(speed) < 0.05, 2.0, 2.0 * jnp.sign(speed * missing))
        return jnp.clip(jnp.where(cos > 0.8, hold, pump), -2.0, 2.0)[None], carry


class Dosing(Policy):
    """Doses for `ICU5`: in proportion to severity, of vasopressor also to the lack of pressure."""

    fluid: float = 0.2
    """dose per severity"""
    vasopressor: float = 0.2
    """dose per severity"""
    pressure: float = 0.0
    """of vasopressor, per pressure that is missing"""
    noise: float = 0.0
    """standard deviation of the Gaussian added to both"""

    @classmethod
    def clinician(cls) -> Dosing:
        """Looks at severity alone, and gives both."""
        return cls(noise=0.1)

    @classmethod
    def careful(cls) -> Dosing:
        """No fluid, and vasopressor by severity and pressure: better and safer than the clinician."""
        return cls(fluid=0.0, vasopressor=0.25, pressure=0.25)

    def __call__(
        self, obs: Float[Array, "6"], carry: tuple[()], key: PRNGKeyArray
    ) -> tuple[Float[Array, "2"], tuple[()]]:
        pressure, severity = obs[0], obs[4]
        doses = jnp.stack([self.fluid * severity, self.vasopressor * severity - self.pressure * pressure])
        return jnp.clip(doses + self.noise * jax.random.normal(key, (2,)), 0.0, 1.0), carry


class FollowWay(Policy):
    """Drives to the centre of the next cell on the shortest way, and in the last cell to the goal."""

    way: Float[Array, "rows columns 2"]
    """for each cell, the point to go to next"""
    goal_cell: Float[Array, "2"]
    """centre of the cell of the goal"""
    pull: float = 4.0
    """acceleration per distance"""
    brake: float = 1.5
    """acceleration per velocity"""

    @classmethod
    def through(cls, maze: PointMaze) -> FollowWay:
        """The controller for a maze."""
        return cls(jnp.asarray(maze.guide()), jnp.asarray(maze.centre("G")))

    def __call__(
        self, obs: Float[Array, "6"], carry: tuple[()], key: PRNGKeyArray
    ) -> tuple[Float[Array, "2"], tuple[()]]:
        position, velocity, goal = obs[:2], obs[2:4], obs[4:]
        column, row = position.astype(jnp.int32)
        at_goal = jnp.all(jnp.floor(position) == jnp.floor(self.goal_cell))  # the way ends in that cell's centre
        target = jnp.where(at_goal, goal, self.way[row, column])
        return jnp.clip(self.pull * (target - position) - self.brake * velocity, -1.0, 1.0), carry


class Spoilt(Policy):
    """A controller made worse: weakened, disturbed, and at times ignored for a uniform action."""

    policy: Policy
    low: Float[Array, "*action"]
    high: Float[Array, "*action"]
    gain: float | Float[Array, ""] = 1.0
    """factor of its actions"""
    noise: float | Float[Array, ""] = 0.0
    """standard deviation of the Gaussian added to them"""
    random_share: float | Float[Array, ""] = 0.0
    """probability of a uniform action instead"""

    def __call__(
        self, obs: Float[Array, "*obs"], carry: tuple[()], key: PRNGKeyArray
    ) -> tuple[Float[Array, "*action"], tuple[()]]:
        policy_key, noise_key, uniform_key, choice_key = jax.random.split(key, 4)
        action, carry = self.policy(obs, carry, policy_key)
        action = self.gain * action + self.noise * jax.random.normal(noise_key, action.shape)
        uniform = jax.random.uniform(uniform_key, action.shape, minval=self.low, maxval=self.high)
        ignored = jax.random.bernoulli(choice_key, self.random_share)
        return jnp.clip(jnp.where(ignored, uniform, action), self.low, self.high), carry


class PickLock(Policy):
    """Pulls the right arm of a `CombinationLock`, and with probability `1 / length` a random one instead.

    It reads latent and step off the observation: the inverse of a Hadamard matrix is its transpose over
    its size, and the noise is a tenth of what separates the codes.
    """

    rotation: Float[Array, "size size"]
    right_arms: Int[Array, "steps 2"]
    random_share: float | Float[Array, ""]
    """probability of uniform numbers in place of the right arm's code"""

    @classmethod
    def of(cls, lock: CombinationLock) -> PickLock:
        """The behaviour of the paper for a lock."""
        return cls(jnp.asarray(lock.rotation), jnp.asarray(lock.right_arms, jnp.int32), 1.0 / lock.length)

    def __call__(
        self, obs: Float[Array, "size"], carry: tuple[()], key: PRNGKeyArray
    ) -> tuple[Float[Array, "arms"], tuple[()]]:
        code = self.rotation.T @ obs / obs.shape[0]
        latent, time = jnp.argmax(code[:3]), jnp.argmax(code[3 : 3 + len(self.right_arms)])
        arm = self.right_arms[time, jnp.minimum(latent, 1)]
        random_key, choice_key = jax.random.split(key)
        right = (jnp.arange(ARMS) == arm).astype(jnp.float32)
        random = jax.random.uniform(random_key, (ARMS,))
        return jnp.where(jax.random.bernoulli(choice_key, self.random_share), random, right), carry


class PickAndPlace(Policy):
    """Solves `PlanarPick` in one of eight ways: which object first, to which target, on which side of the disc.

    The way is drawn at the first step of an episode and kept in the carry; observations do not show it, so a log of
    this policy has several right actions in one state.
    """

    speed: float = 0.04
    """of the gripper"""
    detour: float = 0.16
    """how far beside the centre of the disc it passes"""

    @classmethod
    def of(cls, world: PlanarPick) -> PickAndPlace:
        """The controller for a world."""
        return cls(world.speed)

    def init(self) -> Int[Array, "3"]:
        """No way chosen yet."""
        return jnp.full(3, -1, jnp.int32)

    def __call__(
        self, obs: Float[Array, "17"], carry: Int[Array, "3"], key: PRNGKeyArray
    ) -> tuple[Float[Array, "3"], Int[Array, "3"]]:
        way = jnp.where(carry < 0, jax.random.randint(key, (3,), 0, 2), carry)
        order = jnp.stack([way[0], 1 - way[0]])
        targets = jnp.stack([way[1], 1 - way[1]])
        now = jnp.where(self.served(obs, order[0], targets[0]), 1, 0)
        return self.serve(obs, order[now], targets[now], way[2]), way

    def served(self, obs: Float[Array, "17"], which: Int[Array, ""], target: Int[Array, ""]) -> Bool[Array, ""]:
        """Whether an object lies on a target and is not held."""
        thing, holding = obs[5:9].reshape(2, 2)[which], (obs[3:5] > 0.5)[which]
        return (jnp.linalg.norm(thing - jnp.asarray(TARGETS)[target]) < 0.035) & ~holding

    def serve(
        self, obs: Float[Array, "17"], which: Int[Array, ""], target: Int[Array, ""], side: Int[Array, ""]
    ) -> Float[Array, "3"]:
        """The next action of carrying an object to a target past one side of the disc, the left being 0."""
        position, closed, holding = obs[:2], obs[2] > 0.5, (obs[3:5] > 0.5)[which]
        thing, goal = obs[5:9].reshape(2, 2)[which], jnp.asarray(TARGETS)[target]
        aim = jnp.where(holding, position + goal - thing, thing)
        arrived = jnp.linalg.norm(goal - thing) < 0.02
        close = jnp.where(holding, ~arrived, (jnp.linalg.norm(thing - position) < 0.03) & ~closed)
        move = around(position, aim, side, self.detour, self.speed)
        return jnp.concatenate([move, jnp.where(close, 1.0, -1.0)[None]])


def around(
    position: Float[Array, "2"], aim: Float[Array, "2"], side: Int[Array, ""], detour: float, speed: float
) -> Float[Array, "2"]:
    """The move towards a place in `PlanarPick`, past the disc on its left (0) or right (1) where that is between."""
    centre = jnp.asarray(OBSTACLE)
    beside = centre + jnp.stack([detour * (2 * side - 1), 0.0])
    below, aim_below = position[1] < centre[1], aim[1] < centre[1]
    across = (below != aim_below) & (jnp.abs(position[1] - centre[1]) > 0.03)
    move = (jnp.where(across, beside, aim) - position) / speed
    return move / jnp.maximum(1.0, jnp.abs(move).max())


class PlanarPlay(Policy):
    """Plays in `PlanarGoals`: carries one object after another to one target after another, and asks for no goal.

    Which object, which target and on which side of the disc is drawn anew whenever an object has arrived, and known to
    nobody else. An object may be sent where the other one lies, but not where it lies itself.
    """

    hand: PickAndPlace = PickAndPlace()
    """how an object is carried"""

    @classmethod
    def of(cls, world: PlanarGoals) -> PlanarPlay:
        """The controller for a world."""
        return cls(PickAndPlace.of(world.plane))

    def init(self) -> Int[Array, "3"]:
        """Nothing in mind yet."""
        return jnp.full(3, -1, jnp.int32)

    def __call__(
        self, obs: dict[str, Array], carry: Int[Array, "3"], key: PRNGKeyArray
    ) -> tuple[Float[Array, "3"], Int[Array, "3"]]:
        seen = obs["observation"]
        which, target, side = jax.random.randint(key, (3,), 0, 2)
        fresh = jnp.stack([which, jnp.where(self.hand.served(seen, which, target), 1 - target, target), side])
        done = (carry[0] < 0) | self.hand.served(seen, carry[0], carry[1])
        now = jnp.where(done, fresh, carry)
        return self.hand.serve(seen, *now), now


class LaneDriver(Policy):
    """Drives through `LaneScene` in one way: keeps its lane behind whoever is ahead, or changes to one beside it.

    What it wants, an offset and a speed, is drawn at the first step of an episode and kept in the carry: a lane beside
    its own with probability `changes`, if there is one with room for five seconds. Its speed is that of the intelligent
    driver model, and no lower than that of a car behind it (Treiber, Hennecke and Helbing 2000).
    """

    dt: float = 0.5
    """seconds between its decisions"""
    width: float = 3.5
    """of a lane [m]"""
    changes: float = 0.5
    """how often it changes lanes where it can"""

    @classmethod
    def of(cls, world: LaneScene) -> LaneDriver:
        """The driver for a world."""
        return cls(world.dt, world.width)

    def init(self) -> Float[Array, "3"]:
        """Nothing wanted yet; then whether, which offset and which speed."""
        return jnp.zeros(3)

    def __call__(
        self, obs: Float[Array, "13"], carry: Float[Array, "3"], key: PRNGKeyArray
    ) -> tuple[Float[Array, "2"], Float[Array, "3"]]:
        carry = jnp.where(carry[0] > 0, carry, self._wish(obs, key))
        scene = scene_of(obs)
        offset, heading, speed = obs[:3]
        drift = jnp.clip(-0.6 * (offset - carry[1]) / jnp.maximum(speed, 2.0), -0.3, 0.3)
        bend = scene.curvature * speed
        turn = bend + 0.8 * (drift + self.dt * bend / 2 - heading) / self.dt  # Euler steps lag half a step behind it
        push = jnp.maximum(self._push(scene.cars, offset, speed, carry), -speed / self.dt)
        bound = jnp.asarray(LIMITS)
        return jnp.clip(jnp.stack([turn, push]), -bound, bound), carry

    def _wish(self, obs: Float[Array, "13"], key: PRNGKeyArray) -> Float[Array, "3"]:
        lane_key, change_key, speed_key = jax.random.split(key, 3)
        world = LaneScene(self.dt, self.width)
        cars, lane, lanes = scene_of(obs).cars, world.lane(obs[0]), jnp.arange(LANES)
        later = cars[:, 0] + 5.0 * (cars[:, 2] - obs[2])
        clear = (jnp.abs(cars[:, 0]) > 9) & (jnp.abs(later) > 9) & (cars[:, 0] * later > 0)
        free = jnp.where(world.lane(cars[:, 1])[None] == lanes[:, None], clear[None], True).all(1)
        beside = free & (jnp.abs(lanes - lane) == 1)
        choice = jnp.argmax(jnp.where(beside, jax.random.uniform(lane_key, (LANES,)), -1.0))
        change = beside.any() & jax.random.bernoulli(change_key, self.changes)
        wanted = world.offset(jnp.where(change, choice, lane))
        return jnp.stack([jnp.ones(()), wanted, jax.random.uniform(speed_key, minval=5.0, maxval=11.0)])

    def _push(self, cars: Float[Array, "cars 3"], offset: Array, speed: Array, carry: Array) -> Float[Array, ""]:
        """`2 (1 - (v / v0)^4 - (s* / s)^2)`, `s* = 2.5 + 1.2 v + v (v - v_ahead) / (2 sqrt(6))`."""
        in_way = jnp.minimum(jnp.abs(cars[:, 1] - offset), jnp.abs(cars[:, 1] - carry[1])) < 2.2
        ahead = jnp.where(in_way & (cars[:, 0] > 0), cars[:, 0], jnp.inf)
        first = jnp.argmin(ahead)
        behind = in_way & (cars[:, 0] <= 0)
        wanted = jnp.maximum(carry[2], jnp.where(behind, cars[:, 2], 0.0).max())
        room = jnp.maximum(ahead[first] - LENGTH, 0.1)
        asked = 2.5 + jnp.maximum(1.2 * speed + speed * (speed - cars[first, 2]) / (2 * 6**0.5), 0.0)
        return 2.0 * (1 - (speed / wanted) ** 4 - jnp.where(jnp.isfinite(room), asked / room, 0.0) ** 2)


class Wipe(Policy):
    """Wipes in `PlanarWipe(told=True)`: comes down fast or slowly, then an impedance law with the board's slope.

    `dz = gain (f - f*) + slope dx / (1 + 0.3 f)`. How fast it comes down is drawn at the first step of an episode and
    kept in the carry; observations do not show it. It sees what learners do not: the slope under the tool.
    """

    force: float = 0.6
    """f*, what it presses with"""
    gain: float = 0.02
    """way per force"""
    along: float = 0.7
    """action along the board"""
    down: tuple[float, float] = (1.0, 0.4)
    """actions of coming down, fast and slow"""

    def init(self) -> Int[Array, "2"]:
        """No way of coming down chosen, not there yet."""
        return jnp.array([-1, 0], jnp.int32)

    def __call__(
        self, obs: Float[Array, "20"], carry: Int[Array, "2"], key: PRNGKeyArray
    ) -> tuple[Float[Array, "2"], Int[Array, "2"]]:
        force, slope = obs[FORCE], obs[FORCE + 1]
        way = jnp.where(carry[0] < 0, jax.random.randint(key, (), 0, 2), carry[0])
        there = jnp.maximum(carry[1], (force > 0).astype(jnp.int32))
        z = self.gain * (force - self.force) / SPEED + slope * self.along / (1 + DRAG * force)
        wiping = jnp.stack([jnp.full((), self.along), z])
        coming = jnp.stack([jnp.zeros(()), -jnp.asarray(self.down)[way]])
        return jnp.clip(jnp.where(there > 0, wiping, coming), -1.0, 1.0), jnp.stack([way, there])
