"""RTI-DP: the real-time iteration scheme for diffusion policies.

Plans change little from step to step. So the last plan, moved up by one step, is denoised from a low
level with a few network calls, instead of pure noise with all of them, and a new plan is made in every
step. At a low level a switch such as a gripper cannot flip, unless its values are small against the noise
there: its data are divided by a factor before training.

Y. Duan, H. Yin and D. Kragic, "Real-Time Iteration Scheme for Diffusion Policy", 2025.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from habitus.core.card import Card
from habitus.core.experience import Trajectory
from habitus.core.protocols import Policy, require
from habitus.core.spec import Spec
from habitus.execution.warm_start import WarmStart
from habitus.methods.generative._chunks import ChunkState
from habitus.methods.generative.diffusion_policy import DiffusionPolicy
from habitus.nets.policies import Normalised

CARD = Card(
    title="Real-Time Iteration Scheme for Diffusion Policy",
    authors="Duan, Yufei and Yin, Hang and Kragic, Danica",
    year=2025,
    venue="arXiv",
    arxiv="2508.05396",
    kind="learner",
    entry="RTIDP",
    data=("log",),
    actions=("continuous",),
    paper=True,
)


class RTIDP(DiffusionPolicy):
    """Diffusion policy that goes on from its last plan. Bounded real actions.

    The first plan of an episode is a whole one. Switches are the entries that the world or log declares
    (`Spec.switches`): what is executed of them is -1 or 1.
    """

    executed: int = 1
    warm_levels: tuple[int, ...] = eqx.field(default=(3, 2, 1, 0), static=True)  # at which the network is called
    # "scale": switches are divided by `factor` in the data. "clip": they are set to -1 or 1 in each plan. "none": as
    # any other entry. None for "scale" where switches are declared.
    switch: str | None = eqx.field(default=None, static=True)
    factor: float = eqx.field(default=10.0, static=True)
    renoise: bool = eqx.field(default=False, static=True)  # the last plan up to the first level; the paper does not
    posterior: str = eqx.field(default="adjacent", static=True)  # "jump": to the next level in the list

    def __check_init__(self) -> None:
        kinds = (None, "scale", "clip", "none")
        require(self.switch in kinds, f"switch must be 'scale', 'clip', 'none' or None, but is {self.switch!r}.")
        require(self.factor > 0, f"factor must be above 0, but is {self.factor}.")
        falling = all(a > b for a, b in zip(self.warm_levels, self.warm_levels[1:], strict=False))
        require(
            len(self.warm_levels) > 0 and falling and 0 <= self.warm_levels[-1] and self.warm_levels[0] < self.levels,
            f"warm_levels must fall from {self.levels - 1} or below to 0 or above, but are {self.warm_levels}.",
        )

    def init(self, spec: Spec, key: PRNGKeyArray) -> ChunkState:
        if self.switch in ("scale", "clip"):
            spec.require_switches(type(self).__name__)
        return super().init(spec, key)

    @property
    def scales(self) -> bool:
        """Whether switches are divided in the data, if there are any."""
        return self.switch in (None, "scale")

    def shown(self, state: ChunkState, batch: Trajectory) -> Trajectory:
        batch = super().shown(state, batch)
        if not (self.scales and state.switches):
            return batch
        smaller = batch.steps.action.at[..., jnp.asarray(state.switches)].divide(self.factor)
        return eqx.tree_at(lambda b: b.steps.action, batch, smaller)

    def policy(self, state: ChunkState) -> Policy:
        warm = WarmStart(
            self.planner(state),
            self.executed,
            self.observed,
            levels=self.warm_levels,
            renoise=self.renoise,
            posterior=self.posterior,
            discrete=() if self.switch == "none" else state.switches,
            factor=self.factor if self.scales else 1.0,
            snap=self.switch == "clip",
        )
        return Normalised(warm, state.normaliser)
