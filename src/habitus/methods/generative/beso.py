"""BESO: goals reached by drawing actions from a score, in three steps.

A small transformer learns from play which actions lead to which later states: not their mean but their score at every
level of noise, so that several right ways stay several. Training says nothing of how it is sampled: solver, grid and
number of steps are chosen afterwards, and three are enough. Where the goal is dropped now and then in training, one
network is two policies, one that goes to a goal and one that plays, and guidance goes from the one to the other and
beyond. With `goal_drop` 0 this is the paper's C-BESO, above it CFG-BESO.

M. Reuss, M. Li, X. Jia and R. Lioutikov, "Goal-Conditioned Imitation Learning using Score-based Diffusion Policies",
RSS 2023.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.protocols import Policy, require
from habitus.generative.edm import Denoiser, log_logistic
from habitus.generative.gpt import DenoisingTransformer
from habitus.generative.guidance import guided
from habitus.generative.multistep import solver
from habitus.generative.samplers import sample
from habitus.generative.schedules import sigma_grid
from habitus.generative.solvers import Solver
from habitus.methods.generative._goal_imitation import GoalImitation, GoalPolicy, ImitationState
from habitus.nets.goals import GoalRows

CARD = Card(
    title="Goal-Conditioned Imitation Learning using Score-based Diffusion Policies",
    authors="Reuss, Moritz and Li, Maximilian and Jia, Xiaogang and Lioutikov, Rudolf",
    year=2023,
    venue="Robotics: Science and Systems",
    arxiv="2304.02532",
    kind="learner",
    entry="BESO",
    data=("log",),
    actions=("continuous",),
    paper=True,
)


class ScorePolicy(GoalPolicy):
    """Denoises the newest action of the window.

    The actions before it are shown as they were taken and pass through the solver with it, as in the authors' code.

    Attributes:
        sigmas: levels of noise, falling to 0.
        solver: how it steps from one to the next.
        guidance: how far to go from the policy without a goal, 0, towards the one with it, 1, and beyond.
    """

    sigmas: Float[Array, "levels"]
    solver: Solver
    guidance: float = eqx.field(static=True)

    def draw(
        self, past: Array, now: Int[Array, ""], states: Array, goal: Array, key: PRNGKeyArray
    ) -> Float[Array, "actions"]:
        noise_key, solver_key = jax.random.split(key)
        fresh = jax.random.normal(noise_key, past.shape[1:])
        start = (past / self.sigmas[0]).at[now].set(fresh)
        denoise = guided(lambda x, sigma, g: self.network(x, sigma, states, g), goal, 0 * goal, self.guidance)
        return sample(denoise, start, self.sigmas, solver_key, solver=self.solver)[now]


class BESO(GoalImitation):
    """A score-based policy on windows of a log, towards goals if its observations hold any. Real, bounded actions."""

    goal_drop: float = 0.1  # probability that a window is learned from without its goal; authors' code: of each entry
    guidance: float = eqx.field(default=1.0, static=True)  # 0 plays without a goal; authors' code: 1.5 to 2
    sampling_steps: int = 3  # of the solver, for an action
    solver: str = "ddim"  # or any other of `generative.multistep.SOLVERS`
    grid: str = "exponential"  # or any other of `generative.schedules.GRIDS`
    sigma_data: float = eqx.field(default=0.5, static=True)  # spread of scaled actions
    sigma_min: float = eqx.field(default=0.02, static=True)  # authors' code: 0.05, and 0.1 to act
    sigma_max: float = eqx.field(default=1.0, static=True)

    def __check_init__(self) -> None:
        drop = self.goal_drop
        require((drop >= 0) & (drop <= 1), f"goal_drop is a probability, in [0, 1], but is {drop}.")
        require(self.sigma_data > 0, f"sigma_data must be above 0, but is {self.sigma_data}.")
        low, high = self.sigma_min, self.sigma_max
        ends = f"sigma_min is {low} and sigma_max {high}"
        require(0 < low < high, f"{ends}; both must be above 0, and the first below the other.")
        require(self.sampling_steps >= 1, f"sampling_steps must be 1 or more, but is {self.sampling_steps}.")
        solver(self.solver), sigma_grid(self.grid, self.sampling_steps, low, high)

    def network(self, rows: GoalRows, actions: int, key: PRNGKeyArray) -> Denoiser:
        body = DenoisingTransformer(
            rows.width, actions, key, observed=self.context, predicted=self.context, goals=rows.goals,
            width=self.width, layers=self.layers, heads=self.heads, dropout=self.dropout,
        )  # fmt: skip
        return Denoiser(body, self.sigma_data)

    def errors(
        self, actor: Denoiser, actions: Array, states: Array, goal: Array, key: PRNGKeyArray
    ) -> Float[Array, "window actions"]:
        """`(F(c_in (a + sigma n), g m) - (a - c_skip (a + sigma n)) / c_out)^2`, m = 0 with probability `goal_drop`.

        One level for the whole window: log-logistic around `sigma_data`, in `[sigma_min, sigma_max]`.
        """
        level_key, noise_key, goal_key, dropout_key = jax.random.split(key, 4)
        sigma = log_logistic(level_key, jnp.log(self.sigma_data), 0.5, self.sigma_min, self.sigma_max)
        goal = jnp.where(jax.random.bernoulli(goal_key, self.goal_drop), 0.0, goal)
        return actor.errors(actions, sigma, jax.random.normal(noise_key, actions.shape), states, goal, dropout_key)

    def policy(self, state: ImitationState) -> Policy:
        """The sampler is that of this learner's fields: another one's may be asked for the policy of the same state."""
        sigmas = sigma_grid(self.grid, self.sampling_steps, self.sigma_min, self.sigma_max)
        return ScorePolicy(
            state.average, state.rows, state.scale, state.blank, self.clip,
            sigmas=sigmas, solver=solver(self.solver), guidance=self.guidance,
        )  # fmt: skip
