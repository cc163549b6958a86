"""FamO2O: train once, get a family; a balance for every state.

Offline-to-online learning must weigh improving the policy against staying with the log, and the right
weight differs from state to state. A universal policy is cloned from the log with weights
`exp(beta A)` for every `beta` at once, as one more input, which makes it a family from cautious to
greedy; a balance policy then picks `beta` for each state by climbing Q. Critic and value are those of
IQL, whose one temperature the family replaces.

S. Wang, Q. Yang, J. Gao, M. Lin, H. Chen, L. Wu, N. Jia, S. Song and G. Huang, "Train Once, Get a
Family: State-Adaptive Balances for Offline-to-Online Reinforcement Learning", NeurIPS 2023.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.experience import Transition
from habitus.core.protocols import Policy, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, descend, extend, trainable
from habitus.methods.offline.iql import ImplicitQ, ImplicitQState
from habitus.nets.distributions import Normal, TanhNormal
from habitus.nets.embedding import sinusoidal
from habitus.nets.encoder import Encoder, make_encoder
from habitus.nets.heads import ObsNet
from habitus.nets.mlp import MLP
from habitus.nets.policies import Mode, Normalised, Sampling

CARD = Card(
    title="Train Once, Get a Family: State-Adaptive Balances for Offline-to-Online Reinforcement Learning",
    authors="Wang, Shenzhi and Yang, Qisen and Gao, Jiawei and Lin, Matthieu Gaetan and Chen, Hao and Wu, Liwei "
    "and Jia, Ning and Song, Shiji and Huang, Gao",
    year=2023,
    venue="Advances in Neural Information Processing Systems",
    arxiv="2310.17966",
    kind="learner",
    entry="FamO2O",
    data=("log", "env"),
    actions=("continuous",),
    paper=True,
)


class UniversalActor(eqx.Module):
    """`pi_u(a | s, beta)`: a Gaussian around a squashed mean, its spread the same everywhere."""

    encoder: Encoder
    mlp: MLP
    log_std: Float[Array, "actions"]
    waves: int = eqx.field(static=True)

    def __init__(self, spec: Spec, hidden: Sequence[int], waves: int, key: PRNGKeyArray):
        spec.require("bounded", "a universal policy")
        e_key, m_key = jax.random.split(key)
        self.encoder = make_encoder(spec, e_key)
        self.mlp = MLP(self.encoder.size + waves, hidden, spec.action_size, m_key)
        self.log_std, self.waves = jnp.zeros(spec.action_size), waves

    def __call__(self, obs: Array, balance: Float[Array, ""]) -> Normal:
        seen = jnp.concatenate([self.encoder(obs), sinusoidal(balance, self.waves)])
        return Normal(jnp.tanh(self.mlp(seen)), jnp.clip(self.log_std, -5.0, 2.0))


class BalanceActor(eqx.Module):
    """`pi_b(x | s)`: a squashed Gaussian over where in the range of balances, x in (-1, 1)."""

    net: ObsNet
    log_std: Float[Array, "1"]

    def __init__(self, spec: Spec, hidden: Sequence[int], key: PRNGKeyArray):
        self.net, self.log_std = ObsNet(spec, hidden, 1, key), jnp.zeros(1)

    def __call__(self, obs: Array) -> TanhNormal:
        return TanhNormal(Normal(self.net(obs), jnp.clip(self.log_std, -10.0, 2.0)))


class Balanced(eqx.Module):
    """The universal policy at the balance that the balance policy thinks best for the state."""

    actor: UniversalActor
    balance: BalanceActor
    low: Float[Array, ""] | float
    high: Float[Array, ""] | float

    def __call__(self, obs: Array) -> Normal:
        return self.actor(obs, within(self.low, self.high, self.balance(obs).mode()))


def within(low: Any, high: Any, x: Float[Array, "1"]) -> Float[Array, ""]:
    """From (-1, 1) to the range of balances."""
    return low + (x[0] + 1) / 2 * (high - low)


class FamO2OState(ImplicitQState):
    """The values, both policies, and whether the log is no longer the only source."""

    actor: UniversalActor
    balance: BalanceActor
    log_temperature: Float[Array, ""]
    actor_opt: optax.OptState
    balance_opt: optax.OptState
    temperature_opt: optax.OptState
    online: Bool[Array, ""]


class FamO2O(ImplicitQ):
    """Implicit Q-learning with a family of policies and a balance for each state. Real, bounded actions."""

    low: float = 1.0  # range of the inverse temperature; authors' code: 8 to 14 in mazes
    high: float = 5.0
    max_weight: float = 100.0  # authors' code
    waves: int = 6  # size of the code of a balance; authors' code
    temperature: float = 1.0  # of the balance's entropy, its first value; tuned
    target_entropy: float = -0.5  # of the balance; authors' code

    trains: ClassVar = {
        "value": ("value_loss",),
        "critic": ("critic_loss",),
        "actor": ("actor_loss",),
        "balance": ("balance_loss",),
        "log_temperature": ("temperature_loss",),
    }

    def __check_init__(self) -> None:
        require(self.low >= 0, f"low bounds an inverse temperature, so it must be 0 or more, but is {self.low}.")
        require(self.low <= self.high, f"low must not be above high={self.high}, but is {self.low}.")
        require(self.high >= 0, f"high bounds an inverse temperature, so it must be 0 or more, but is {self.high}.")
        require(self.max_weight > 0, f"max_weight must be above 0, but is {self.max_weight}.")
        require(self.temperature > 0, f"temperature must be above 0, but is {self.temperature}.")
        even = self.waves >= 2 and self.waves % 2 == 0
        require(even, f"waves counts sines and cosines, so it must be even and 2 or more, but is {self.waves}.")

    def init(self, spec: Spec, key: PRNGKeyArray) -> FamO2OState:
        spec.require("bounded", type(self).__name__)
        value_key, actor_key, balance_key = jax.random.split(key, 3)
        actor = UniversalActor(spec, self.hidden, self.waves, actor_key)
        balance = BalanceActor(spec, self.hidden, balance_key)
        log_temperature = jnp.log(jnp.asarray(self.temperature, jnp.float32))
        adam = optax.adam(self.learning_rate)
        return extend(
            FamO2OState,
            self.values(spec, value_key),
            actor=actor,
            balance=balance,
            log_temperature=log_temperature,
            actor_opt=adam.init(trainable(actor)),
            balance_opt=adam.init(trainable(balance)),
            temperature_opt=adam.init(log_temperature),
            online=jnp.asarray(spec.acts),
        )

    def adopt(self, state: FamO2OState, earlier: FamO2OState) -> FamO2OState:
        """The same networks; from now on in the stage of the new source."""
        return dataclasses.replace(earlier, online=state.online)

    def balance_loss(
        self, balance: BalanceActor, state: FamO2OState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`mean alpha log pi_b(x|s) - min_k Q'_k(s, a)`, `a ~ pi_u(.|s, beta(x))`, reparameterised (eq. 9)."""

        def one(obs: Array, key: PRNGKeyArray) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
            x_key, action_key = jax.random.split(key)
            x, log_prob = balance(obs).sample_and_log_prob(x_key)
            beta = within(self.low, self.high, x)
            q = jax.lax.stop_gradient(state.target_critic)(obs, state.actor(obs, beta).sample(action_key)).min()
            return jax.lax.stop_gradient(jnp.exp(state.log_temperature)) * log_prob - q, log_prob, beta

        loss, log_prob, beta = jax.vmap(one)(batch.obs, jax.random.split(key, batch.size))
        return loss.mean(), {"balance_loss": loss.mean(), "balance_entropy": -log_prob.mean(), "beta": beta.mean()}

    def temperature_loss(
        self, log_temperature: Float[Array, ""], entropy: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        """`alpha (H(pi_b) - target)`: rises while the entropy is below its target."""
        excess = jax.lax.stop_gradient(entropy - self.target_entropy)
        return jnp.exp(log_temperature) * excess, {"temperature": jnp.exp(log_temperature)}

    def balances(self, state: FamO2OState, batch: Transition, key: PRNGKeyArray) -> Float[Array, "batch"]:
        """`beta` for cloning: uniform over the range while offline, the balance policy's own choice online."""
        uniform = jax.random.uniform(key, (batch.size,), minval=-1.0, maxval=1.0)[:, None]
        chosen = jax.vmap(lambda o, k: state.balance(o).sample(k))(batch.obs, jax.random.split(key, batch.size))
        x = jax.lax.stop_gradient(jnp.where(state.online, chosen, uniform))
        return jax.vmap(within, (None, None, 0))(self.low, self.high, x)

    def actor_loss(
        self, actor: UniversalActor, state: FamO2OState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`-mean exp(beta A(s, a)) log pi_u(a|s, beta)`, the weight clipped (eq. 5)."""
        beta = self.balances(state, batch, key)
        advantage = jax.lax.stop_gradient(self.advantage(state.value, state, batch))
        weight = jnp.minimum(jnp.exp(beta * advantage), self.max_weight)
        log_prob = jax.vmap(lambda o, b, a: actor(o, b).log_prob(a))(batch.obs, beta, batch.action)
        loss = -(weight * log_prob).mean()
        return loss, {"actor_loss": loss, "log_prob": log_prob.mean()}

    def update(self, state: FamO2OState, batch: Transition, key: PRNGKeyArray) -> tuple[FamO2OState, Metrics]:
        """The value first; then every other part, from the parts as they were and the new value."""
        actor_key, balance_key = jax.random.split(key)
        adam, batch = optax.adam(self.learning_rate), state.normaliser.transition(batch)
        state, metrics = self.improve_value(state, batch, key)
        balance, balance_opt, chosen = descend(
            adam, self.balance_loss, state.balance, state.balance_opt, state, batch, balance_key
        )
        log_temperature, temperature_opt, tuned = descend(
            adam, self.temperature_loss, state.log_temperature, state.temperature_opt, chosen["balance_entropy"]
        )
        actor, actor_opt, found = descend(adam, self.actor_loss, state.actor, state.actor_opt, state, batch, actor_key)
        state, more = self.improve_critic(state, batch, key)
        state = dataclasses.replace(
            state,
            actor=actor,
            actor_opt=actor_opt,
            balance=balance,
            balance_opt=balance_opt,
            log_temperature=log_temperature,
            temperature_opt=temperature_opt,
        )
        return state, metrics | chosen | tuned | found | more

    def policy(self, state: FamO2OState) -> Policy:
        return Normalised(Mode(self.balanced(state)), state.normaliser)

    def explorer(self, state: FamO2OState) -> Policy:
        return Normalised(Sampling(self.balanced(state)), state.normaliser)

    def balanced(self, state: FamO2OState) -> Balanced:
        """The distribution over actions for one observation, at the balance chosen for it."""
        return Balanced(state.actor, state.balance, self.low, self.high)
