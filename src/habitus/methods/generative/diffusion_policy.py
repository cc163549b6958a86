"""Diffusion policy: imitation by denoising chunks of actions.

A network learns to tell the noise in a chunk of future actions from the chunk, given what was seen. To
act, a chunk of pure noise is denoised step by step; a part of it is executed, and a new one drawn. Where
the log has several ways to go on, a draw follows one of them, while a regression would average them.

C. Chi, S. Feng, Y. Du, Z. Xu, E. Cousineau, B. Burchfiel and S. Song, "Diffusion Policy: Visuomotor Policy
Learning via Action Diffusion", RSS 2023.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.protocols import require
from habitus.execution.denoising import Denoising
from habitus.generative.ddpm import Level, Schedule, check_prediction
from habitus.methods.generative._chunks import ChunkLearner, ChunkState, OneLevel, Window

CARD = Card(
    title="Diffusion Policy: Visuomotor Policy Learning via Action Diffusion",
    authors="Chi, Cheng and Feng, Siyuan and Du, Yilun and Xu, Zhenjia and Cousineau, Eric and Burchfiel, Benjamin "
    "and Song, Shuran",
    year=2023,
    venue="Robotics: Science and Systems",
    arxiv="2303.04137",
    kind="learner",
    entry="DiffusionPolicy",
    data=("log",),
    actions=("continuous",),
)


class DiffusionPolicy(ChunkLearner):
    """Denoising diffusion over chunks of actions, on windows of a log. Bounded real actions."""

    levels: int = 50  # N; authors' code: 100
    sampling_steps: int | None = eqx.field(default=None, static=True)  # None for every level
    eta: float = eqx.field(default=1.0, static=True)  # 1 for DDPM, 0 for DDIM
    prediction: str = eqx.field(default="noise", static=True)  # or "clean" or "velocity"

    def __check_init__(self) -> None:
        require(self.levels >= 1, f"levels must be 1 or more, but is {self.levels}.")
        fits = self.sampling_steps is None or 1 <= self.sampling_steps <= self.levels
        require(fits, f"sampling_steps must be from 1 to the {self.levels} levels, but is {self.sampling_steps}.")
        require(0 <= self.eta <= 1, f"eta must be in [0, 1], but is {self.eta}.")
        check_prediction(self.prediction)

    @property
    def schedule(self) -> Schedule:
        """The noise of each level: the squared cosine."""
        return Schedule.cosine(self.levels)

    def example_loss(
        self, network: Any, chunk: Float[Array, "predicted actions"], seen: Window, key: PRNGKeyArray
    ) -> Float[Array, ""]:
        """`loss_at` a random level (section 2.2, eq. 5)."""
        level_key, noise_key = jax.random.split(key)
        return self.loss_at(network, chunk, seen, jax.random.randint(level_key, (), 0, self.levels), noise_key)

    def loss_at(
        self, network: Any, chunk: Float[Array, "predicted actions"], seen: Window, k: Level, key: PRNGKeyArray
    ) -> Float[Array, ""]:
        """`mean (f(x_k, k, o) - eps)^2`, or of another prediction, at one level or one for each step."""
        noise = jax.random.normal(key, chunk.shape)
        answer = network(self.schedule.noised(chunk, noise, k), k, seen)
        return ((answer - self.schedule.target(chunk, noise, k, self.prediction)) ** 2).mean()

    def planner(self, state: ChunkState) -> Denoising:
        return Denoising(
            OneLevel(state.average),
            self.schedule,
            self.predicted,
            state.action_size,
            state.obs_shape,
            steps=self.sampling_steps,
            eta=self.eta,
            prediction=self.prediction,
        )
