"""Flow policy: imitation by a straight flow from noise to chunks of actions.

A network learns the velocity along straight lines from noise to the chunks of a log, given what was seen.
To act, noise is moved along it in a few steps of Euler's method; a part of the chunk is executed, and a
new one drawn.

Y. Lipman, R. T. Q. Chen, H. Ben-Hamu, M. Nickel and M. Le, "Flow Matching for Generative Modeling", ICLR
2023; for chunks of actions as in K. Black et al., "pi0", 2024.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.protocols import require
from habitus.execution.planner import Sampled
from habitus.generative.flow import flow_loss, flow_sample, logit_normal_time, noisy_time, uniform_time
from habitus.methods.generative._chunks import ChunkLearner, ChunkState, Window

CARD = Card(
    title="Flow Matching for Generative Modeling",
    authors="Lipman, Yaron and Chen, Ricky T. Q. and Ben-Hamu, Heli and Nickel, Maximilian and Le, Matthew",
    year=2023,
    venue="International Conference on Learning Representations",
    arxiv="2210.02747",
    kind="learner",
    entry="FlowPolicy",
    data=("log",),
    actions=("continuous",),
)

TIMES = {"uniform": uniform_time, "logit-normal": logit_normal_time, "noisy": noisy_time}
PERIODS = 100.0  # times of [0, 1] are told as levels of [0, 100], so that near ones can be told apart


class Timed(eqx.Module):
    """A denoiser as a velocity `v(x, t, window)`."""

    network: Any

    def __call__(self, x: Array, t: Float[Array, ""], window: Window) -> Array:
        return self.network(x, PERIODS * t, window)


class Flow(eqx.Module):
    """Draws a chunk by Euler's method; it is clipped to [-1, 1]."""

    velocity: Timed
    shape: tuple[int, int] = eqx.field(static=True)
    steps: int = eqx.field(static=True)

    def __call__(self, window: Window, key: PRNGKeyArray) -> Float[Array, "predicted actions"]:
        return jnp.clip(flow_sample(self.velocity, jax.random.normal(key, self.shape), self.steps, window), -1, 1)


class FlowPolicy(ChunkLearner):
    """Flow matching over chunks of actions, on windows of a log. Bounded real actions."""

    sampling_steps: int = 4  # K of Euler's method
    times: str = eqx.field(default="uniform", static=True)  # density to train at: "logit-normal" or "noisy"

    def __check_init__(self) -> None:
        require(self.sampling_steps >= 1, f"sampling_steps must be 1 or more, but is {self.sampling_steps}.")
        require(self.times in TIMES, f"times must be one of {', '.join(TIMES)}, but is {self.times!r}.")

    def example_loss(
        self, network: Any, chunk: Float[Array, "predicted actions"], seen: Window, key: PRNGKeyArray
    ) -> Float[Array, ""]:
        """`mean (v(x_t, t, o) - (a - e))^2`, `x_t = (1 - t) e + t a` (eq. 23)."""
        time_key, noise_key = jax.random.split(key)
        noise, t = jax.random.normal(noise_key, chunk.shape), TIMES[self.times](time_key)
        return flow_loss(Timed(network), noise, chunk, t, seen)

    def planner(self, state: ChunkState) -> Sampled:
        shape = self.predicted, state.action_size
        flow = Flow(Timed(state.average), shape, self.sampling_steps)
        return Sampled(flow, *shape, state.obs_shape, calls=self.sampling_steps)
