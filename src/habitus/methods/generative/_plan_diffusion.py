"""Diffusion over whole plans, conditioned on a scene, a manoeuvre and the parameters of its rules."""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.errors import SpaceMismatch
from habitus.core.experience import Transition
from habitus.core.protocols import Learner, Policy, require
from habitus.core.spec import Spec
from habitus.core.stl.expressions import Scalar
from habitus.core.trees import Metrics, descend, trainable
from habitus.envs.worlds.lane_scene import CARS, SCENE, LaneScene
from habitus.generative.ascent import Ascent
from habitus.generative.ddpm import Schedule, ddpm_last
from habitus.methods.generative._lane_rules import CASE, MANOEUVRES, Case, robustness
from habitus.nets.embedding import sinusoidal
from habitus.nets.mlp import MLP
from habitus.nets.normalise import Standardiser

WAVES = 32


class PlanNet(eqx.Module):
    """`eps(U, k, case) = U + MLP(case, U, waves of k)`, where the other cars are seen as a set."""

    own: MLP
    other: MLP
    body: MLP

    def __init__(
        self, horizon: int, features: int, encoder: tuple[int, ...], hidden: tuple[int, ...], key: PRNGKeyArray
    ):
        own_key, other_key, body_key = jax.random.split(key, 3)
        self.own = MLP(SCENE - 3 * CARS, encoder, features, own_key)
        self.other = MLP(3, encoder, features, other_key)
        size = 2 * horizon
        self.body = MLP(4 * features + CASE - SCENE + size + WAVES, hidden, size, body_key)

    @property
    def condition_size(self) -> int:
        """Numbers in a condition."""
        return 4 * self.own.layers[-1].bias.shape[-1] + CASE - SCENE

    def condition(self, case: Float[Array, "case"]) -> Float[Array, "condition"]:
        """A case to the rest of the network: the code, own features, pooled ones of the cars, the parameters."""
        code, scene, theta = jnp.split(case, [MANOEUVRES, MANOEUVRES + SCENE])
        cars = jax.vmap(self.other)(scene[-3 * CARS :].reshape(CARS, 3))
        return jnp.concatenate([code, self.own(scene[: -3 * CARS]), cars.min(0), cars.mean(0), cars.max(0), theta])

    def __call__(
        self, plan: Float[Array, "time 2"], level: Int[Array, ""], condition: Float[Array, "condition"]
    ) -> Float[Array, "time 2"]:
        waves = sinusoidal(level.astype(jnp.float32), WAVES)
        return plan + self.body(jnp.concatenate([condition, plan.ravel(), waves])).reshape(plan.shape)


