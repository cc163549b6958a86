"""DoC: Dichotomy of Control, separating what you can control from what you cannot.

Policies that are asked for the future of a lucky episode expect luck. Here a policy is conditioned on a
latent code of the future instead, and what rewards and transitions do by chance is taken out of the code:
given the past and the action, it must tell nothing of the next reward and state. What remains is what
actions decide, so the code that promises the highest return keeps its promise.

S. Yang, D. Schuurmans, P. Abbeel and O. Nachum, "Dichotomy of Control: Separating What You Can Control
from What You Cannot", ICLR 2023.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.experience import Trajectory
from habitus.core.protocols import Policy, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, descend, take, trainable
from habitus.methods.offline._doc_tabular import TabularDoC as TabularDoC
from habitus.methods.offline.dt import SequenceLearner
from habitus.nets.distributions import Normal
from habitus.nets.losses import info_nce
from habitus.nets.mlp import MLP
from habitus.nets.normalise import Standardiser
from habitus.nets.policies import Normalised
from habitus.nets.sequence import ACTION, OBS, ActionHead, SequenceEncoder, Steps, masked_mean, return_target

CARD = Card(
    title="Dichotomy of Control: Separating What You Can Control from What You Cannot",
    authors="Yang, Sherry and Schuurmans, Dale and Abbeel, Pieter and Nachum, Ofir",
    year=2023,
    venue="International Conference on Learning Representations",
    arxiv="2210.13435",
    kind="learner",
    entry="DoC",
    data=("log",),
    paper=True,
)


class Decoder(eqx.Module):
    """The past and a latent to the next action, and to the return that the latent promises."""

    sequence: SequenceEncoder
    head: ActionHead
    value: MLP

    def promise(self, known: Float[Array, "width"], z: Float[Array, "latent"]) -> Float[Array, ""]:
        """The expected return to go, scaled."""
        return self.value(jnp.concatenate([known, z]))[0]


class LatentNet(eqx.Module):
    """A sequence to a Gaussian over latents after each of its steps, at one of its tokens."""

    sequence: SequenceEncoder
    out: MLP
    token: int = eqx.field(static=True)

    def __call__(self, steps: Steps, key: PRNGKeyArray | None = None, rate: Any = 0.0) -> Normal:
        mean, log_std = jnp.split(jax.vmap(self.out)(self.sequence(steps, key, rate)[:, self.token]), 2, axis=1)
        return Normal(mean, jnp.clip(log_std, -5.0, 2.0))


class Ratio(eqx.Module):
    """`f(h, r, s', z)`: how much likelier a reward and successor are for a past and a latent than by chance."""

    sequence: SequenceEncoder
    query: MLP
    key: MLP


class DoCState(eqx.Module):
    """The four networks with their optimisers, and the scales of what they see."""

    decoder: Decoder
    prior: LatentNet
    posterior: LatentNet
    ratio: Ratio
    opts: dict[str, optax.OptState]
    normaliser: Standardiser
    reward_scale: Any  # numbers
    return_scale: Any
    blank: Steps


class BestLatent(Policy):
    """Draws latents from the prior, and acts on the one that promises most."""

    decoder: Decoder
    prior: LatentNet
    reward_scale: Any
    blank: Steps
    candidates: int = eqx.field(static=True)

    def init(self) -> tuple[Steps, Any]:
        return self.blank, jnp.zeros(())

    def rewarded(self, carry: Any, reward: Float[Array, ""]) -> Any:
        return carry[0], reward

    def __call__(self, obs: Array, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        draw_key, act_key = jax.random.split(key)
        steps = carry[0].then(carry[1] / self.reward_scale, obs)
        seen = eqx.tree_at(lambda s: s.number, steps, steps.number.at[0].set(0.0))  # as windows begin
        known, prior = self.decoder.sequence(seen)[-1, OBS], take(self.prior(seen), -1)
        z = jax.vmap(prior.sample)(jax.random.split(draw_key, self.candidates))
        best = jnp.argmax(jax.vmap(self.decoder.promise, (None, 0))(known, z))
        action = self.decoder.head.act(jnp.concatenate([known, z[best]]), act_key)
        return action, (steps.acted(action), jnp.zeros(()))


def past(batch: Trajectory, scale: Any) -> Steps:
    """The first halves of windows, [batch, time]; the figure of a step is the reward before it, 0 at first."""
    half = batch.valid.shape[1] // 2
    reward = batch.steps.reward / scale
    earlier = jnp.concatenate([jnp.zeros_like(reward[:, :1]), reward[:, :-1]], 1)
    return jax.tree.map(lambda x: x[:, :half], Steps.of(batch, earlier))


def future(batch: Trajectory, scale: Any) -> Steps:
    """Whole windows backwards, so that a causal network sees what lies ahead; the figure is the reward of the step."""
    return jax.tree.map(lambda x: x[:, ::-1], Steps.of(batch, batch.steps.reward / scale))


class DoC(SequenceLearner):
    """Dichotomy of Control, on windows of a log. Any actions; real ones must be bounded, discrete ones are sampled.

    `context` counts steps back, and ahead for the latent.
    """

    mi_weight: float = 1.0  # of the information on rewards and transitions; authors' code, and so below
    kl_weight: float = 1.0
    latent_size: int = 32
    candidates: int = 100  # latents to choose from when acting
    hidden: tuple[int, ...] = (128,)  # of the heads; ours

    trains: ClassVar = {
        "decoder": ("decoder_loss",),
        "prior": ("prior_loss",),
        "posterior": ("posterior_loss",),
        "ratio": ("ratio_loss",),
    }

    def __check_init__(self) -> None:
        for name in ("latent_size", "candidates"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more, but is {getattr(self, name)}.")
        for name in ("mi_weight", "kl_weight"):
            require(getattr(self, name) >= 0, f"{name} must be 0 or more, but is {getattr(self, name)}.")

    @property
    def window(self) -> int:
        return 2 * self.context

    def init(self, spec: Spec, key: PRNGKeyArray) -> DoCState:
        keys, known = jax.random.split(key, 9), self.width + self.latent_size
        head = ActionHead(spec, known, self.hidden, keys[0])
        return_target(spec.dataset, None, type(self).__name__)  # there must be returns to promise
        sequences = [SequenceEncoder(spec, self.width, self.layers, self.heads, k) for k in keys[1:5]]
        outs = [MLP(self.width, self.hidden, 2 * self.latent_size, k) for k in keys[5:7]]
        query = MLP(known, self.hidden, self.width, keys[7])
        consequence = MLP(1 + sequences[0].encoder.size, self.hidden, self.width, keys[8])
        nets: dict[str, Any] = {
            "decoder": Decoder(sequences[0], head, MLP(known, self.hidden, 1, jax.random.fold_in(key, 1))),
            "prior": LatentNet(sequences[1], outs[0], OBS),
            "posterior": LatentNet(sequences[2], outs[1], ACTION),
            "ratio": Ratio(sequences[3], query, consequence),
        }
        log = spec.dataset
        return DoCState(
            **nets,
            opts={name: self.optimizer.init(trainable(net)) for name, net in nets.items()},
            normaliser=Standardiser.of(spec),
            reward_scale=jnp.float32(max(float(abs(log.reward[:]).max()), 1e-6)),
            return_scale=jnp.float32(max(float(abs(log.to_go).max()), 1e-6)),
            blank=Steps.blank(spec, self.context),
        )

    # --- the parts of the objective

    def beliefs(self, net: LatentNet, steps: Steps, key: PRNGKeyArray) -> Normal:
        """Gaussians over latents after each step of the past of each window: fields [batch, time, latent]."""
        found = jax.vmap(lambda s, k: net(s, k, self.dropout))(steps, jax.random.split(key, len(steps.valid)))
        if net.token == ACTION:  # of the future, which runs backwards
            found = jax.tree.map(lambda x: x[:, ::-1][:, : x.shape[1] // 2], found)
        return found

    def fit(
        self,
        decoder: Decoder,
        state: DoCState,
        batch: Trajectory,
        z: Float[Array, "batch time latent"],
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Metrics]:
        """`-log pi(a_t | past, z)` (of real actions the squared error) and `(V(past, z) - return to go)^2`, means."""

        def one(steps: Steps, z: Array, to_go: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
            known = decoder.sequence(steps, key, self.dropout)[:, OBS]
            acting = jax.vmap(decoder.head.error)(jnp.concatenate([known, z], 1), steps.action)
            return acting, (jax.vmap(decoder.promise)(known, z) - to_go) ** 2

        steps = past(batch, state.reward_scale)
        to_go = batch.to_go[:, : steps.valid.shape[1]] / state.return_scale
        errors = jax.vmap(one)(steps, z, to_go, jax.random.split(key, len(z)))
        acting, value = (masked_mean(x, steps.valid) for x in errors)
        return acting + value, {"action_error": acting, "value_error": value}

    def energy(
        self, ratio: Ratio, state: DoCState, batch: Trajectory, z: Float[Array, "batch time latent"], key: PRNGKeyArray
    ) -> Float[Array, ""]:
        """`E f(h, r, s', z) - E log mean f(h, r~, s~', z)`, against what other windows of the batch met at that step.

        At its greatest over `f` it is `I(r, s'; z | h)` and an offset on which the posterior has no influence.
        """
        steps = past(batch, state.reward_scale)
        half = steps.valid.shape[1]
        keys = jax.random.split(key, len(z))
        known = jax.vmap(lambda s, k: ratio.sequence(s, k, self.dropout)[:, ACTION])(steps, keys)
        after = jax.vmap(jax.vmap(ratio.sequence.encoder))(batch.steps.next_obs[:, :half])
        met = jnp.concatenate([batch.steps.reward[:, :half, None] / state.reward_scale, after], 2)
        query = jax.vmap(jax.vmap(ratio.query))(jnp.concatenate([known, z], 2))
        scores = jnp.einsum("itd,jtd->tij", query, jax.vmap(jax.vmap(ratio.key))(met)) / self.width**0.5
        return masked_mean(jax.vmap(info_nce)(scores, steps.valid.T), steps.valid.any(0))

    def divergence(self, first: Normal, second: Normal, batch: Trajectory) -> Float[Array, ""]:
        """`mean KL(first || second)` over the valid steps of the past."""
        kl = jax.vmap(jax.vmap(lambda p, q: p.kl(q)))(first, second)
        return masked_mean(kl, batch.valid[:, : kl.shape[1]])

    # --- what each network learns from: the posterior descends the energy, the ratio climbs it

    def drawn(self, net: LatentNet, state: DoCState, batch: Trajectory, key: PRNGKeyArray) -> tuple[Normal, Array]:
        """The posterior of each step, and a latent from it."""
        q = self.beliefs(net, future(batch, state.reward_scale), key)
        return q, q.sample(jax.random.fold_in(key, 1))

    def decoder_loss(
        self, decoder: Decoder, state: DoCState, batch: Trajectory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The fit, for latents of the posterior."""
        return self.fit(decoder, state, batch, self.drawn(state.posterior, state, batch, key)[1], key)

    def prior_loss(
        self, prior: LatentNet, state: DoCState, batch: Trajectory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`KL(q || p)`: the prior follows the posterior."""
        q, _ = self.drawn(state.posterior, state, batch, key)
        kl = self.divergence(q, self.beliefs(prior, past(batch, state.reward_scale), key), batch)
        return kl, {"kl": kl}

    def posterior_loss(
        self, posterior: LatentNet, state: DoCState, batch: Trajectory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The fit, `KL(q || p)` with the prior held, and `beta` times the energy."""
        q, z = self.drawn(posterior, state, batch, key)
        fit, _ = self.fit(state.decoder, state, batch, z, key)
        p = self.beliefs(state.prior, past(batch, state.reward_scale), key)
        energy = self.energy(state.ratio, state, batch, z, key)
        loss = fit + self.kl_weight * self.divergence(q, p, batch) + self.mi_weight * energy
        return loss, {"posterior_loss": loss, "energy": energy}

    def ratio_loss(
        self, ratio: Ratio, state: DoCState, batch: Trajectory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The energy with its sign turned."""
        return -self.energy(ratio, state, batch, self.drawn(state.posterior, state, batch, key)[1], key), {}

    def update(self, state: DoCState, batch: Trajectory, key: PRNGKeyArray) -> tuple[DoCState, Metrics]:
        """One step of each network, all from where they were."""
        batch = eqx.tree_at(lambda b: b.steps, batch, state.normaliser.transition(batch.steps))
        nets: list[Any] = []
        opts: dict[str, optax.OptState] = {}
        metrics: Metrics = {}
        for name, (loss,) in self.trains.items():
            net, opts[name], found = descend(
                self.optimizer, getattr(self, loss), getattr(state, name), state.opts[name], state, batch, key
            )
            nets.append(net)
            metrics |= found
        return dataclasses.replace(state, **dict(zip(self.trains, nets, strict=True)), opts=opts), metrics

    def policy(self, state: DoCState) -> Policy:
        policy = BestLatent(state.decoder, state.prior, state.reward_scale, state.blank, self.candidates)
        return Normalised(policy, state.normaliser)
