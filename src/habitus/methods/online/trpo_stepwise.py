"""Finite-horizon TRPO: a policy and an action value for each step of the episode.

Where the number of steps is part of the problem, the best action depends on how many are left. Each step
has networks of its own: its Q is regressed on the returns of fresh roll-outs, and its policy takes a
trust-region step of its own. It is what HNPG is without a log, and its baseline there.

J. Schulman, S. Levine, P. Moritz, M. I. Jordan and P. Abbeel, "Trust Region Policy Optimization",
ICML 2015; the form with networks for each step as in Y. Zhou et al., "Offline Data Enhanced On-Policy
Policy Gradient with Provable Guarantees", ICLR 2024.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.errors import ConfigError
from habitus.core.experience import Transition
from habitus.core.protocols import Learner, Policy, require
from habitus.core.returns import gae
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, descend, take, trainable
from habitus.nets.heads import Critic, StochasticActor, shrink_head
from habitus.nets.trust_region import TrustRegion, mean_kl, surrogate, trust_region_step

CARD = Card(
    title="Trust Region Policy Optimization",
    authors="Schulman, John and Levine, Sergey and Moritz, Philipp and Jordan, Michael I. and Abbeel, Pieter",
    year=2015,
    venue="International Conference on Machine Learning",
    arxiv="1502.05477",
    kind="learner",
    entry="StepwiseTRPO",
    data=("env",),
    actions=("continuous",),
)


class Rows(eqx.Module):
    """The same step of many episodes; under `scan`, of every step, with a leading axis."""

    obs: Array
    action: Array
    reward: Float[Array, "*steps batch"]
    next_obs: Array
    over: Bool[Array, "*steps batch"]  # nothing follows
    weight: Float[Array, "*steps batch"]  # 0 where the episode had ended before

    @classmethod
    def of(cls, steps: Transition, valid: Bool[Array, "steps batch"]) -> Rows:
        """Of transitions [steps, episodes]: the problem ends with the last step, however that is recorded."""
        last = (jnp.arange(len(valid)) == len(valid) - 1)[:, None]
        weight = valid.astype(jnp.float32)
        return cls(steps.obs, steps.action, steps.reward, steps.next_obs, steps.done | last, weight)

    def returns(self, discount: float | Array) -> Float[Array, "steps batch"]:
        """Discounted sums of the rewards from each step on."""

        def back(later: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
            total = now[0] + discount * jnp.where(now[1], 0.0, later)
            return total, total

        return jax.lax.scan(back, jnp.zeros_like(self.reward[0]), (self.reward, self.over), reverse=True)[1]


class Fit(eqx.Module):
    """What the critic of one step is fitted to: returns of roll-outs, and targets on the log if it takes part."""

    own: Rows
    returns: Float[Array, "batch"]
    logged: Rows | None
    target: Float[Array, "logged"] | None


class Improvement(eqx.Module):
    """States of both sides with actions of the current policy, and their advantages."""

    obs: Array
    action: Array
    log_prob: Float[Array, "*steps batch"]
    advantage: Float[Array, "*steps batch"]
    weight: Float[Array, "*steps batch"]


class InTurn(Policy):
    """Acts with the network of each step of the episode in turn; the last one goes on for ever."""

    actor: StochasticActor  # stacked
    sample: bool = eqx.field(static=True)

    def init(self) -> Int[Array, ""]:
        return jnp.zeros((), jnp.int32)

    def __call__(self, obs: Array, carry: Int[Array, ""], key: PRNGKeyArray) -> tuple[Array, Int[Array, ""]]:
        steps = self.actor.net.mlp.layers[0].bias.shape[0]
        dist = take(self.actor, jnp.minimum(carry, steps - 1))(obs)
        return dist.sample(key) if self.sample else dist.mode(), carry + 1


class StepwiseState(eqx.Module):
    """A policy and a critic for each step of the episode, stacked."""

    actor: StochasticActor
    critic: Critic


class StepwiseTRPO(Learner):
    """TRPO with networks for each step. Real actions, a world with a horizon.

    Nothing follows the last step of the horizon, however the record of it ends.
    """

    max_kl: float = 0.01  # authors' code
    damping: float = 0.1  # of the Fisher matrix; authors' code
    cg_steps: int = 10  # authors' code
    backtracks: int = 10  # authors' code
    discount: float = 1.0  # authors' code
    gae_lambda: float = 0.97  # authors' code
    value_learning_rate: float = 3e-4  # authors' code; Adam is fresh in every round
    value_epochs: int = 30  # steps on all rows at once; authors' code
    value_samples: int = 10  # actions that a state's value is the mean over; authors' code
    num_envs: int = 200  # episodes of a round; authors' code: enough for 1,000 steps
    hidden: tuple[int, ...] = (16, 16)  # authors' code
    critic_hidden: tuple[int, ...] = (64, 64)  # authors' code

    on_policy: ClassVar = True
    from_start: ClassVar = True
    trains: ClassVar = {"actor": ("actor_loss",), "critic": ("critic_loss",)}

    def __check_init__(self) -> None:
        _ = self.region  # which checks its own
        require(self.value_samples >= 1, f"value_samples must be 1 or more, but is {self.value_samples}.")

    @property
    def region(self) -> TrustRegion:
        """The trust region of each step's policy."""
        return TrustRegion(self.max_kl, self.damping, cg_steps=self.cg_steps, backtracks=self.backtracks)

    def init(self, spec: Spec, key: PRNGKeyArray) -> StepwiseState:
        spec.require("continuous", type(self).__name__)
        if spec.horizon is None:
            raise ConfigError(f"{type(self).__name__} has a policy for each step, so its world needs a horizon.")
        actor_key, critic_key = jax.random.split(key)

        def actor(key: PRNGKeyArray) -> StochasticActor:
            return shrink_head(StochasticActor(spec, self.hidden, key, final_gain=None), 0.1, lambda a: a.net.mlp)

        def critic(key: PRNGKeyArray) -> Critic:
            return shrink_head(Critic(spec, self.critic_hidden, key, "tanh"), 0.1, lambda c: c.mlp)

        keys = (jax.random.split(k, spec.horizon) for k in (actor_key, critic_key))
        return StepwiseState(*(eqx.filter_vmap(make)(k) for make, k in zip((actor, critic), keys, strict=True)))

    # --- evaluation of the policy, backwards from the last step

    def critic_loss(
        self, critic: Critic, state: StepwiseState, batch: Fit, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`mean (Q_h(s, a) - G_h)^2` over the roll-outs, and over the log `mean (Q_h(s, a) - y)^2`."""

        def error(rows: Rows, target: Array) -> Float[Array, ""]:
            square = (jax.vmap(critic)(rows.obs, rows.action) - target) ** 2
            return (rows.weight * square).sum() / jnp.maximum(rows.weight.sum(), 1.0)

        loss = error(batch.own, batch.returns)
        if batch.logged is not None and batch.target is not None:
            loss = loss + self.log_weight * error(batch.logged, batch.target)
        return loss, {"critic_loss": loss}

    @property
    def log_weight(self) -> float:
        """How much the log counts."""
        return 0.0

    def evaluate(self, state: StepwiseState, own: Rows, logged: Rows | None, key: PRNGKeyArray) -> tuple[Any, Metrics]:
        """Critics of every step for the current policy, each fitted after the one that its targets need."""
        adam = optax.adam(self.value_learning_rate)

        def fit(later: tuple[Critic, StochasticActor], at: tuple[Any, ...]) -> tuple[Any, tuple[Critic, Metrics]]:
            critic, actor, rows, returns, log, key = at
            target = None if log is None else self._target(*later, log, key)
            batch = Fit(rows, returns, log, target)

            def descent(now: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Metrics]:
                net, opt, metrics = descend(
                    adam, self.critic_loss, eqx.combine(now[0], fixed), now[1], state, batch, key
                )
                return (eqx.filter(net, eqx.is_array), opt), metrics

            arrays, fixed = eqx.partition(critic, eqx.is_array)
            start = arrays, adam.init(trainable(critic))
            (arrays, _), metrics = jax.lax.scan(descent, start, None, length=self.value_epochs)
            critic = eqx.combine(arrays, fixed)
            return (critic, actor), (critic, jax.tree.map(lambda m: m[-1], metrics))

        keys = jax.random.split(key, len(own.weight))
        end = take(state.critic, -1), take(state.actor, -1)  # any: nothing follows the last step
        xs = (state.critic, state.actor, own, own.returns(self.discount), logged, keys)
        _, (critic, metrics) = jax.lax.scan(fit, end, xs, reverse=True)
        return critic, jax.tree.map(jnp.mean, metrics)

    def _target(self, critic: Critic, actor: StochasticActor, rows: Rows, key: PRNGKeyArray) -> Float[Array, "batch"]:
        """`y = r + discount Q_{h+1}(s', a')` with one action of the current policy."""
        keys = jax.random.split(key, len(rows.weight))
        after = jax.vmap(lambda o, k: critic(o, actor(o).sample(k)))(rows.next_obs, keys)
        return rows.reward + self.discount * jnp.where(rows.over, 0.0, after)

    def value(self, actor: StochasticActor, critic: Critic, obs: Array, key: PRNGKeyArray) -> Float[Array, ""]:
        """`V_h(s)`: the mean of `Q_h(s, a)` over actions of the policy."""
        return jax.vmap(lambda k: critic(obs, actor(obs).sample(k)))(jax.random.split(key, self.value_samples)).mean()

    # --- improvement, each step's policy for itself

    def advantages(self, state: StepwiseState, own: Rows, logged: Rows | None, key: PRNGKeyArray) -> Improvement:
        """Generalised advantages along the roll-outs; in the log's states `Q_h(s, a) - V_h(s)`, `a` of the policy."""
        own_key, value_key, act_key = jax.random.split(key, 3)
        log_prob = _each(lambda actor, o, a: actor(o).log_prob(a))
        value = _each(self.value, nets=2)
        v = value(state.actor, state.critic, own.obs, _keys(own_key, own.weight))
        after = jnp.concatenate([v[1:], jnp.zeros_like(v[:1])])
        advantage, _ = gae(own.reward, v, after, own.over, own.over, self.discount, self.gae_lambda)
        ready = Improvement(own.obs, own.action, log_prob(state.actor, own.obs, own.action), advantage, own.weight)
        if logged is None:
            return ready
        action = _each(lambda actor, o, k: actor(o).sample(k))(state.actor, logged.obs, _keys(act_key, logged.weight))
        q = _each(lambda critic, o, a: critic(o, a))(state.critic, logged.obs, action)
        gain = q - value(state.actor, state.critic, logged.obs, _keys(value_key, logged.weight))
        theirs = Improvement(
            logged.obs, action, log_prob(state.actor, logged.obs, action), gain, self.log_weight * logged.weight
        )
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y], 1), ready, theirs)

    def actor_loss(
        self, actor: StochasticActor, state: StepwiseState, batch: Improvement, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`-mean pi(a|s) / pi_old(a|s) A` over the rows of both sides; the advantages are as they are."""
        loss = -surrogate(actor, batch.obs, batch.action, batch.log_prob, batch.advantage, batch.weight)
        return loss, {"actor_loss": loss}

    def divergence(
        self, old: StochasticActor, new: StochasticActor, state: StepwiseState, batch: Improvement, key: PRNGKeyArray
    ) -> Float[Array, ""]:
        """Mean KL over the rows of both sides."""
        return mean_kl(old, new, batch.obs, batch.weight)

    def update(self, state: StepwiseState, batch: Any, key: PRNGKeyArray) -> tuple[StepwiseState, Metrics]:
        """Roll-outs [steps, episodes], from first steps on: evaluate the policy, then improve it step by step."""
        return self.improve(state, self._own(batch), None, key)

    def _own(self, rollout: Transition) -> Rows:
        before = jnp.cumsum(rollout.done, 0) - rollout.done
        return Rows.of(rollout, before == 0)  # what follows the end of an episode is of another one

    def improve(
        self, state: StepwiseState, own: Rows, logged: Rows | None, key: PRNGKeyArray
    ) -> tuple[StepwiseState, Metrics]:
        """One round."""
        fit_key, advantage_key, key = jax.random.split(key, 3)
        critic, metrics = self.evaluate(state, own, logged, fit_key)
        state = dataclasses.replace(state, critic=critic)
        ready = self.advantages(state, own, logged, advantage_key)

        def step(_: None, at: tuple[StochasticActor, Improvement]) -> tuple[None, tuple[StochasticActor, Metrics]]:
            return None, trust_region_step(self.region, self.actor_loss, at[0], self.divergence, state, at[1], key)

        _, (actor, found) = jax.lax.scan(step, None, (state.actor, ready))
        largest = {"largest_kl": found["kl"].max()}
        return dataclasses.replace(state, actor=actor), metrics | jax.tree.map(jnp.mean, found) | largest

    def policy(self, state: StepwiseState) -> Policy:
        return InTurn(state.actor, sample=False)

    def explorer(self, state: StepwiseState) -> Policy:
        return InTurn(state.actor, sample=True)


def _each(of_one: Callable[..., Any], nets: int = 1) -> Callable[..., Any]:
    """Maps a function of `nets` networks and of arguments over [steps] and, the arguments only, over [batch]."""

    def of_step(*args: Any) -> Any:
        return jax.vmap(lambda *rest: of_one(*args[:nets], *rest))(*args[nets:])

    return eqx.filter_vmap(of_step)


def _keys(key: PRNGKeyArray, like: Float[Array, "steps batch"]) -> Any:
    return jax.random.split(key, like.shape)
