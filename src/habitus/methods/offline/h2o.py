"""H2O: when to trust your simulator.

Soft actor-critic on a log of the real system and on fresh roll-outs of a simulator that is wrong. Two
discriminators, of `(s, a)` and of `(s, a, s')`, tell both apart; what the second knows beyond the first
is how much likelier a simulated step is in the simulator than in reality. Simulated Bellman errors
are weighted down by that ratio, and simulated pairs with a large dynamics gap have their values pushed
down, so that the simulator adds what it knows and its errors are not exploited.

H. Niu, S. Sharma, Y. Qiu, M. Li, G. Zhou, J. Hu and X. Zhan, "When to Trust Your Simulator:
Dynamics-Aware Hybrid Offline-and-Online Reinforcement Learning", NeurIPS 2022.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.errors import ConfigError
from habitus.core.experience import Sides, Transition
from habitus.core.protocols import require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, descend, extend, take, trainable
from habitus.methods.online.sac import SAC, SACState
from habitus.nets.heads import Ensemble
from habitus.nets.mlp import MLP
from habitus.nets.normalise import Standardiser

CARD = Card(
    title="When to Trust Your Simulator: Dynamics-Aware Hybrid Offline-and-Online Reinforcement Learning",
    authors="Niu, Haoyi and Sharma, Shubham and Qiu, Yiwen and Li, Ming and Zhou, Guyue and Hu, Jianming "
    "and Zhan, Xianyuan",
    year=2022,
    venue="Advances in Neural Information Processing Systems",
    arxiv="2206.13464",
    kind="learner",
    entry="H2O",
    data=("env", "log"),
    actions=("continuous",),
    paper=True,
)

LOGIT_BOUND = 2.0  # authors' code: logits are 2 tanh(.), so a log ratio is within 4 of 0


class Discriminators(eqx.Module):
    """Real (0) or simulated (1)? From `(s, a)`, and from `(s, a, s')` on top of that."""

    pair: MLP
    triple: MLP

    def __init__(self, spec: Spec, hidden: tuple[int, ...], key: PRNGKeyArray):
        pair_key, triple_key = jax.random.split(key)
        size = spec.obs_size + spec.action_size
        self.pair = MLP(size, hidden, 2, pair_key)
        self.triple = MLP(size + spec.obs_size, hidden, 2, triple_key)

    def __call__(self, obs: Array, action: Array, after: Array) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
        """Logits of the pair, and the logits that the successor adds."""
        pair = jnp.concatenate([obs, action])
        return tuple(  # type: ignore[return-value]
            LOGIT_BOUND * jnp.tanh(net(x))
            for net, x in ((self.pair, pair), (self.triple, jnp.concatenate([pair, after])))
        )


class H2OState(SACState):
    """The state of SAC, and the discriminators with the scale of what they see."""

    discriminators: Discriminators
    discriminators_opt: optax.OptState
    scale: Standardiser


class H2O(SAC):
    """SAC on a real log and a wrong simulator: `learn("h2o", env=simulator, data=real)`. Real, bounded actions.

    Half of each batch is real. All of it trains the discriminators; half of each side trains the rest.
    """

    penalty: float = 0.01  # weight of the push on simulated values; authors' code
    gap_samples: int = 10  # successors around the simulated one; authors' code
    gap_noise: float = 0.3  # their spread, of the log's; the authors' 1.0, of a buffer mostly zeros, amounts to 0.3
    input_noise: float = 0.1  # on the discriminators' inputs while they learn; authors' code
    min_weight: float = 1e-5  # of a simulated Bellman error; authors' code
    soft_backup: bool = False  # authors' code
    batch_size: int = 512  # authors' code: 256 for the discriminators and 128 for the rest, of each side

    sides: ClassVar = True
    trains: ClassVar = SAC.trains | {"discriminators": ("discriminator_loss",)}

    def __check_init__(self) -> None:
        for name in ("penalty", "gap_noise", "input_noise", "min_weight"):
            require(getattr(self, name) >= 0, f"{name} must be 0 or more, but is {getattr(self, name)}.")
        require(self.gap_samples >= 1, f"gap_samples must be 1 or more, but is {self.gap_samples}.")
        require(self.batch_size >= 4, f"batch_size is of two sides and halved, so 4 or more, but is {self.batch_size}.")

    def init(self, spec: Spec, key: PRNGKeyArray) -> H2OState:
        if spec.dataset is None:
            raise ConfigError("H2O compares a simulator with a log of the real system, so it needs one: give data=...")
        base_key, own_key = jax.random.split(key)
        discriminators = Discriminators(spec, self.hidden, own_key)
        return extend(
            H2OState,
            super().init(spec, base_key),
            discriminators=discriminators,
            discriminators_opt=optax.adam(self.learning_rate).init(trainable(discriminators)),
            scale=Standardiser.of(spec),
        )

    # --- how far the simulator is off

    def discriminator_loss(
        self, nets: Discriminators, state: H2OState, batch: Sides, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """Cross-entropies of `p(. | s, a)` and of `p(. | s, a, s')`, their logits the sum of both nets' (eq. 10)."""

        def entropies(rows: Transition, label: int, key: PRNGKeyArray) -> Float[Array, ""]:
            inputs = (state.scale(rows.obs), rows.action, state.scale(rows.next_obs))
            keys = jax.random.split(key, 3)
            noisy = [x + self.input_noise * jax.random.normal(k, x.shape) for x, k in zip(inputs, keys, strict=True)]
            pair, added = jax.vmap(nets)(*noisy)
            log_probs = jax.nn.log_softmax(pair) + jax.nn.log_softmax(pair + added)
            return -log_probs[:, label].mean()

        real_key, own_key = jax.random.split(key)
        assert isinstance(batch.logged, Transition)
        loss = entropies(batch.logged, 0, real_key) + entropies(batch.own, 1, own_key)
        return loss, {"discriminator_loss": loss}

    def log_ratio(self, state: H2OState, obs: Array, action: Array, after: Array) -> Float[Array, "batch"]:
        """`log P_sim(s'|s, a) / P_real(s'|s, a)`: by Bayes' rule what the successor adds to the logits (eq. 9)."""
        _, added = jax.vmap(state.discriminators)(state.scale(obs), action, state.scale(after))
        return jax.lax.stop_gradient(added[:, 1] - added[:, 0])

    def gap(self, state: H2OState, own: Transition, key: PRNGKeyArray) -> Float[Array, "batch"]:
        """The share of each simulated pair in the dynamics gap of the batch: `u / sum u`, `u` about `KL(sim || real)`.

        The mean log ratio over successors near the simulated one, cut off below at 1e-6 (eq. 11). The
        authors' floor of 1e-45 is 0 in single precision, and its logarithm minus infinity.
        """
        noise = self.gap_noise * state.scale.std * jax.random.normal(key, (self.gap_samples, *own.next_obs.shape))
        ratios = jax.vmap(lambda n: self.log_ratio(state, own.obs, own.action, own.next_obs + n))(noise)
        u = jnp.clip(ratios.mean(0), 1e-6, 10.0)
        return u / u.sum()

    # --- what follows for the values

    def critic_loss(
        self, critic: Ensemble, state: SACState, batch: Any, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`mean_real e^2 + mean_sim w e^2 + lambda sum_k (log sum_sim omega exp Q_k - mean_real Q_k)` (eq. 6, 8)."""
        assert isinstance(state, H2OState)
        gap_key, real_key, own_key = jax.random.split(key, 3)
        own, real = batch.own, batch.logged
        weight = jnp.clip(jnp.exp(-self.log_ratio(state, own.obs, own.action, own.next_obs)), self.min_weight, 1.0)
        real_error, real_q = self.bellman_error(critic, state, real, real_key)
        own_error, own_q = self.bellman_error(critic, state, own, own_key)
        bellman = (real_error**2).mean(0).sum() + (weight[:, None] * own_error**2).mean(0).sum()
        omega = self.gap(state, own, gap_key)
        push = logsumexp(own_q + jnp.log(omega)[:, None], axis=0) - real_q.mean(0)
        loss = bellman + self.penalty * jnp.clip(push, -1000.0, 1000.0).sum()
        return loss, {"critic_loss": loss, "q": real_q.mean(), "weight": weight.mean(), "push": push.mean()}

    def update(self, state: SACState, batch: Any, key: PRNGKeyArray) -> tuple[SACState, Metrics]:
        assert isinstance(state, H2OState)
        own_key, critic_key, actor_key = jax.random.split(key, 3)
        nets, opt, metrics = descend(
            optax.adam(self.learning_rate), self.discriminator_loss, state.discriminators, state.discriminators_opt,
            state, batch, own_key,
        )  # fmt: skip
        state = dataclasses.replace(state, discriminators=nets, discriminators_opt=opt)
        half = Sides(*(take(rows, slice(0, rows.size // 2)) for rows in (batch.own, batch.logged)))
        state, found = self.improve_critic(state, half, critic_key)
        state, more = self.improve_actor(state, half.union, actor_key)
        return state, metrics | found | more