class PlanSampler(Policy):
    """Draws plans; as a policy, one plan for a case.

    Attributes:
        candidates: the most robust of so many last steps of the denoising is taken, the first of equals.
        guidance: Adam steps up the smooth robustness in each step of the denoising; 0 for none.
        guidance_rate, guidance_last, temperature: of these steps, see `Ascent`.
    """

    network: PlanNet
    normaliser: Standardiser
    schedule: Schedule
    world: LaneScene
    horizon: int = eqx.field(static=True)
    candidates: int = eqx.field(default=5, static=True)
    guidance: int = eqx.field(default=0, static=True)
    guidance_rate: Scalar = 0.01
    guidance_last: int | None = eqx.field(default=None, static=True)
    temperature: Scalar = 0.05

    def condition(self, obs: Float[Array, "case"]) -> Float[Array, "condition"]:
        """What the network makes of a case, given as a vector."""
        return self.network.condition(self.normaliser(obs))

    def siblings(
        self, obs: Float[Array, "case"], n: int, key: PRNGKeyArray
    ) -> tuple[Float[Array, "n time 2"], Float[Array, "n"]]:
        """`n` plans for one case, as shares of the limits, and their exact robustness."""
        case, condition = Case.of(obs), self.condition(obs)

        def one(key: PRNGKeyArray) -> tuple[Array, Array]:
            noise_key, step_key = jax.random.split(key)
            last = ddpm_last(
                self.schedule, lambda x, k: self.network(x, k, condition),
                jax.random.normal(noise_key, (self.horizon, 2)), step_key, self.candidates, guide=self._guide(case),
            )  # fmt: skip
            last = jnp.clip(last, -1.0, 1.0)
            rho = jax.vmap(lambda plan: robustness(case, plan, self.world))(last)
            best = jnp.argmax(rho)
            return last[best], rho[best]

        return jax.vmap(one)(jax.random.split(key, n))

    def _guide(self, case: Case) -> Ascent | None:
        if self.guidance == 0:
            return None
        return Ascent(
            lambda plan: robustness(case, plan, self.world, self.temperature),
            self.schedule, self.guidance, self.guidance_rate, self.guidance_last,
        )  # fmt: skip

    def __call__(self, obs: Float[Array, "case"], carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        return self.siblings(obs, 1, key)[0].ravel(), carry


class PlanDiffusionState(eqx.Module):
    """The network, its optimiser, and how cases are standardised."""

    network: PlanNet
    network_opt: optax.OptState
    normaliser: Standardiser


class PlanDiffusion(Learner):
    """Clones those plans of a set that keep their rules. Rows are those of `plans_of`."""

    road: LaneScene = LaneScene()  # on which the plans are driven
    levels: int = 50  # of noise; authors' code: 100
    noise_share: float = eqx.field(default=1.0, static=True)  # of the cosine schedule's beta; authors' code: 0.2
    candidates: int = 5  # last steps of the denoising of which the most robust is taken; authors' code
    learning_rate: float = 3e-4  # authors' code
    batch_size: int = 256
    features: int = 32  # of the ego, and of each pool of the other cars; authors' code
    encoder_hidden: tuple[int, ...] = (64,)  # authors' code: (256, 256)
    hidden: tuple[int, ...] = (256, 256)  # authors' code

    trains: ClassVar = {"network": ("denoising_loss",)}

    def __check_init__(self) -> None:
        super().__check_init__()
        require(self.levels >= 1, f"levels must be 1 or more, but is {self.levels}.")
        require(0 < self.noise_share <= 1, f"noise_share must be in (0, 1], but is {self.noise_share}.")
        require(1 <= self.candidates <= self.levels, f"candidates must be from 1 to levels, but is {self.candidates}.")
        require(self.features >= 1, f"features must be 1 or more, but is {self.features}.")

    @property
    def schedule(self) -> Schedule:
        """The noise of each level."""
        return Schedule.cosine(self.levels, self.noise_share)

    def init(self, spec: Spec, key: PRNGKeyArray) -> PlanDiffusionState:
        spec.require("bounded", type(self).__name__)
        if spec.obs_shape != (CASE,) or spec.action_size % 2:
            raise SpaceMismatch(
                f"a plan is made for a case of {CASE} numbers and has two controls a step, but the observation is "
                f"{spec.observation_space} and the action {spec.action_space}; make the rows with `plans_of`."
            )
        network = PlanNet(spec.action_size // 2, self.features, self.encoder_hidden, self.hidden, key)
        opt = optax.adam(self.learning_rate).init(trainable(network))
        return PlanDiffusionState(network, opt, Standardiser.of(spec))

    def denoising_loss(
        self, network: PlanNet, state: PlanDiffusionState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`mean |eps - eps(U_k, k, case)|^2` over the rows that keep their rules, k uniform."""
        level_key, noise_key = jax.random.split(key)
        plans = batch.action.reshape(len(batch.action), -1, 2)
        levels = jax.random.randint(level_key, (len(plans),), 0, self.levels)
        noise, schedule = jax.random.normal(noise_key, plans.shape), self.schedule

        def error(obs: Array, plan: Array, k: Array, noise: Array) -> Array:
            found = network(schedule.noised(plan, noise, k), k, network.condition(state.normaliser(obs)))
            return ((found - noise) ** 2).mean()

        kept = batch.reward > 0
        errors = jnp.where(kept, jax.vmap(error)(batch.obs, plans, levels, noise), 0.0)
        loss = errors.sum() / jnp.maximum(kept.sum(), 1)
        return loss, {"denoising_loss": loss, "kept": kept.mean()}

    def update(
        self, state: PlanDiffusionState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[PlanDiffusionState, Metrics]:
        network, opt, metrics = descend(
            optax.adam(self.learning_rate), self.denoising_loss, state.network, state.network_opt, state, batch, key
        )
        return PlanDiffusionState(network, opt, state.normaliser), metrics

    def policy(self, state: PlanDiffusionState) -> PlanSampler:
        network, normaliser = jax.tree.map(jnp.asarray, (state.network, state.normaliser))
        horizon = network.body.layers[-1].bias.shape[-1] // 2
        return PlanSampler(network, normaliser, self.schedule, self.road, horizon, candidates=self.candidates)
