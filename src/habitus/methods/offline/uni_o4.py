"""Uni-O4: one objective, offline and online.

PPO's clipped objective does all the learning. Offline, several policies are cloned from the log, kept
apart from each other, and then improved by PPO steps on their own actions under a frozen critic. The
policy that a step may not leave is replaced only when roll-outs in a learned world say that the new
one is better, so that many small trust regions are chained without the environment. Online, the best
policy and the value go on with plain PPO, and nothing changes at the switch.

K. Lei, Z. He, C. Lu, K. Hu, Y. Gao and H. Xu, "Uni-O4: Unifying Online and Offline Deep Reinforcement
Learning with Multi-Step On-Policy Optimization", ICLR 2024.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.errors import ConfigError
from habitus.core.experience import Transition
from habitus.core.protocols import Policy, require
from habitus.core.returns import standardise
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, copy, descend, extend, select, take, trainable, when
from habitus.envs.terminations import Termination, termination_of
from habitus.methods.offline.iql import ImplicitQ, ImplicitQState
from habitus.nets.dynamics import DynamicsEnsemble, GaussianDynamics, ModelRollout
from habitus.nets.heads import SquashedHead
from habitus.nets.optim import clip_each
from habitus.nets.policies import Mode, Normalised, Sampling

CARD = Card(
    title="Uni-O4: Unifying Online and Offline Deep Reinforcement Learning with Multi-Step On-Policy Optimization",
    authors="Lei, Kun and He, Zhengmao and Lu, Chenhao and Hu, Kaizhe and Gao, Yang and Xu, Huazhe",
    year=2024,
    venue="International Conference on Learning Representations",
    arxiv="2311.03351",
    kind="learner",
    entry="UniO4",
    data=("log",),
    actions=("continuous",),
    paper=True,
)


LOWEST = float(jnp.finfo(jnp.float32).min)  # of scores: infinity would count as divergence


class UniO4State(ImplicitQState):
    """Values, the policies (stacked) with their trust regions, the learned dynamics, and where it stands."""

    actor: SquashedHead
    old: SquashedHead
    score: Float[Array, "members"]
    best: Float[Array, "members"]
    actor_opt: optax.OptState
    improve_opt: optax.OptState
    dynamics: DynamicsEnsemble
    dynamics_opt: optax.OptState
    errors: Float[Array, "models"]
    starts: Float[Array, "starts obs"]
    gate_seed: Int[Array, ""]
    step: Int[Array, ""]
    ends: Int[Array, "3"]
    termination: Termination = eqx.field(static=True)

    @property
    def chosen(self) -> SquashedHead:
        """The policy that the learned world thinks best."""
        return take(self.actor, jnp.argmax(self.score))


class UniO4(ImplicitQ):
    """The offline stages, one after another in one run: values and dynamics, clones, gated PPO steps.

    Online it goes on as `UniO4Online`: `learn("uni-o4-online", env=..., warm_start=run)`.
    """

    normalise: bool = True  # authors' code, for locomotion
    policies: int = 4  # authors' code
    clone_share: float = 0.2  # of the updates, for cloning; the authors: a sixth
    improve_share: float = 0.05  # of the updates, for PPO steps; the rest is for values and dynamics
    diversity: float = 0.1  # weight of the difference between policies ("alpha"); authors' code
    difference: Literal["distribution", "heuristic"] = "distribution"  # paper; `heuristic` is the authors' code
    clip: float = 0.25  # of the ratio; authors' code
    clip_decay: Literal["partial", "full"] = "partial"  # for the first 200 steps as in their code, or to 0
    improve_learning_rate: float = 3e-4  # falls linearly to 0; authors' code: 1e-4
    max_grad_norm: float = 0.5  # of each policy; authors' code
    gate_every: int = 50  # PPO steps between evaluations in the learned world; authors' code: 100
    gate_starts: int = 256  # episodes of an evaluation; authors' code: 512
    gate_horizon: int = 100  # their length; authors' code: 1000, and 5 to 150 where rewards are sparse
    models: int = 5  # learned dynamics; authors' code: 7
    elites: int = 3  # of them used; authors' code: 5
    dynamics_learning_rate: float = 1e-3  # authors' code
    dynamics_hidden: tuple[int, ...] = (128, 128)  # authors' code: four layers of 200

    trains: ClassVar = {
        "value": ("value_loss",),
        "critic": ("critic_loss",),
        "dynamics": ("dynamics_loss",),
        "actor": ("clone_loss", "improve_loss"),
    }

    def __check_init__(self) -> None:
        for name in ("clone_share", "improve_share"):
            value = getattr(self, name)
            require((0 < value) & (value < 1), f"{name} is a share of the updates, in (0, 1), but is {value}.")
        for name in ("policies", "gate_every", "gate_starts", "gate_horizon", "models"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more, but is {getattr(self, name)}.")
        require(1 <= self.elites <= self.models, f"elites must be from 1 to models, but is {self.elites}.")
        require(self.diversity >= 0, f"diversity must be 0 or more, but is {self.diversity}.")
        require(self.clip > 0, f"clip must be above 0, but is {self.clip}.")

    def init(self, spec: Spec, key: PRNGKeyArray) -> UniO4State:
        spec.require("bounded", type(self).__name__)
        if spec.dataset is None or spec.updates is None:
            raise ConfigError("Uni-O4's stages need a log and a planned number of updates: use learn(..., data=...).")
        value_key, actor_key, model_key, start_key, gate_key = jax.random.split(key, 5)
        keys = jax.random.split(actor_key, self.policies)
        actor = eqx.filter_vmap(lambda k: SquashedHead(spec, self.hidden, k))(keys)
        dynamics = DynamicsEnsemble(spec, self.dynamics_hidden, self.models, model_key)
        obs = jnp.asarray(np.asarray(spec.dataset.obs), jnp.float32)
        stages = jnp.cumsum(
            jnp.stack([1 - self.clone_share - self.improve_share, self.clone_share, self.improve_share])
        )
        return extend(
            UniO4State,
            self.values(spec, value_key),
            actor=actor,
            old=copy(actor),
            score=jnp.full(self.policies, LOWEST),
            best=jnp.full(self.policies, LOWEST),
            actor_opt=optax.adam(self.learning_rate).init(trainable(actor)),
            improve_opt=self.improver(jnp.ones(())).init(trainable(actor)),
            dynamics=dynamics,
            dynamics_opt=optax.adam(self.dynamics_learning_rate).init(trainable(dynamics.members)),
            errors=jnp.zeros(self.models),
            starts=obs[jax.random.randint(start_key, (self.gate_starts,), 0, len(obs))],
            gate_seed=jax.random.randint(gate_key, (), 0, 2**30),
            step=jnp.zeros((), jnp.int32),
            ends=jnp.round(stages * spec.updates).astype(jnp.int32),
            termination=termination_of(str(spec.dataset.meta.get("task", ""))),
        )

    def improver(self, steps: Float[Array, ""]) -> optax.GradientTransformation:
        """Adam with each policy's gradient clipped, at a rate that falls to 0 over `steps`."""
        rate = lambda count: self.improve_learning_rate * jnp.maximum(1 - count / steps, 0.0)  # noqa: E731
        return optax.chain(clip_each(self.max_grad_norm), optax.adam(rate))

    # --- stage 1: values and dynamics

    def dynamics_loss(
        self, members: GaussianDynamics, state: UniO4State, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """Negative log likelihood of each model on its own resample of the batch."""
        loss, errors = eqx.tree_at(lambda d: d.members, state.dynamics, members).loss(batch, key)
        return loss, {"dynamics_loss": loss, "errors": errors}

    def _learn_values(self, state: UniO4State, batch: Transition, key: PRNGKeyArray) -> tuple[UniO4State, Metrics]:
        adam = optax.adam(self.dynamics_learning_rate)
        members, dynamics_opt, found = descend(
            adam, self.dynamics_loss, state.dynamics.members, state.dynamics_opt, state, batch, key
        )
        dynamics = eqx.tree_at(lambda d: d.members, state.dynamics, members)
        errors = 0.99 * state.errors + 0.01 * found.pop("errors")
        state = dataclasses.replace(state, dynamics=dynamics, dynamics_opt=dynamics_opt, errors=errors)
        seen = state.normaliser.transition(batch)
        state, metrics = self.improve_value(state, seen, key)
        state, more = self.improve_critic(state, seen, key)
        return state, metrics | found | more

    # --- stage 2: different clones of the log

    def clone_loss(
        self, actor: SquashedHead, state: UniO4State, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`sum_i mean -log pi_i(a|s) - alpha KL(pi_i || pi_m)`, `m` the likeliest other policy (eq. 6).

        The KL is a mean over action dimensions. `heuristic` puts the difference of log likelihoods in
        its place, whose gradient is that of cloning, `1 + alpha` times.
        """
        dist = eqx.filter_vmap(lambda member: jax.vmap(member)(batch.obs))(actor)
        likely = jax.vmap(jax.vmap(lambda d, a: d.log_prob(a)), (0, None))(dist, batch.action)
        loss = -likely.mean(1).sum()
        if self.policies > 1:
            others = jnp.where(jnp.eye(self.policies, dtype=bool)[..., None], -jnp.inf, likely[None])
            nearest = jax.lax.stop_gradient(others.argmax(1))  # for each policy and row, the likeliest other one
            rows = jnp.arange(batch.size)
            other = jax.lax.stop_gradient(jax.tree.map(lambda x: x[nearest, rows], dist))
            if self.difference == "distribution":
                apart = jax.vmap(jax.vmap(lambda p, q: p.kl(q)))(dist, other) / batch.action.shape[-1]
            else:
                apart = likely - jax.vmap(jax.vmap(lambda d, a: d.log_prob(a)), (0, None))(other, batch.action)
            loss = loss - self.diversity * apart.mean(1).sum()
        return loss, {"clone_loss": loss, "log_prob": likely.mean()}

    def _clone(self, state: UniO4State, batch: Transition, key: PRNGKeyArray) -> tuple[UniO4State, Metrics]:
        seen = state.normaliser.transition(batch)
        actor, actor_opt, metrics = descend(
            optax.adam(self.learning_rate), self.clone_loss, state.actor, state.actor_opt, state, seen, key
        )
        return dataclasses.replace(state, actor=actor, old=actor, actor_opt=actor_opt), metrics

    # --- stage 3: PPO steps in trust regions that a learned world lets move

    def improve_loss(
        self, actor: SquashedHead, state: UniO4State, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`-sum_i mean min(rho A, clip(rho, 1 +- eps) A)`, `A = min_k Q_k(s, a) - V(s)`, `a ~ old_i` (eq. 8)."""
        done, planned = state.step - state.ends[1], state.ends[2] - state.ends[1]
        decayed = done if self.clip_decay == "full" else jnp.minimum(done, 200)
        clip = self.clip * jnp.maximum(1 - decayed / jnp.maximum(planned, 1), 0.0)
        value = jax.vmap(state.value)(batch.obs)

        def one(member: SquashedHead, old: SquashedHead, key: PRNGKeyArray) -> Float[Array, ""]:
            before, after = jax.vmap(old)(batch.obs), jax.vmap(member)(batch.obs)
            action = jax.vmap(lambda d, k: d.sample(k))(before, jax.random.split(key, batch.size))
            advantage = standardise(jax.vmap(state.critic)(batch.obs, action).min(-1) - value)
            log_prob = jax.vmap(lambda d, a: d.log_prob(a))
            ratio = jnp.exp(log_prob(after, action) - log_prob(before, action))
            return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage).mean()

        loss = eqx.filter_vmap(one)(actor, state.old, jax.random.split(key, self.policies)).sum()
        return loss, {"improve_loss": loss}

    def model_value(self, state: UniO4State, actor: SquashedHead) -> Float[Array, ""]:
        """Mean `min_k Q_k(s, pi(s))` along roll-outs of one policy in the learned world ("AM-Q", eq. 10).

        Start states and noise are the same for every policy and at every time; a roll-out stops where
        the task ends or the state is no longer finite, and a value that is not finite counts as the lowest.
        """
        world = ModelRollout(state.dynamics, jnp.argsort(state.errors)[: self.elites], state.termination)

        def act(obs: Array) -> Array:
            return jnp.clip(actor(state.normaliser(obs)).mode(), -1.0, 1.0)

        obs, alive = world.run(state.starts, act, self.gate_horizon, jax.random.key(state.gate_seed))
        q = jax.vmap(jax.vmap(lambda o: state.critic(state.normaliser(o), act(o)).min()))(obs)
        value = jnp.where(alive, q, 0.0).sum() / alive.sum()
        return jnp.where(jnp.isfinite(value), value, LOWEST)

    def _judge(self, state: UniO4State) -> tuple[UniO4State, Metrics]:
        """Moves the trust region of each policy that the learned world says is better than all before it."""
        score = eqx.filter_vmap(lambda member: self.model_value(state, member))(state.actor)
        better = score > state.best
        old = jax.vmap(select)(better, *(eqx.filter(x, eqx.is_array) for x in (state.actor, state.old)))
        old = eqx.combine(old, state.old)
        state = dataclasses.replace(state, old=old, score=score, best=jnp.maximum(score, state.best))
        return state, {"moved": better.mean(), "model_value": score.max()}

    def _improve(self, state: UniO4State, batch: Transition, key: PRNGKeyArray) -> tuple[UniO4State, Metrics]:
        state, judged = when(state.step == state.ends[1] + 1, self._judge, state)
        planned = jnp.maximum(state.ends[2] - state.ends[1], 1).astype(jnp.float32)
        seen = state.normaliser.transition(batch)
        actor, improve_opt, metrics = descend(
            self.improver(planned), self.improve_loss, state.actor, state.improve_opt, state, seen, key
        )
        state = dataclasses.replace(state, actor=actor, improve_opt=improve_opt)
        due = ((state.step - state.ends[1]) % self.gate_every == 0) | (state.step == state.ends[2])
        state, found = when(due, self._judge, state)
        return state, metrics | {name: judged[name] + value for name, value in found.items()}

    def update(self, state: UniO4State, batch: Transition, key: PRNGKeyArray) -> tuple[UniO4State, Metrics]:
        """One update of whichever stage it is in; the metrics of the others are 0."""
        state = dataclasses.replace(state, step=state.step + 1)
        first, second, _ = state.ends
        metrics: Metrics = {}
        for stage, act in (
            (state.step <= first, self._learn_values),
            ((state.step > first) & (state.step <= second), self._clone),
            (state.step > second, self._improve),
        ):
            state, found = when(stage, act, state, batch, key)
            metrics |= found
        return state, metrics

    def policy(self, state: UniO4State) -> Policy:
        return Normalised(Mode(state.chosen), state.normaliser)

    def explorer(self, state: UniO4State) -> Policy:
        return Normalised(Sampling(state.chosen), state.normaliser)
