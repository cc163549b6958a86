"""SDP: a streaming diffusion policy.

A rolling buffer of future actions whose noise grows with their distance: near ones are almost decided,
far ones still open. Each new observation moves the whole buffer one part nearer, so that the next actions
become clean after a fraction of the network calls that a plan from pure noise takes. The network learns
levels that differ by step.

S. H. Hoeg, Y. Du and O. Egeland, "Streaming Diffusion Policy: Fast Policy Synthesis with Variable Noise
Diffusion Models", ICRA 2025.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.experience import Trajectory
from habitus.core.protocols import Policy, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics
from habitus.execution.denoising import Denoising
from habitus.execution.streaming import Streaming, resting_levels
from habitus.generative.denoisers import ResidualMLP
from habitus.methods.generative._chunks import ChunkState
from habitus.methods.generative.diffusion_policy import DiffusionPolicy
from habitus.nets.policies import Normalised

CARD = Card(
    title="Streaming Diffusion Policy: Fast Policy Synthesis with Variable Noise Diffusion Models",
    authors="Hoeg, Sigmund H. and Du, Yilun and Egeland, Olav",
    year=2025,
    venue="IEEE International Conference on Robotics and Automation",
    arxiv="2406.04806",
    kind="learner",
    entry="SDP",
    data=("log",),
    actions=("continuous",),
    paper=True,
)

WAVES = 16  # features of each level


class SDP(DiffusionPolicy):
    """Diffusion policy with a noise level for each step of the chunk, acting from a rolling buffer.

    Bounded real actions. The buffer holds `h = (predicted - (observed - 1)) // executed` whole parts; a part costs
    `levels / h` network calls.
    """

    levels: int = 48  # N; authors' code: 100
    predicted: int = 17  # Tp; authors' code: 20
    observed: int = 2  # To
    executed: int = 4  # Ta; authors' code: 8
    # how often a batch has one level for all steps, rising ones, independent ones, those of acting; authors' code
    regimes: tuple[float, float, float, float] = eqx.field(default=(0.2, 0.0, 0.0, 0.8), static=True)
    first: str = eqx.field(default="zero", static=True)  # buffer of a new episode: "zero" or "denoise"

    def __check_init__(self) -> None:
        require(
            min(self.regimes) >= 0 and abs(sum(self.regimes) - 1) < 1e-6,
            f"regimes are four probabilities that sum to 1, but are {self.regimes}.",
        )
        require(self.first in ("zero", "denoise"), f"first must be 'zero' or 'denoise', but is {self.first!r}.")
        _ = self.chunking  # first: without a part there is nothing to divide by
        require(
            self.levels % self.parts == 0,
            f"{self.levels} noise levels do not divide into the {self.parts} parts of {self.executed} steps that "
            f"predicted={self.predicted} holds; use a multiple of {self.parts}.",
        )

    @property
    def parts(self) -> int:
        """`h`."""
        return (self.predicted - (self.observed - 1)) // self.executed

    def network(self, spec: Spec, key: PRNGKeyArray) -> ResidualMLP:
        shape, seen = (self.predicted, spec.action_size), self.observed * spec.obs_size
        return ResidualMLP(shape, self.width, self.blocks, key, seen, levels=self.predicted, waves=WAVES)

    def training_levels(self, key: PRNGKeyArray, batch: int) -> Int[Array, "batch predicted"]:
        """The level of each step; the regime is drawn for the batch as a whole.

        Those met while acting are the levels before a call, less a number of calls from 0 to `N/h - 1`, drawn for
        each example.
        """
        regime_key, one_key, all_key, call_key = jax.random.split(key, 4)
        n, shape = self.levels, (batch, self.predicted)
        resting = jnp.asarray(resting_levels(self.predicted, self.observed, self.executed, n))
        kinds = (
            jnp.broadcast_to(jax.random.randint(one_key, (batch, 1), 0, n), shape),
            jnp.broadcast_to(jnp.linspace(0, n - 1, self.predicted).astype(jnp.int32), shape),
            jax.random.randint(all_key, shape, 0, n),
            resting - jax.random.randint(call_key, (batch, 1), 0, n // self.parts),
        )
        return jnp.stack(kinds)[jax.random.choice(regime_key, 4, p=jnp.asarray(self.regimes))]

    def denoiser_loss(
        self, denoiser: Any, state: ChunkState, batch: Trajectory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The mean of `loss_at` over a batch of windows and their levels."""
        cut = self.chunking
        chunks, seen = cut.actions(batch), cut.seen(batch)
        level_key, noise_key = jax.random.split(key)
        levels, keys = self.training_levels(level_key, len(chunks)), jax.random.split(noise_key, len(chunks))
        loss = jax.vmap(lambda a, o, k, z: self.loss_at(denoiser, a, o, k, z))(chunks, seen, levels, keys).mean()
        return loss, {"denoiser_loss": loss}

    def planner(self, state: ChunkState) -> Denoising:
        return dataclasses.replace(super().planner(state), network=state.average)

    def policy(self, state: ChunkState) -> Policy:
        cut = self.chunking
        streaming = Streaming(self.planner(state), cut.executed, cut.observed, self.first)
        return Normalised(streaming, state.normaliser)
