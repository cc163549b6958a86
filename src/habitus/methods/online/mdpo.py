"""MDPO: mirror descent policy optimisation, on-policy and off-policy.

Each iteration solves, by several gradient steps, `max_pi E[A(s, a)] - KL(pi || pi_k) / t`: a mirror
descent step in the space of policies, whose exact solution is `pi_k exp(t A)`, normalised. On-policy
the steps are full-batch steps on one roll-out, and no ratio is clipped; the penalty does nothing at
the first step, where the policies agree, so several are needed. Off-policy the KL is taken to a copy
of the actor that is renewed now and then, and soft actor-critic is the limit of no penalty.

M. Tomar, L. Shani, Y. Efroni and M. Ghavamzadeh, "Mirror Descent Policy Optimization", ICLR 2022.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.experience import Transition
from habitus.core.protocols import Learner, Policy, require
from habitus.core.returns import standardise, td_target
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, copy, descend, minibatches, polyak, select, trainable
from habitus.nets.heads import Ensemble, StochasticActor, TanhGaussianActor, Value, twin_critic
from habitus.nets.losses import Round, clipped_value_loss, prepare_round, tsallis_log
from habitus.nets.policies import Mode, Sampling

CARD = Card(
    title="Mirror Descent Policy Optimization",
    authors="Tomar, Manan and Shani, Lior and Efroni, Yonathan and Ghavamzadeh, Mohammad",
    year=2022,
    venue="International Conference on Learning Representations",
    arxiv="2005.09814",
    kind="learner",
    entry="MDPO",
    data=("env",),
    variants=(("mdpo-off", "MDPOOffPolicy"),),
    paper=True,
)


class MDPOState(eqx.Module):
    """Networks and optimisers; `rounds` counts iterations done, `planned` those to come in all."""

    actor: StochasticActor
    critic: Value
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    rounds: Int[Array, ""]
    planned: Float[Array, ""]


class MDPO(Learner):
    """On-policy mirror descent. Any actions."""

    learning_rate: float = 3e-4  # constant; authors' code, for thousands of iterations: raise it for fewer
    inner_steps: int = 10  # full-batch steps of an iteration ("m"); authors' README
    anneal: bool = True  # t = 1 - k/K, so that the penalty grows; else t = step_size throughout
    step_size: float = 1.0  # "t", at the start
    # 1 for the KL; else the Bregman divergence of the Tsallis entropy
    tsallis_q: float = eqx.field(default=1.0, static=True)
    discount: float = 0.99
    gae_lambda: float = 0.95
    value_epochs: int = 5  # authors' code
    value_batch_size: int = 128
    value_clip: float = 0.2
    max_grad_norm: float = 0.5  # of the actor alone
    num_envs: int = 16
    rollout_length: int = 128
    hidden: tuple[int, ...] = (64, 64)

    on_policy: ClassVar = True
    trains: ClassVar = {"actor": ("actor_loss",), "critic": ("critic_loss",)}

    def __check_init__(self) -> None:
        require(self.inner_steps >= 1, f"inner_steps must be 1 or more, but is {self.inner_steps}.")
        require(self.step_size > 0, f"step_size must be above 0, but is {self.step_size}.")
        require(self.value_clip > 0, f"value_clip must be above 0, but is {self.value_clip}.")
        require((0 < self.tsallis_q) & (self.tsallis_q <= 2), f"tsallis_q must be in (0, 2], but is {self.tsallis_q}.")

    @property
    def actor_optimizer(self) -> optax.GradientTransformation:
        """Adam with the norm of the gradient clipped; its moments outlive the iterations."""
        return optax.chain(optax.clip_by_global_norm(self.max_grad_norm), optax.adam(self.learning_rate, eps=1e-5))

    def init(self, spec: Spec, key: PRNGKeyArray) -> MDPOState:
        actor_key, critic_key = jax.random.split(key)
        actor = StochasticActor(spec, self.hidden, actor_key)
        critic = Value(spec, self.hidden, critic_key, "tanh", final_gain=1.0)
        return MDPOState(
            actor=actor,
            critic=critic,
            actor_opt=self.actor_optimizer.init(trainable(actor)),
            critic_opt=optax.adam(self.learning_rate).init(trainable(critic)),
            rounds=jnp.zeros((), jnp.int32),
            planned=jnp.asarray(float(spec.updates or 1) if spec.updates else jnp.inf, jnp.float32),
        )

    def step(self, state: MDPOState) -> Float[Array, ""]:
        """The step size "t" of this iteration: falls linearly to a floor, or stays."""
        left = 1 - state.rounds / state.planned if self.anneal else 1.0
        return self.step_size * jnp.maximum(left, 1e-3)

    def actor_loss(
        self, actor: StochasticActor, state: MDPOState, batch: Round, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`-mean ratio A + B(pi, pi_k) / t` (eq. 12); `state.actor` is the policy that collected."""
        new, old = jax.vmap(actor)(batch.obs), jax.vmap(state.actor)(batch.obs)
        log_prob = jax.vmap(lambda d, a: d.log_prob(a))(new, batch.action)
        ratio = jnp.exp(log_prob - batch.log_prob)
        surrogate = (ratio * batch.advantage).mean()
        if self.tsallis_q == 1.0:
            divergence = jax.vmap(lambda p, q: p.kl(q))(new, old).mean()
        else:
            divergence = self._tsallis_divergence(ratio, log_prob, batch.log_prob)
        loss = -surrogate + divergence / jax.lax.stop_gradient(self.step(state))
        return loss, {"actor_loss": loss, "kl": divergence}

    def _tsallis_divergence(
        self, ratio: Float[Array, "batch"], new: Float[Array, "batch"], old: Float[Array, "batch"]
    ) -> Float[Array, ""]:
        """`E_pi [log_q pi - q log_q pi_k]`, less its value at `pi_k`, from actions of `pi_k`."""
        q = self.tsallis_q
        at_old = (1 - q) * tsallis_log(old, q)
        return (ratio * (tsallis_log(new, q) - q * tsallis_log(old, q)) - at_old).mean()

    def critic_loss(
        self, critic: Value, state: MDPOState, batch: Round, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """Squared error to the TD(lambda) returns, with the change of the value clipped."""
        loss = clipped_value_loss(jax.vmap(critic)(batch.obs), batch.value, batch.target, self.value_clip)
        return loss, {"critic_loss": loss}

    def update(self, state: MDPOState, batch: Transition, key: PRNGKeyArray) -> tuple[MDPOState, Metrics]:
        ready = prepare_round(state.actor, state.critic, batch, self.discount, self.gae_lambda)
        ready = dataclasses.replace(ready, advantage=standardise(ready.advantage))

        def ascend(carry: tuple, key: PRNGKeyArray) -> tuple[tuple, Metrics]:
            # the state keeps the policy that collected; only the carry moves
            actor, opt, metrics = descend(self.actor_optimizer, self.actor_loss, *carry, state, ready, key)
            return (actor, opt), metrics

        (actor, actor_opt), metrics = jax.lax.scan(
            ascend, (state.actor, state.actor_opt), jax.random.split(key, self.inner_steps)
        )
        state, value_metrics = minibatches(self._fit_value, state, ready, key, self.value_epochs, self.value_batch_size)
        state = dataclasses.replace(state, actor=actor, actor_opt=actor_opt, rounds=state.rounds + 1)
        return state, jax.tree.map(lambda m: m[-1], metrics) | value_metrics

    def _fit_value(self, state: MDPOState, batch: Round, key: PRNGKeyArray) -> tuple[MDPOState, Metrics]:
        critic, opt, metrics = descend(
            optax.adam(self.learning_rate), self.critic_loss, state.critic, state.critic_opt, state, batch, key
        )
        return dataclasses.replace(state, critic=critic, critic_opt=opt), metrics

    def policy(self, state: MDPOState) -> Policy:
        return Mode(state.actor)

    def explorer(self, state: MDPOState) -> Policy:
        return Sampling(state.actor)


class MDPOOffState(eqx.Module):
    """Networks and optimisers; `old_actor` is the policy that the KL is taken to."""

    actor: TanhGaussianActor
    old_actor: TanhGaussianActor
    critic: Ensemble
    target_critic: Ensemble
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    updates: Int[Array, ""]


class MDPOOffPolicy(Learner):
    """Off-policy mirror descent. Real, bounded actions.

    The critic is that of soft actor-critic, two Q-networks without a separate V-network: the same
    target in expectation as the authors' layout.
    """

    temperature: float = 0.2  # of the entropy; 0 for plain mirror descent; authors' README
    kl_weight: float = 0.8  # of KL(pi || pi_old), 1/t; authors' README; 0 for soft actor-critic
    copy_period: int = 1000  # updates between copies of the actor ("m"); authors' README
    tsallis_q: float = eqx.field(default=1.0, static=True)  # as above, for each action dimension
    actor_q: Literal["first", "min"] = "first"  # which critic the actor climbs; authors' code: the first
    regularisation: float = 1e-3  # of the actor's mean and log spread; authors' code
    learning_rate: float = 3e-4
    discount: float = 0.99
    tau: float = 0.005
    batch_size: int = 256
    hidden: tuple[int, ...] = (256, 256)

    trains: ClassVar = {"critic": ("critic_loss",), "actor": ("actor_loss",)}

    def __check_init__(self) -> None:
        require(self.temperature >= 0, f"temperature must be 0 or more, but is {self.temperature}.")
        require(self.kl_weight >= 0, f"kl_weight below 0 would reward leaving the old policy, but is {self.kl_weight}.")
        require(self.copy_period >= 1, f"copy_period must be 1 or more, but is {self.copy_period}.")
        require((0 < self.tsallis_q) & (self.tsallis_q <= 2), f"tsallis_q must be in (0, 2], but is {self.tsallis_q}.")
        require(self.actor_q in ("first", "min"), f"actor_q must be first or min, but is {self.actor_q!r}.")
        require(self.regularisation >= 0, f"regularisation must be 0 or more, but is {self.regularisation}.")
        require((0 < self.tau) & (self.tau <= 1), f"tau must be in (0, 1], but is {self.tau}.")

    def init(self, spec: Spec, key: PRNGKeyArray) -> MDPOOffState:
        if spec.discrete or spec.multi_discrete:
            spec.require("bounded", "off-policy MDPO differentiates through actions (mdpo, on-policy, does not): it")
        actor_key, critic_key = jax.random.split(key)
        actor = TanhGaussianActor(spec, self.hidden, actor_key)
        critic = twin_critic(spec, self.hidden, critic_key)
        adam = optax.adam(self.learning_rate)
        return MDPOOffState(
            actor=actor,
            old_actor=copy(actor),
            critic=critic,
            target_critic=copy(critic),
            actor_opt=adam.init(trainable(actor)),
            critic_opt=adam.init(trainable(critic)),
            updates=jnp.zeros((), jnp.int32),
        )

    def critic_loss(
        self, critic: Ensemble, state: MDPOOffState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`sum_k 1/2 mean (Q_k - y)^2`, `y = r + gamma (min_k Q'_k(s', a') - tau log_q pi(a'|s'))`; no KL in it."""

        def soft_value(obs: Array, key: PRNGKeyArray) -> Float[Array, ""]:
            dist = state.actor(obs)
            pre = dist.sample_pre(key)
            log_prob = tsallis_log(dist.log_prob_pre_each(pre), self.tsallis_q).sum()
            return state.target_critic(obs, jnp.tanh(pre)).min() - self.temperature * log_prob

        next_value = jax.vmap(soft_value)(batch.next_obs, jax.random.split(key, batch.size))
        target = jax.lax.stop_gradient(td_target(batch.reward, batch.terminated, next_value, self.discount))
        value = jax.vmap(critic)(batch.obs, batch.action)
        loss = 0.5 * ((value - target[:, None]) ** 2).mean(0).sum()
        return loss, {"critic_loss": loss, "q": value.mean()}

    def actor_loss(
        self, actor: TanhGaussianActor, state: MDPOOffState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`mean c log_q pi(a|s) - q (c - tau) log_q pi_old(a|s) - Q(s, a)`, `c = kl_weight + tau` (eq. 15).

        For q = 1 that is `tau log pi + kl_weight (log pi - log pi_old) - Q`, with `a` reparameterised.
        """
        q, c = self.tsallis_q, self.kl_weight + self.temperature

        def one(obs: Array, key: PRNGKeyArray) -> tuple[Array, Array, Array]:
            new, old = actor(obs), state.old_actor(obs)
            pre = new.sample_pre(key)
            log_new = tsallis_log(new.log_prob_pre_each(pre), q).sum()
            log_old = tsallis_log(old.log_prob_pre_each(pre), q).sum()
            values = state.critic(obs, jnp.tanh(pre))
            value = values[0] if self.actor_q == "first" else values.min()
            size = (new.base.mean**2).mean() + (new.base.log_std**2).mean()
            return c * log_new - q * self.kl_weight * log_old - value, size, new.kl(old)

        loss, size, kl = jax.vmap(one)(batch.obs, jax.random.split(key, batch.size))
        loss = loss.mean() + self.regularisation * size.mean()
        return loss, {"actor_loss": loss, "kl": kl.mean()}

    def update(self, state: MDPOOffState, batch: Transition, key: PRNGKeyArray) -> tuple[MDPOOffState, Metrics]:
        actor_key, critic_key = jax.random.split(key)
        adam = optax.adam(self.learning_rate)
        renew = state.updates % self.copy_period == 0
        state = dataclasses.replace(state, old_actor=select(renew, state.actor, state.old_actor))
        actor, actor_opt, metrics = descend(
            adam, self.actor_loss, state.actor, state.actor_opt, state, batch, actor_key
        )
        state = dataclasses.replace(state, actor=actor, actor_opt=actor_opt, updates=state.updates + 1)
        critic, critic_opt, found = descend(
            adam, self.critic_loss, state.critic, state.critic_opt, state, batch, critic_key
        )
        target = polyak(state.target_critic, critic, self.tau)
        state = dataclasses.replace(state, critic=critic, critic_opt=critic_opt, target_critic=target)
        return state, metrics | found

    def policy(self, state: MDPOOffState) -> Policy:
        return Mode(state.actor)

    def explorer(self, state: MDPOOffState) -> Policy:
        return Sampling(state.actor)
