"""RDP: reactive diffusion policy.

A slow diffusion model plans a chunk of actions as a latent, from what is seen; a small recurrent decoder turns the
latent and the newest force into the action of each step, so that a chunk is corrected while it is executed. The
latent comes from an auto-encoder whose encoder sees actions alone: how force changes them is left to the decoder.

H. Xue, J. Ren, W. Chen, G. Zhang, Y. Fang, G. Gu, H. Xu and C. Lu, "Reactive Diffusion Policy: Slow-Fast
Visual-Tactile Policy Learning for Contact-Rich Manipulation", RSS 2025.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.errors import ConfigError
from habitus.core.experience import Trajectory
from habitus.core.protocols import Policy, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, descend, extend, polyak, trainable, when
from habitus.execution.denoising import Denoising
from habitus.execution.holding import Holding
from habitus.execution.two_rate import TwoRate
from habitus.generative.denoisers import ResidualMLP
from habitus.generative.ema import follow
from habitus.generative.frames import Frame, check_entries
from habitus.methods.generative._chunks import ChunkState, OneLevel, Window, warmed_cosine
from habitus.methods.generative._rdp import SHRINK, Reactive, Tokenizer
from habitus.methods.generative.diffusion_policy import DiffusionPolicy
from habitus.nets.normalise import Standardiser
from habitus.nets.policies import Normalised
from habitus.nets.vae import standard_kl

CARD = Card(
    title="Reactive Diffusion Policy: Slow-Fast Visual-Tactile Policy Learning for Contact-Rich Manipulation",
    authors="Xue, Han and Ren, Jieji and Chen, Wendi and Zhang, Gu and Fang, Yuan and Gu, Guoying and Xu, Huazhe "
    "and Lu, Cewu",
    year=2025,
    venue="Robotics: Science and Systems",
    arxiv="2503.02881",
    kind="learner",
    entry="RDP",
    data=("log",),
    actions=("continuous",),
    paper=True,
)

BOUND = 4.0  # of planned latents, in standard deviations
MEMORY = 0.99  # of the running moments of latents


class RDPState(ChunkState):
    """Besides the denoiser, of latents: the tokenizer, its optimiser, moments of its latents, and when it is done.

    Attributes:
        moments: running means of latents and of their squares, and how many batches they are of.
        first: updates of the tokenizer before the denoiser's begin.
        frame: what actions are relative to.
    """

    tokenizer: Tokenizer
    tokenizer_opt: optax.OptState
    moments: tuple[Float[Array, "latent"], Float[Array, "latent"]]
    first: Int[Array, ""]
    frame: Frame

    @property
    def latents(self) -> Standardiser:
        """Of each number in a latent row."""
        mean, square = map(jnp.asarray, self.moments)  # on the host once a run is over
        return Standardiser(mean, jnp.sqrt(jnp.maximum(square - mean**2, 1e-6)))


class RDP(DiffusionPolicy):
    """First the tokenizer, then diffusion over its latents, by shares of the planned updates. Bounded real actions."""

    predicted: int = 16  # T, rows of a chunk, a multiple of 4; authors' code: 32
    observed: int = 2  # observations that a plan is made from
    executed: int = 8  # steps between two plans; authors' code: 16
    latency: int = 2  # steps that a plan takes; authors' code: 4
    signal: tuple[int, ...] = eqx.field(default=(-1,), static=True)  # entries of an observation that are heard fast
    frame: tuple[int, ...] = eqx.field(default=(), static=True)  # entries that the first actions are targets for
    channels: int = 4  # of each latent row, as the decoder sees it; authors' code: 4 or 8
    latent_size: int = 8  # numbers in each latent row; authors' code: 16
    units: int = 32  # of the tokenizer's layers; authors' code
    kl_weight: float = 1e-6  # authors' code
    tokenizer_share: float = 1 / 3  # of the updates
    tokenizer_learning_rate: float = 1e-3  # authors' code
    tokenizer_decay: float = 1e-4  # weight decay of the tokenizer; authors' code
    tokenizer_warmup: int = 100  # updates; authors' code
    sampling_steps: int | None = eqx.field(default=10, static=True)
    eta: float = eqx.field(default=0.0, static=True)

    trains: ClassVar = {"tokenizer": ("tokenizer_loss",), "denoiser": ("denoiser_loss",)}

    def __check_init__(self) -> None:
        for name in ("channels", "latent_size", "units", "tokenizer_warmup"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more, but is {getattr(self, name)}.")
        for name in ("kl_weight", "tokenizer_decay"):
            require(getattr(self, name) >= 0, f"{name} must be 0 or more, but is {getattr(self, name)}.")
        share = self.tokenizer_share
        require((0 < share) & (share < 1), f"tokenizer_share must be in (0, 1), but is {share}.")
        require(
            self.predicted % SHRINK == 0, f"predicted must be a multiple of {SHRINK} rows, but is {self.predicted}."
        )
        require(
            0 <= self.latency <= self.executed,
            f"latency must be from 0 to the {self.executed} steps that are executed, but is {self.latency}.",
        )
        needed = self.chunking.before + self.executed + self.latency
        require(
            self.predicted >= needed,
            f"predicted is {self.predicted}, but a plan is in use up to its row {needed}: predict so many or more.",
        )

    def init(self, spec: Spec, key: PRNGKeyArray) -> RDPState:
        if spec.updates is None:
            raise ConfigError("RDP's stages need a planned number of updates: use learn(..., steps=...).")
        check_entries("signal", self.signal, spec)
        token_key, key = jax.random.split(key)
        rest = super().init(spec, key)
        sizes = self.predicted, spec.action_size, len(self.signal), self.channels, self.latent_size, self.units
        tokenizer = Tokenizer(*sizes, token_key)
        return extend(
            RDPState,
            rest,
            tokenizer=tokenizer,
            tokenizer_opt=self.tokenizer_optimizer(0.0).init(trainable(tokenizer)),
            moments=(jnp.zeros(self.latent_size), jnp.ones(self.latent_size)),
            first=jnp.round(self.tokenizer_share * rest.total).astype(jnp.int32),
            frame=Frame.of(spec, rest.normaliser, self.frame),
        )

    def tokenizer_optimizer(self, rate: Any) -> optax.GradientTransformation:
        """AdamW at a learning rate."""
        return optax.adamw(rate, weight_decay=self.tokenizer_decay)

    def network(self, spec: Spec, key: PRNGKeyArray) -> ResidualMLP:
        shape = self.predicted // SHRINK, self.latent_size
        return ResidualMLP(shape, self.width, self.blocks, key, self.observed * spec.obs_size)

    def chunks(self, state: RDPState, batch: Trajectory) -> Float[Array, "batch predicted actions"]:
        """The actions of windows, relative to the pose of the step from which they are predicted."""
        return jax.vmap(state.frame.relative)(self.chunking.actions(batch), batch.steps.obs[:, self.before])

    # --- stage 1: chunks as latents

    def tokenizer_loss(
        self, tokenizer: Tokenizer, state: RDPState, batch: Trajectory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """`mean |A - decode(z, w)| + weight KL(q(z|A) || N(0, I))`, `z ~ q(z|A)`; the KL is summed over a latent."""
        chunks = self.chunks(state, batch)
        signals = batch.steps.obs[:, : self.predicted, jnp.asarray(self.signal, jnp.int32)]

        def one(chunk: Array, signal: Array, key: PRNGKeyArray) -> tuple[Array, Array, Array]:
            posterior = tokenizer.encode(chunk)
            latent = posterior.sample(key)
            kl = standard_kl(posterior) * posterior.mean.size
            return jnp.abs(chunk - tokenizer.decode(latent, signal)).mean(), kl, latent

        error, kl, latent = jax.vmap(one)(chunks, signals, jax.random.split(key, len(chunks)))
        loss = error.mean() + self.kl_weight * kl.mean()
        found = {"tokenizer_loss": loss, "error": error.mean(), "kl": kl.mean()}
        rows = jax.lax.stop_gradient(latent).reshape(-1, self.latent_size)
        return loss, found | {"latent": rows.mean(0), "square": (rows**2).mean(0)}

    def _tokenize(self, state: RDPState, batch: Trajectory, key: PRNGKeyArray) -> tuple[RDPState, Metrics]:
        share = warmed_cosine(state.done, state.first, self.tokenizer_warmup)
        adam = self.tokenizer_optimizer(self.tokenizer_learning_rate * share)
        tokenizer, opt, found = descend(
            adam, self.tokenizer_loss, state.tokenizer, state.tokenizer_opt, state, batch, key
        )
        fresh = found.pop("latent"), found.pop("square")
        moments = polyak(state.moments, fresh, jnp.maximum(1 - MEMORY, 1 / (state.done + 1)))
        return dataclasses.replace(state, tokenizer=tokenizer, tokenizer_opt=opt, moments=moments), found

    # --- stage 2: diffusion over latents

    def denoiser_loss(
        self, denoiser: Any, state: Any, batch: Trajectory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The mean of `example_loss` over latents, drawn anew from the posterior of each chunk."""
        chunks, seen = self.chunks(state, batch), self.chunking.seen(batch)

        def one(chunk: Array, seen: Window, key: PRNGKeyArray) -> Array:
            draw_key, loss_key = jax.random.split(key)
            latent = jax.lax.stop_gradient(state.latents(state.tokenizer.encode(chunk).sample(draw_key)))
            return self.example_loss(denoiser, latent, state.frame.window(seen), loss_key)

        loss = jax.vmap(one)(chunks, seen, jax.random.split(key, len(chunks))).mean()
        return loss, {"denoiser_loss": loss}

    def _denoise(self, state: RDPState, batch: Trajectory, key: PRNGKeyArray) -> tuple[RDPState, Metrics]:
        done = state.done - state.first
        share = warmed_cosine(done, state.total - state.first, self.warmup_updates)
        adam = self.optimizer(self.learning_rate * share)
        denoiser, opt, found = descend(adam, self.denoiser_loss, state.denoiser, state.denoiser_opt, state, batch, key)
        average = follow(state.average, denoiser, done)
        return dataclasses.replace(state, denoiser=denoiser, average=average, denoiser_opt=opt), found

    def update(self, state: Any, batch: Trajectory, key: PRNGKeyArray) -> tuple[Any, Metrics]:
        """One update of whichever stage it is in; the metrics of the other are 0."""
        batch, early = self.shown(state, batch), state.done < state.first
        state, found = when(early, self._tokenize, state, batch, key)
        state, more = when(~early, self._denoise, state, batch, key)
        return dataclasses.replace(state, done=state.done + 1), found | more

    # --- acting

    def planner(self, state: Any) -> Denoising:
        return dataclasses.replace(
            super().planner(state),
            network=Framed(OneLevel(state.average), state.frame),
            length=self.predicted // SHRINK,
            action_size=self.latent_size,
            clip=BOUND,
        )

    def policy(self, state: Any) -> Policy:
        cut = self.chunking
        fast = Reactive(state.tokenizer, state.latents, state.frame, self.signal, cut.before, self.latency)
        acting = TwoRate(self.planner(state), fast, cut.executed, self.latency, cut.observed)
        return Holding(Normalised(acting, state.normaliser), state.obs_shape[0], (state.action_size,))


class Framed(eqx.Module):
    """A denoiser whose window is told relative to its newest pose."""

    network: OneLevel
    frame: Frame

    def __call__(self, chunk: Array, level: Int[Array, "rows"], window: Window) -> Array:
        return self.network(chunk, level, self.frame.window(window))
