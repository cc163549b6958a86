"""Hume: a slow part that draws several plans and values them, and a fast one that finishes the best.

A flow over chunks of actions is learned from demonstrations, good and bad. Conservative values of chunks, learned
from the same log by whether and how soon episodes succeed, tell its draws apart: several are made, some of them not
quite denoised, and the most valuable is kept. A small flow whose noise is not Gaussian but a slice of such a chunk
makes it actions, in closer steps and on newer observations.

H. Song et al., "Hume: Introducing System-2 Thinking in Visual-Language-Action Model", 2025.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from gymnasium import spaces
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.errors import ConfigError
from habitus.core.experience import Trajectory
from habitus.core.protocols import Policy, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, copy, descend, extend, polyak, trainable, when
from habitus.execution.planner import BestPlan
from habitus.execution.two_rate import TwoRate
from habitus.generative.denoisers import ResidualMLP, check_residual
from habitus.generative.ema import follow
from habitus.generative.flow import euler_calls, interpolate, noisy_time
from habitus.methods.generative._chunks import ChunkLearner, ChunkState
from habitus.methods.generative._hume import (
    Placed,
    Refine,
    Temperatures,
    Tempered,
    ValueQuery,
    Worth,
    logged,
    progress,
)
from habitus.methods.generative.flow_policy import Flow, FlowPolicy, Timed
from habitus.methods.offline._cal_ql import CalQL, Macro
from habitus.methods.online.sac import SACState
from habitus.nets.heads import TanhGaussianActor
from habitus.nets.policies import Normalised

CARD = Card(
    title="Hume: Introducing System-2 Thinking in Visual-Language-Action Model",
    authors="Song, Haoming and Qu, Delin and Yao, Yuanqi and Chen, Qizhi and Lv, Qi and Tang, Yiwen and "
    "Shi, Modi and Ren, Guanghui and Yao, Maoqing and Zhao, Bin and Wang, Dong and Li, Xuelong",
    year=2025,
    venue="arXiv",
    arxiv="2505.21432",
    kind="learner",
    entry="Hume",
    data=("log",),
    actions=("continuous",),
    paper=True,
)

STDS = float(np.log(1e-5)), float(np.log(10.0))  # of the values' actor; authors' code


class HumeState(ChunkState, SACState):
    """The slow flow, the values with the actor that they need, the fast flow, and where it stands.

    Attributes:
        refiner, refiner_average: the fast flow, and its average, with which it acts.
        step: updates so far, of all stages.
        ends: the update after which each stage is over.
    """

    refiner: ResidualMLP
    refiner_average: ResidualMLP
    refiner_opt: optax.OptState
    step: Int[Array, ""]
    ends: Int[Array, "3"]


class Hume(FlowPolicy, CalQL):
    """Slow flow, values, fast flow: three stages, one after another in one run. Bounded real actions.

    With `rewards="progress"` an episode whose rewards sum to more than 0 is a success, and its last `positive` steps
    cost nothing; every other step costs 1, and a failure goes on for ever in the state in which it was left.
    """

    times: str = eqx.field(default="noisy", static=True)  # of the slow flow, as of pi0
    sampling_steps: int = 10  # of the slow flow, from noise to data; authors' code
    observed: int = 1  # the fast flow always sees one
    candidates: int = 8  # N; authors' code: 5
    time_temperatures: tuple[float, float] = eqx.field(default=(0.7, 1.0), static=True)  # authors' code: 0.9 to 1
    noise_temperatures: tuple[float, float] = eqx.field(default=(1.0, 1.0), static=True)  # factors of its steps
    theta2: float = eqx.field(default=1.0, static=True)  # share of the slow flow's way that it walks
    rewards: str = eqx.field(default="progress", static=True)  # or "log": those of the log, and no calibration
    positive: int = eqx.field(default=3, static=True)  # last steps of a success, which cost nothing; authors' code
    valued: int = eqx.field(default=4, static=True)  # Hq, actions of a chunk that are valued; authors' script: 1
    discount: float = 0.98  # authors' code
    alpha: float = 0.5  # weight of the conservative term; authors' code: 5 beside a squared error without the 1/2
    value_learning_rate: float = 3e-4  # of critic, actor and temperature; authors' code: 3e-4 and 1e-4 of the critic
    max_grad_norm: float = 1.0  # of the same; authors' code: 10
    query_size: int = 64  # features of an observation for the values; authors' code: 2048
    refined: int = eqx.field(default=2, static=True)  # H1, steps of a slice; authors' code: 10
    theta1: float = 1.0  # share of the way from a slice to the data
    refining_steps: int = 4  # authors' code: 10
    refiner_width: int = 64
    refiner_blocks: int = 2
    period: int = 8  # steps between two plans; authors' script: 16
    executed: int = 2  # steps between two slices; authors' script: 8
    latency: int = 0  # steps until a plan can be used
    plan_share: float = 0.5  # of the updates, for the slow flow
    value_share: float = 0.3  # of the updates, for the values; the rest is for the fast flow

    trains: ClassVar = {
        "denoiser": ("denoiser_loss",),
        "critic": ("critic_loss",),
        "actor": ("actor_loss",),
        "log_temperature": ("temperature_loss",),
        "refiner": ("refiner_loss",),
    }

    def __check_init__(self) -> None:
        _ = self.chunking
        for name in ("sampling_steps", "candidates", "positive", "valued", "refined", "refining_steps", "query_size",
                     "period"):  # fmt: skip
            require(getattr(self, name) >= 1, f"{name} must be 1 or more, but is {getattr(self, name)}.")
        for name in ("plan_share", "value_share"):
            value = getattr(self, name)
            require((0 < value) & (value < 1), f"{name} is a share of the updates, in (0, 1), but is {value}.")
        require(
            self.plan_share + self.value_share < 1,
            f"plan_share and value_share are {self.plan_share} and {self.value_share} of the updates; leave some.",
        )
        for name in ("theta1", "theta2"):
            value = getattr(self, name)
            require((0 < value) & (value <= 1), f"{name} must be in (0, 1], but is {value}.")
        require(self.rewards in ("progress", "log"), f"rewards must be 'progress' or 'log', but is {self.rewards!r}.")
        for left in self.time_temperatures:
            require(0 < left <= 1, f"time_temperatures must be in (0, 1], but are {self.time_temperatures}.")
            euler_calls(left, 1 - self.theta2, self.sampling_steps)
        require(
            self.valued <= self.ahead,
            f"valued={self.valued} actions are more than the {self.ahead} that are predicted.",
        )
        require(
            self.executed <= self.refined,
            f"executed is {self.executed}, but a slice has refined={self.refined} steps; execute fewer.",
        )
        check_residual(self.refiner_width, self.refiner_blocks, "refiner_")
        require(0 <= self.latency <= self.period, f"latency must be from 0 to period={self.period}: {self.latency}.")
        oldest = self.period + self.latency - 1
        require(
            oldest + self.refined <= self.ahead,
            f"slices of refined={self.refined} steps of a plan that is up to {oldest} steps old lie beyond the "
            f"{self.ahead} steps that are predicted; with period={self.period} and latency={self.latency} predict "
            f"{self.before + oldest + self.refined} or more.",
        )

    @property
    def ahead(self) -> int:
        """H2: rows of a chunk that are not of the past."""
        return self.predicted - self.before

    @property
    def window(self) -> int:
        return max(self.predicted, self.before + self.valued + 1)

    # --- the state

    def init(self, spec: Spec, key: PRNGKeyArray) -> HumeState:
        if spec.updates is None:
            raise ConfigError("Hume's stages need a planned number of updates: use learn(..., steps=...).")
        spec.require("bounded", type(self).__name__)
        chunk_key, critic_key, actor_key, refiner_key = jax.random.split(key, 4)
        size, rule = spec.action_size, self.ruled
        chunks = dataclasses.replace(
            spec, action_space=spaces.Box(-1.0, 1.0, (self.valued * size,)), switches=(), dataset=None
        )
        critic = ValueQuery(chunks, self.hidden, self.query_size, critic_key)
        actor = TanhGaussianActor(chunks, self.hidden, actor_key, STDS)
        log_temperature = jnp.log(jnp.asarray(self.temperature, jnp.float32))
        refiner = ResidualMLP(
            (self.refined, size), self.refiner_width, self.refiner_blocks, refiner_key, spec.obs_size, levels=2
        )
        stages = jnp.stack([self.plan_share, self.plan_share + self.value_share, 1.0])
        ends = jnp.round(stages * spec.updates).astype(jnp.int32)
        plans = ChunkLearner.init(self, spec, chunk_key)
        return extend(
            HumeState, eqx.tree_at(lambda s: s.total, plans, ends[0]),
            critic=critic, target_critic=copy(critic), critic_opt=rule.init(trainable(critic)),
            actor=actor, actor_opt=rule.init(trainable(actor)),
            log_temperature=log_temperature, temperature_opt=rule.init(log_temperature),
            refiner=refiner, refiner_average=refiner,
            refiner_opt=self.optimizer(self.learning_rate).init(trainable(refiner)),
            step=jnp.zeros((), jnp.int32), ends=ends,
        )  # fmt: skip

    @property
    def ruled(self) -> optax.GradientTransformation:
        """Adam with clipped gradients, whose learning rate rises over the first updates; for all that values need."""

        def rate(done: Array) -> Array:
            return self.value_learning_rate * jnp.minimum(1.0, (done + 1) / self.warmup_updates)

        return optax.chain(optax.clip_by_global_norm(self.max_grad_norm), optax.adam(rate))

    # --- stage 2: values

    def macro(self, batch: Trajectory) -> Macro:
        """The first `valued` steps of each window as one transition."""
        if self.rewards == "log":
            return logged(batch, self.before, self.valued, self.discount)
        return progress(batch, self.before, self.valued, self.discount, self.positive)

    def learn_values(self, state: HumeState, rows: Macro, key: PRNGKeyArray) -> tuple[HumeState, Metrics]:
        """One step of the twin critics by Cal-QL, of the actor that it needs, and of the temperature."""
        critic_key, actor_key = jax.random.split(key)
        rule = self.ruled
        critic, critic_opt, metrics = descend(
            rule, self.critic_loss, state.critic, state.critic_opt, state, rows, critic_key
        )
        target = polyak(state.target_critic, critic, self.tau)
        state = dataclasses.replace(state, critic=critic, critic_opt=critic_opt, target_critic=target)
        actor, actor_opt, found = descend(rule, self.actor_loss, state.actor, state.actor_opt, state, rows, actor_key)
        state = dataclasses.replace(state, actor=actor, actor_opt=actor_opt)
        if self.tune_temperature:
            log_temperature, opt, _ = descend(
                rule, self.temperature_loss, state.log_temperature, state.temperature_opt, state, found["entropy"]
            )
            state = dataclasses.replace(state, log_temperature=log_temperature, temperature_opt=opt)
        return state, metrics | found

    # --- stage 3: the fast flow

    def refiner_loss(
        self, refiner: ResidualMLP, state: HumeState, batch: Trajectory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`mean (v(x_t, t, stamp, o) - (a - c))^2`, `x_t = (1 - t) c + t a`, over steps within the episode.

        `c` is the slice of a chunk that the slow flow draws at the first step of the window, `a` the slice of the log
        in its place, and `o` what was seen there.
        """
        flow, now = Flow(Timed(state.average), (self.predicted, state.action_size), self.sampling_steps), self.before
        stamps = 1 + (self.ahead - self.refined) // self.refined

        def one(
            action: Array, obs: Array, valid: Array, window: Array, key: PRNGKeyArray
        ) -> tuple[Float[Array, ""], Array]:
            draw_key, stamp_key, time_key = jax.random.split(key, 3)
            stamp = self.refined * jax.random.randint(stamp_key, (), 0, stamps)
            draft = jax.lax.stop_gradient(flow(window, draw_key))
            c, a, inside = (jax.lax.dynamic_slice_in_dim(x, now + stamp, self.refined) for x in (draft, action, valid))
            t = 1 - self.theta1 * (1 - noisy_time(time_key))
            answer = Placed(refiner)(interpolate(c, a, t), t, stamp, obs[now + stamp])
            return (inside * ((answer - (a - c)) ** 2).mean(1)).sum(), inside.sum()

        cut, keys = self.chunking, jax.random.split(key, len(batch.valid))
        error, steps = jax.vmap(one)(cut.actions(batch), batch.steps.obs, batch.valid, cut.seen(batch), keys)
        loss = error.sum() / jnp.maximum(steps.sum(), 1)
        return loss, {"refiner_loss": loss}

    def learn_refiner(self, state: HumeState, batch: Trajectory, key: PRNGKeyArray) -> tuple[HumeState, Metrics]:
        """One step of the fast flow, on its own schedule of learning rates."""
        done = state.step - 1 - state.ends[1]
        adam = self.optimizer(self.rate_after(done, state.ends[2] - state.ends[1]))
        refiner, opt, metrics = descend(adam, self.refiner_loss, state.refiner, state.refiner_opt, state, batch, key)
        average = follow(state.refiner_average, refiner, done)
        return dataclasses.replace(state, refiner=refiner, refiner_average=average, refiner_opt=opt), metrics

    # --- the run and the policy

    def update(self, state: Any, batch: Any, key: PRNGKeyArray) -> tuple[Any, Metrics]:
        """One update of whichever stage it is in; the metrics of the others are 0."""
        state = dataclasses.replace(state, step=state.step + 1)
        shown, (first, second, _) = self.shown(state, batch), state.ends
        metrics: Metrics = {}
        for stage, act, rows in (
            (state.step <= first, super().update, batch),
            ((state.step > first) & (state.step <= second), self.learn_values, self.macro(shown)),
            (state.step > second, self.learn_refiner, shown),
        ):
            state, found = when(stage, act, state, rows, key)
            metrics |= found
        return state, metrics

    def slow(self, state: HumeState) -> BestPlan:
        """What plans: the most valuable of several draws."""
        heat = Temperatures(self.time_temperatures, self.noise_temperatures, 1 - self.theta2, self.sampling_steps)
        one, shape = jnp.ones(()), (self.predicted, state.action_size)
        steps = jnp.asarray(self.sampling_steps, jnp.int32)
        draw = Tempered(Timed(state.average), heat, one, one, steps, shape, state.obs_shape)
        return BestPlan(draw, Worth(state.target_critic, self.before, self.valued), self.candidates)

    def fast(self, state: HumeState) -> Refine:
        """What acts on the plan: slices of it, refined."""
        shape = self.before, self.executed, self.refined, state.action_size
        return Refine(Placed(state.refiner_average), 1 - self.theta1, self.refining_steps, *shape)

    def policy(self, state: Any) -> Policy:
        loop = TwoRate(self.slow(state), self.fast(state), self.period, self.latency, self.observed)
        return Normalised(loop, state.normaliser)

    def explorer(self, state: Any) -> Policy:
        return self.policy(state)
