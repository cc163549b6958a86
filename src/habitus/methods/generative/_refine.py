"""RefineNet: repairs those of a set of plans that break their rules, so that they keep them in ways of their own."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.errors import SpaceMismatch
from habitus.core.experience import Obs, Transition
from habitus.core.protocols import Learner, Policy, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, descend, trainable
from habitus.envs.worlds.lane_scene import SCENE, Scene, on_road, scene_of
from habitus.execution.horizon import RecedingHorizon
from habitus.execution.planner import Plan, Planner, Start, best_of
from habitus.methods.generative._lane_plans import chunks
from habitus.methods.generative._lane_rules import MANOEUVRES, Case, lane_now, possible, robustness, side
from habitus.methods.generative._plan_diffusion import PlanSampler
from habitus.nets.dpp import expected_size
from habitus.nets.mlp import MLP

AT_ONCE = 16  # cases whose plans are drawn together


def towards(plan: Float[Array, "*shape"], r: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """A share r in [-1, 1] of the way from a plan to its limit: `U + r (1 - U)` up, `U + r (U + 1)` down."""
    return jnp.clip(plan + jnp.where(r >= 0, r * (1 - plan), r * (plan + 1)), -1.0, 1.0)


class RefineNet(eqx.Module):
    """Moves plans that break their rules, each knowing its siblings.

    `m_i` of each plan, the greatest of them within a shard added to each plan, `r = tanh(MLP(case, plan))`, and
    `towards(plan, r)` in place of what breaks its rules.
    """

    merge: MLP
    rect: MLP
    shards: int = eqx.field(static=True)

    def __init__(self, condition: int, size: int, shards: int, hidden: tuple[int, ...], key: PRNGKeyArray):
        merge_key, rect_key = jax.random.split(key)
        self.merge, self.shards = MLP(size, (32, 32), size, merge_key), shards
        self.rect = MLP(condition + size, hidden, size, rect_key)

    def __call__(
        self, condition: Float[Array, "condition"], plans: Float[Array, "n time 2"], rho: Float[Array, "n"]
    ) -> Float[Array, "n time 2"]:
        flat = plans.reshape(self.shards, len(plans) // self.shards, -1)
        common = jax.vmap(jax.vmap(self.merge))(flat).max(1, keepdims=True)
        r = jnp.tanh(
            jax.vmap(lambda u: self.rect(jnp.concatenate([condition, u])))((flat + common).reshape(len(rho), -1))
        )
        return jnp.where((rho > 0)[:, None, None], plans, towards(plans, r.reshape(plans.shape)))


class Refined(eqx.Module):
    """The sampler and the network that repairs its plans; none, for the sampler alone.

    Attributes:
        rolls: how often the network is applied; more than once, it sees what it made.
    """

    sampler: PlanSampler
    network: RefineNet | None = None
    rolls: int = eqx.field(default=1, static=True)

    def __call__(
        self, obs: Float[Array, "case"], n: int, key: PRNGKeyArray
    ) -> tuple[Float[Array, "n time 2"], Float[Array, "n"]]:
        """Plans for a case, given as a vector, and their exact robustness."""
        plans, rho = self.sampler.siblings(obs, n, key)
        case, condition = Case.of(obs), self.sampler.condition(obs)
        for _ in range(self.rolls if self.network is not None else 0):
            plans = self.network(condition, plans, rho)  # type: ignore[misc]
            rho = jax.vmap(lambda plan: robustness(case, plan, self.sampler.world))(plans)
        return plans, rho


def draw_all(
    source: Refined, cases: Float[np.ndarray, "rows case"], n: int, key: PRNGKeyArray
) -> tuple[Float[np.ndarray, "rows n time 2"], Float[np.ndarray, "rows n"]]:
    """`n` plans for each of many cases, and their exact robustness; a few cases at a time, to spare memory."""
    parts = []
    for first, chunk in chunks(cases, AT_ONCE):
        part = _draw(source, chunk, n, jax.random.fold_in(key, first))
        parts.append([np.asarray(x)[: len(cases) - first] for x in part])
    plans, rho = (np.concatenate(x) for x in zip(*parts, strict=True))
    return plans, rho


@eqx.filter_jit
def _draw(source: Refined, cases: Array, n: int, key: PRNGKeyArray) -> tuple[Array, Array]:
    return jax.vmap(lambda case, k: source(case, n, k))(cases, jax.random.split(key, len(cases)))


class RuleDriver(Planner):
    """Plans for the scene that it sees: of the plans for all manoeuvres the most robust one.

    The rules are those of now: a speed within 3 m/s of the present one, 1 m beside the middle of the lane (or as far
    off as it is), half a metre between cars, half a radian to the road.

    Attributes:
        source: what draws the plans.
        n: how many for each manoeuvre.
    """

    source: Refined
    n: int = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, int]:
        return self.source.sampler.horizon, 2

    def blank(self) -> Obs:
        return jnp.zeros(SCENE)

    def __call__(self, window: Obs, key: PRNGKeyArray, start: Start | None = None) -> Plan:
        scene = scene_of(window[-1])
        cases = jnp.concatenate(
            [jnp.eye(MANOEUVRES), jnp.broadcast_to(window[-1], (MANOEUVRES, SCENE)), self.theta(scene)], 1
        )
        plans, rho = jax.vmap(lambda case, k: self.source(case, self.n, k))(cases, jax.random.split(key, MANOEUVRES))
        rho = jnp.where(possible(scene, self.source.sampler.world)[:, None], rho, -jnp.inf)
        calls = jnp.asarray(MANOEUVRES * self.n * self.source.sampler.schedule.levels, jnp.int32)
        return Plan(plans.reshape(-1, *self.shape)[best_of(rho.ravel())], calls)

    def theta(self, scene: Scene) -> Float[Array, "3 6"]:
        """The parameters of the rules of now, for each manoeuvre."""
        world, speed = self.source.sampler.world, scene.ego[3]
        off = on_road(scene.curvature, scene.ego[0], scene.ego[1])[1] - world.offset(lane_now(scene, world))
        keeping = side(jnp.arange(MANOEUVRES)) == 0
        right = jnp.where(keeping, jnp.minimum(-1.0, off - 0.3), -1.0)
        left = jnp.where(keeping, jnp.maximum(1.0, off + 0.3), 1.0)
        same = [jnp.full(MANOEUVRES, x) for x in (0.5, 0.5)]
        fast = [jnp.broadcast_to(x, (MANOEUVRES,)) for x in (jnp.maximum(speed - 3.0, -0.3), speed + 3.0)]
        return jnp.stack([*fast, right, left, *same], 1)


class RefinerState(eqx.Module):
    """The network, its optimiser, and the sampler whose plans it repairs, which stays as it is."""

    network: RefineNet
    network_opt: optax.OptState
    sampler: PlanSampler


class Refiner(Learner):
    """Learns to repair the plans of a sampler. A row holds a case and several plans that were drawn for it."""

    sampler: PlanSampler | None = None  # whose plans they are
    siblings: int = 32  # plans in a row; authors' code: 64
    shards: int = 2  # groups of siblings within which they shall differ; authors' code: 4
    diversity: float = 1.0  # weight of the expected number of different plans that keep the rules
    scale: float = 1.0  # of the similarity of plans
    stl_weight: float = 0.0  # of `relu(margin - rho)`; 0 in the paper's final recipe
    margin: float = 0.0005  # authors' code
    temperature: float = 0.05  # of the smooth robustness, 1 / tau; authors' code: 0.01
    rolls: int = eqx.field(default=1, static=True)  # times that it is applied when it is used; authors' code: 4
    drive_siblings: int = 8  # plans for each manoeuvre when it drives
    learning_rate: float = 3e-4
    batch_size: int = 8  # rows
    hidden: tuple[int, ...] = (256, 256)  # authors' code

    trains: ClassVar = {"network": ("refine_loss",)}

    def __check_init__(self) -> None:
        super().__check_init__()
        for name in ("siblings", "shards", "rolls", "drive_siblings"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more, but is {getattr(self, name)}.")
        for name in ("siblings", "drive_siblings"):
            size = getattr(self, name)
            require(size % self.shards == 0, f"{name} must be a multiple of the {self.shards} shards, but is {size}.")
        for name in ("diversity", "scale", "stl_weight", "margin"):
            require(getattr(self, name) >= 0, f"{name} must be 0 or more, but is {getattr(self, name)}.")
        require(self.temperature > 0, f"temperature must be above 0, but is {self.temperature}.")

    def init(self, spec: Spec, key: PRNGKeyArray) -> RefinerState:
        require(self.sampler is not None, "a refiner repairs the plans of a sampler: give sampler=...")
        assert self.sampler is not None
        size = 2 * self.sampler.horizon
        if spec.action_shape != (self.siblings * size,):
            raise SpaceMismatch(
                f"a row must hold {self.siblings} plans of {size} numbers, but an action has {spec.action_shape}; "
                "make the rows with `drawn`."
            )
        network = RefineNet(self.sampler.network.condition_size, size, self.shards, self.hidden, key)
        return RefinerState(network, optax.adam(self.learning_rate).init(trainable(network)), self.sampler)

    def refine_loss(
        self, network: RefineNet, state: RefinerState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`c mean relu(margin - rho(U')) - w mean_shards tr(I - (L + I)^-1)`, `q = exp(rho(U')) 1[rho(U') > 0]`.

        A plan is moved by its gradient only once it keeps its rules, unless the first weight is above 0.
        """
        world = state.sampler.world

        def one(obs: Array, drawn: Array) -> tuple[Array, Array, Array, Array]:
            case, plans = Case.of(obs), drawn.reshape(self.siblings, -1, 2)
            before = jax.vmap(lambda plan: robustness(case, plan, world))(plans)
            refined = network(state.sampler.condition(obs), plans, before)
            smooth = jax.vmap(lambda plan: robustness(case, plan, world, self.temperature))(refined)
            exact = jax.vmap(lambda plan: robustness(case, plan, world))(jax.lax.stop_gradient(refined))
            quality = jnp.where(exact > 0, jnp.exp(smooth), 0.0).reshape(self.shards, -1)
            points = refined.reshape(self.shards, self.siblings // self.shards, -1)
            size = jax.vmap(lambda x, q: expected_size(x, q, self.scale))(points, quality).mean()
            return jax.nn.relu(self.margin - smooth).mean(), size, (exact > 0).mean(), (before > 0).mean()

        broken, size, after, before = (x.mean() for x in jax.vmap(one)(batch.obs, batch.action))
        loss = self.stl_weight * broken - self.diversity * size
        return loss, {"refine_loss": loss, "size": size, "satisfied": after, "satisfied_before": before}

    def update(self, state: RefinerState, batch: Transition, key: PRNGKeyArray) -> tuple[RefinerState, Metrics]:
        adam = optax.adam(self.learning_rate)
        network, opt, metrics = descend(adam, self.refine_loss, state.network, state.network_opt, state, batch, key)
        return RefinerState(network, opt, state.sampler), metrics

    def refined(self, state: RefinerState) -> Refined:
        """What draws and repairs plans."""
        sampler, network = jax.tree.map(jnp.asarray, (state.sampler, state.network))
        return Refined(sampler, network, self.rolls)

    def policy(self, state: RefinerState) -> Policy:
        """Drives: plans anew at every step, and executes the first control of the most robust plan."""
        return RecedingHorizon(RuleDriver(self.refined(state), self.drive_siblings), execute=1, observe=1)
