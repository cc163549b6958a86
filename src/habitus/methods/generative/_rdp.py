"""RDP's asymmetric tokenizer, and the fast policy that decodes with it."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from habitus.core.protocols import Policy
from habitus.execution.planner import when_due
from habitus.execution.two_rate import Advised
from habitus.generative.denoisers import Conv
from habitus.generative.frames import Frame
from habitus.nets.distributions import Normal
from habitus.nets.mlp import Linear
from habitus.nets.normalise import Standardiser

SHRINK = 4  # rows of a chunk for each of its latent
LOG_STD = (-15.0, 10.0)  # of the posterior; authors' code: log variances of -30 to 20


class Tokenizer(eqx.Module):
    """Chunks of actions to latents and back, where only the way back hears the fast signal.

    The encoder sees actions alone, so that a latent holds what was meant and the decoder has to learn how the signal
    changes it. The decoder is causal: row i depends on the latent and on the signal of rows 0 to i.
    """

    first: Conv
    second: Conv
    moments: Linear
    widen: Linear
    cell: eqx.nn.GRUCell
    out: Linear

    def __init__(self, rows: int, actions: int, signal: int, channels: int, latent: int, units: int, key: PRNGKeyArray):
        """Args:
        rows: of a chunk, a multiple of 4.
        actions, signal: numbers in an action and in the signal of one step.
        channels: of the two convolutions' answer, for each latent row.
        latent: numbers in each latent row.
        units: of the hidden layers.
        """
        a, b, c, d, e, f = jax.random.split(key, 6)
        self.first, self.second = Conv(actions, units, 5, a, stride=2), Conv(units, channels, 5, b, stride=2)
        self.moments, self.widen = Linear.random(channels, 2 * latent, c), Linear.random(latent, channels, d)
        self.cell = eqx.nn.GRUCell(rows // SHRINK * channels + signal, units, key=e)
        self.out = Linear.random(units, actions, f)

    def encode(self, chunk: Float[Array, "rows actions"]) -> Normal:
        """The posterior over latents [rows / 4, latent]."""
        mean, log_var = jnp.split(self.moments(self.second(jax.nn.relu(self.first(chunk)))), 2, axis=-1)
        return Normal(mean, jnp.clip(0.5 * log_var, *LOG_STD))

    def plan(self, latent: Float[Array, "short latent"]) -> Float[Array, "features"]:
        """A latent as every step of the decoder sees it: row after row."""
        return self.widen(latent).ravel()

    def start(self) -> Float[Array, "units"]:
        """The decoder's memory before the first row."""
        return jnp.zeros(self.cell.hidden_size)

    def heard(
        self, hidden: Float[Array, "units"], plan: Float[Array, "features"], signal: Float[Array, "signal"]
    ) -> Float[Array, "units"]:
        """The decoder's memory after one more row."""
        return self.cell(jnp.concatenate([plan, signal]), hidden)

    def decode(
        self, latent: Float[Array, "short latent"], signal: Float[Array, "rows signal"]
    ) -> Float[Array, "rows actions"]:
        """The actions of a latent, given the signal of each step."""
        plan = self.plan(latent)

        def row(hidden: Array, now: Array) -> tuple[Array, Array]:
            hidden = self.heard(hidden, plan, now)
            return hidden, hidden

        return self.out(jax.lax.scan(row, self.start(), signal)[1])


class Decoding(eqx.Module):
    """What `Reactive` remembers: the decoder's memory and the last signals, the newest last."""

    hidden: Float[Array, "units"]
    signals: Float[Array, "steps signal"]
    started: Bool[Array, ""]


class Reactive(Policy):
    """Decodes a latent plan row by row, with the newest signal; its observations are `Advised`.

    A new plan is as old as the slow part was slow, so the decoder first hears what the signal was since the row that
    the chunk begins with; what lies before the episode is its first signal. From then on it takes one step an action.

    Attributes:
        tokenizer: what decodes.
        latents: standardised latents are what is planned.
        frame: what the actions are relative to.
        signal: entries of an observation that it hears.
        before: rows of a chunk before the one in which it was asked for.
        latency: greatest age of a new plan in steps.
    """

    tokenizer: Tokenizer
    latents: Standardiser
    frame: Frame
    signal: tuple[int, ...] = eqx.field(static=True)
    before: int = eqx.field(static=True)
    latency: int = eqx.field(static=True)

    def init(self) -> Decoding:
        signals = jnp.zeros((self.before + self.latency + 1, len(self.signal)))
        return Decoding(self.tokenizer.start(), signals, jnp.zeros((), bool))

    def __call__(self, obs: Advised, carry: Decoding, key: PRNGKeyArray) -> tuple[Float[Array, "actions"], Decoding]:
        now = obs.obs[jnp.asarray(self.signal, jnp.int32)]
        pushed = jnp.concatenate([carry.signals[1:], now[None]])
        signals = jnp.where(carry.started, pushed, jnp.broadcast_to(now, pushed.shape))
        plan = self.tokenizer.plan(self.latents.undo(obs.chunk))
        steps = len(signals) - 1

        def missed(hidden: Array, at: Any) -> tuple[Array, None]:
            i, then = at
            return jnp.where(
                i >= steps - (self.before + obs.age), self.tokenizer.heard(hidden, plan, then), hidden
            ), None

        def replayed() -> Array:
            return jax.lax.scan(missed, self.tokenizer.start(), (jnp.arange(steps), signals[:-1]))[0]

        hidden = self.tokenizer.heard(when_due(obs.new, replayed, carry.hidden), plan, now)
        action = self.frame.absolute(self.tokenizer.out(hidden), obs.base)
        return jnp.clip(action, -1.0, 1.0), Decoding(hidden, signals, jnp.ones((), bool))
