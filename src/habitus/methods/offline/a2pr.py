"""A2PR: adaptive advantage-guided policy regularisation.

TD3+BC whose pull is no longer towards whatever was logged. An auto-encoder trained only on actions of
positive advantage proposes an action near the actor's own; the actor is pulled towards the better of
that and the logged one, and not at all where neither beats the state's value. On a log of mixed
quality the constraint thus holds the actor to the good part, and lets go where there is none.

T. Liu, Y. Li, Y. Lan, H. Gao, W. Pan and X. Xu, "Adaptive Advantage-Guided Policy Regularization for
Offline Reinforcement Learning", ICML 2024.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.experience import Transition
from habitus.core.protocols import require
from habitus.core.returns import td_target
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, copy, descend, every, extend, trainable
from habitus.methods.offline.td3bc import TD3BC, TD3BCState
from habitus.nets.heads import Value, twin_critic
from habitus.nets.vae import ActionVAE, standard_kl

CARD = Card(
    title="Adaptive Advantage-Guided Policy Regularization for Offline Reinforcement Learning",
    authors="Liu, Tenglong and Li, Yang and Lan, Yixing and Gao, Hao and Pan, Wei and Xu, Xin",
    year=2024,
    venue="International Conference on Machine Learning",
    arxiv="2405.19909",
    kind="learner",
    entry="A2PR",
    data=("log",),
    actions=("continuous",),
    paper=True,
)


class A2PRState(TD3BCState):
    """The state of TD3+BC, a state value, and the auto-encoder of good actions."""

    value: Value
    vae: ActionVAE
    value_opt: optax.OptState
    vae_opt: optax.OptState


class A2PR(TD3BC):
    """TD3 with a pull towards the better of the logged action and a generated one. Real, bounded actions."""

    reg_weight: float = 0.5  # of the pull; authors' code ("mask"): 0.4 to 1
    vae_weight: float = 1.0  # of the reconstruction; authors' code: 1 to 1.5
    kl_weight: float = 0.5  # of the auto-encoder's prior; authors' code
    vae_learning_rate: float = 1e-3  # authors' code
    detach_target: bool = eqx.field(default=False, static=True)  # no gradient through the generated action; ours
    hidden: tuple[int, ...] = (256, 256, 256)  # of the actor; authors' code
    critic_hidden: tuple[int, ...] = (256, 256, 256, 256)  # of the critics and the value; authors' code
    vae_hidden: tuple[int, ...] = (128, 128)  # authors' code: 750, three times the cost of the critic

    trains: ClassVar = TD3BC.trains | {"value": ("value_loss",), "vae": ("vae_loss",)}

    def __check_init__(self) -> None:
        for name in ("reg_weight", "vae_weight", "kl_weight"):
            value = getattr(self, name)
            require(value >= 0, f"{name} must be 0 or more, but is {value}.")

    def init(self, spec: Spec, key: PRNGKeyArray) -> A2PRState:
        base_key, critic_key, value_key, vae_key = jax.random.split(key, 4)
        state = super().init(spec, base_key)
        adam = optax.adam(self.learning_rate)
        critic = twin_critic(spec, self.critic_hidden, critic_key)
        value = Value(spec, self.critic_hidden, value_key)
        vae = ActionVAE(spec, self.vae_hidden, 2 * spec.action_size, vae_key)
        state = dataclasses.replace(
            state, critic=critic, target_critic=copy(critic), critic_opt=adam.init(trainable(critic))
        )
        return extend(
            A2PRState,
            state,
            value=value,
            vae=vae,
            value_opt=adam.init(trainable(value)),
            vae_opt=optax.adam(self.vae_learning_rate).init(trainable(vae)),
        )

    def value_loss(
        self, value: Value, state: A2PRState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`mean (V(s) - min(y, y_2))^2`: TD targets of the target critics and of the critics themselves."""
        next_action = self.next_action(state, batch, key)
        values = jnp.stack(
            [jax.vmap(q)(batch.next_obs, next_action).min(-1) for q in (state.target_critic, state.critic)]
        )
        target = jax.lax.stop_gradient(td_target(batch.reward, batch.terminated, values.min(0), self.discount))
        loss = ((jax.vmap(value)(batch.obs) - target) ** 2).mean()
        return loss, {"value_loss": loss}

    def advantage(
        self, state: A2PRState, batch: Transition, action: Float[Array, "batch actions"]
    ) -> Float[Array, "batch"]:
        """`Q_1(s, a) - V(s)` (eq. 6); carries no gradient."""
        q = jax.vmap(state.critic.members[0])(batch.obs, action)
        return jax.lax.stop_gradient(q - jax.vmap(state.value)(batch.obs))

    def vae_loss(
        self, vae: ActionVAE, state: A2PRState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`mean 1[A(s, a) > 0] (u - a)^2 + KL(q(z|s, a) || N(0, I)) / 2` (eq. 7); the KL is not masked."""
        good = self.advantage(state, batch, batch.action) > 0
        posterior = jax.vmap(vae.encode)(batch.obs, batch.action)
        latent = jax.vmap(lambda p, k: p.sample(k))(posterior, jax.random.split(key, batch.size))
        rebuilt = jax.vmap(vae.decode)(batch.obs, latent)
        error = (good[:, None] * (rebuilt - batch.action) ** 2).mean()
        loss = self.vae_weight * error + self.kl_weight * jax.vmap(standard_kl)(posterior).mean()
        return loss, {"vae_loss": loss, "good": good.mean()}

    def regulariser(
        self, state: TD3BCState, batch: Transition, action: Float[Array, "batch actions"], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`w mean 1[max(A(s, u), A(s, b)) > 0] (pi(s) - a)^2`, `a` the better of `u ~ VAE(s, pi(s))` and `b` (eq. 9).

        As in the authors' code, the actor's gradient also flows through the auto-encoder to `u`, and
        a tie goes to `u`.
        """
        assert isinstance(state, A2PRState)
        proposed = self.propose(state, batch, action, key)
        ours, logged = (self.advantage(state, batch, a) for a in (proposed, batch.action))
        generated, gate = ours >= logged, self.gate(ours, logged)
        anchor = jnp.where(generated[:, None], proposed, batch.action)
        pull = self.reg_weight * (gate[:, None] * (action - anchor) ** 2).mean()
        return pull, {"gate": gate.mean(), "generated": generated.mean()}

    def propose(
        self, state: A2PRState, batch: Transition, action: Float[Array, "batch actions"], key: PRNGKeyArray
    ) -> Float[Array, "batch actions"]:
        """`u`: the actor's action as the auto-encoder rebuilds it."""
        proposed = jax.vmap(state.vae)(batch.obs, action, jax.random.split(key, batch.size))
        return jax.lax.stop_gradient(proposed) if self.detach_target else proposed

    def gate(self, ours: Float[Array, "batch"], logged: Float[Array, "batch"]) -> Bool[Array, "batch"]:
        """Where the actor is held: where either action beats the value of the state."""
        return (ours >= 0) | (logged > 0)

    def update(self, state: TD3BCState, batch: Transition, key: PRNGKeyArray) -> tuple[TD3BCState, Metrics]:
        """Critics, then value, auto-encoder and actor; the last two see the value from before its step."""
        assert isinstance(state, A2PRState)
        critic_key, vae_key, actor_key = jax.random.split(key, 3)
        adam, batch = optax.adam(self.learning_rate), state.normaliser.transition(batch)
        critic, critic_opt, metrics = descend(
            adam, self.critic_loss, state.critic, state.critic_opt, state, batch, critic_key
        )
        state = dataclasses.replace(state, critic=critic, critic_opt=critic_opt, step=state.step + 1)
        # the same key as the critics': the value's targets use the same noisy next actions
        value, value_opt, found = descend(adam, self.value_loss, state.value, state.value_opt, state, batch, critic_key)
        vae_adam = optax.adam(self.vae_learning_rate)
        vae, vae_opt, more = descend(vae_adam, self.vae_loss, state.vae, state.vae_opt, state, batch, vae_key)
        base: TD3BCState = dataclasses.replace(state, vae=vae, vae_opt=vae_opt)
        after, last = every(self.actor_delay, state.step, self._improve_actor, base, batch, actor_key)
        return dataclasses.replace(after, value=value, value_opt=value_opt), metrics | found | more | last  # type: ignore[call-arg]
