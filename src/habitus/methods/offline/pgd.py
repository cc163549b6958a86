"""Policy-guided diffusion: a log turned into experience as the learner's own policy would have made it.

A diffusion model learns what stretches of the log look like. While it samples, the actions are pushed up
the log density of the current policy, so that what comes out is near the policy and still plausible under
the log: dividing by the behaviour's density instead would leave the data. Trajectories come out whole, so
errors do not compound as in a world model that is rolled out. Any learner that can learn from a log learns
from the mixture of real and synthetic rows, unchanged.

M. T. Jackson, M. T. Matthews, C. Lu, B. Ellis, S. Whiteson and J. N. Foerster, "Policy-Guided Diffusion",
Reinforcement Learning Conference 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.errors import SpaceMismatch
from habitus.core.experience import Transition
from habitus.core.protocols import Explorer, Policy, Source, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, seldom, select, take
from habitus.data.dataset import Dataset
from habitus.generative.columns import Columns
from habitus.generative.samplers import Churn, Guidance
from habitus.nets.policies import likelihood
from habitus.train.trajectory_model import TrajectoryModel, check_trajectories, fit_trajectories

CARD = Card(
    title="Policy-Guided Diffusion",
    authors="Jackson, Matthew Thomas and Matthews, Michael Tryfan and Lu, Cong and Ellis, Benjamin and "
    "Whiteson, Shimon and Foerster, Jakob N.",
    year=2024,
    venue="Reinforcement Learning Conference",
    arxiv="2404.06356",
    kind="source",
    entry="PolicyGuidedDiffusion",
    data=("log",),
    actions=("continuous",),
    paper=True,
)

REFERENCE_LEVELS = 32


def action_push(
    policy: Policy, columns: Columns, x: Float[Array, "time columns"], normalise: bool = True
) -> Float[Array, "time actions"]:
    """The gradient of `sum_t log pi(a_t | s_t)` in the action columns of a window; observations are held fixed.

    With `normalise`, divided by its norm over the whole window, and 0 where there is no gradient.
    """
    obs = columns.obs(x)

    def log_prob(actions: Array) -> Array:
        taken = columns.action(x.at[:, columns.actions].set(actions))
        return jax.vmap(lambda o, a: likelihood(policy, o).log_prob(a))(obs, taken).sum()

    push = jax.grad(log_prob)(x[:, columns.actions])
    return push / (jnp.linalg.norm(push) + 1e-8) if normalise else push


def weight(i: Int[Array, ""], steps: int, cosine: float | Array) -> Float[Array, ""]:
    """`(1 - i/T) + c sin(pi (i + 1) / T)`, and 0 in the last step: strong early, when all is still open."""
    shape = 1 - i / steps + cosine * jnp.sin(jnp.pi * (i + 1) / steps)
    return jnp.where(i < steps - 1, shape, 0.0)


class Synthetic(eqx.Module):
    """The synthetic rows in use.

    Attributes:
        rows: transitions, those that are whole first.
        count: how many of them are whole.
        age: draws since they were made.
        dropped: trajectories so far that were not finite.
    """

    rows: Transition
    count: Int[Array, ""]
    age: Int[Array, ""]
    dropped: Int[Array, ""]


class PolicyGuidedDiffusion(Source):
    """Batches of real and synthetic transitions; the synthetic ones are made anew, for the policy as it then is.

    The first set is unguided, as the first policy knows nothing. Trajectories that are not finite are dropped and
    counted (`synthetic/dropped`); a set without any other leaves the one before in use, which at first is real.
    """

    log: Dataset = eqx.field(static=True)
    model: TrajectoryModel | None = None  # made earlier by `fit_trajectories`; by default it is fitted here
    guidance: float = 1.0  # lambda with 32 levels; with others lambda times levels is kept, as that is what counts
    cosine: float = 0.3  # c, more guidance in the middle; authors' code
    normalise: bool = True  # guide by a gradient of norm 1
    denoised: bool = False  # ask the policy about the denoised trajectory instead of the noisy one
    levels: int = 32  # of noise, of Heun's method; authors' code: 256
    churn: float = 0.3125  # share by which the noise is raised in each step; authors' code: 80/256
    windows: int = 512  # trajectories in a set
    lifetime: int = 2_000  # draws until the next set; authors' code: 10,000
    share: float = 0.75  # of a batch that is synthetic; authors' code: 240/256
    batch_size: int = 256
    length: int = 16  # steps of a trajectory; authors' code: 32
    stride: int = 4  # between the windows that are learned from; authors' code: 8
    features: int = 32  # channels of the U-Net; authors' code: 1024
    blocks: int = 2  # its resolutions; authors' code: 3
    fit_steps: int = 4_000
    fit_batch_size: int = 64
    fit_learning_rate: float = 1e-3
    seed: int = 0  # of the fit
    progress: Callable[[int, float], None] | None = None  # told the steps of the fit and the loss
    real: Transition | None = None  # the rows of the log, which this takes from it

    def __post_init__(self) -> None:
        require(self.guidance >= 0, f"guidance must be 0 or more, but is {self.guidance}.")
        require(self.cosine >= 0 and self.churn >= 0, "cosine and churn must be 0 or more.")
        require(0 < self.share <= 1, f"share is that of synthetic rows, in (0, 1], but is {self.share}.")
        require(self.levels >= 2, f"levels must be 2 or more, but is {self.levels}.")
        for name in ("windows", "lifetime", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more, but is {getattr(self, name)}.")
        check_trajectories(self.log)
        self.real = self.log.canonical().transitions(slice(None))
        if self.model is None:
            self.model, _ = fit_trajectories(
                self.log, jax.random.key(self.seed), length=self.length, stride=self.stride, features=self.features,
                blocks=self.blocks, steps=self.fit_steps, batch_size=self.fit_batch_size,
                learning_rate=self.fit_learning_rate, progress=self.progress,
            )  # fmt: skip
        self.progress = None  # no part of what is compiled
        columns, spec = self.model.columns, self.spec
        if (columns.obs_size, columns.action_size) != (spec.obs_size, spec.action_size):
            raise SpaceMismatch(
                f"the model has {columns.obs_size} observation and {columns.action_size} action columns, but "
                f"{self.log.name} has {spec.obs_size} and {spec.action_size}; fit one to this log."
            )

    @property
    def pure(self) -> bool:
        return True

    @property
    def spec(self) -> Spec:
        return self.log.spec

    @property
    def sampled(self) -> int:
        """Synthetic rows of a batch."""
        return max(1, round(self.share * self.batch_size))

    @property
    def parts(self) -> tuple[TrajectoryModel, Transition]:
        """The model, and the real rows."""
        assert self.model is not None and self.real is not None
        return self.model, self.real

    def generate(
        self, key: PRNGKeyArray, policy: Policy | None = None, guidance: float | Array | None = None
    ) -> Float[Array, "windows time columns"]:
        """A set of trajectories, guided by a policy if there is one, as strongly as `guidance` says or the field."""
        model, _ = self.parts
        strength = self.guidance if guidance is None else guidance
        off = policy is None or (isinstance(strength, float) and strength == 0)
        guide = None if off else self._guide(policy, strength)
        churn = Churn(self.churn * self.levels) if self.churn > 0 else None
        return model.sample(key, self.windows, steps=self.levels, churn=churn, guidance=guide)

    def _guide(self, policy: Any, strength: float | Array) -> Guidance:
        """What each step adds: the weighted push on the action columns, and nothing elsewhere."""
        model, _ = self.parts
        scaled = strength * REFERENCE_LEVELS / self.levels

        def guide(x: Array, sigma: Array, i: Array) -> Array:
            seen = model.denoiser(x, sigma) if self.denoised else x
            push = action_push(policy, model.columns, seen, self.normalise)
            push = scaled * weight(i, self.levels, self.cosine) * push
            return jnp.zeros_like(x).at[:, model.columns.actions].set(push)

        return guide

    def init(self, explorer: Explorer, key: PRNGKeyArray) -> Synthetic:
        self._check(explorer)
        model, real = self.parts
        n = self.windows * model.length
        rows = take(real, jax.random.randint(key, (n,), 0, real.size))
        zero = jnp.zeros((), jnp.int32)
        first = Synthetic(rows, jnp.full((), n, jnp.int32), zero, zero)
        return _renewed(first, self, None, key)

    def _check(self, explorer: Explorer) -> None:
        """Raises `SpaceMismatch` unless the explorer's actions are those of the log."""
        obs = jnp.zeros(self.spec.obs_shape)
        action = jax.eval_shape(lambda: explorer(obs, explorer.init(), jax.random.key(0))[0])
        if action.shape != self.spec.action_shape:
            raise SpaceMismatch(
                f"the policy's actions have shape {action.shape}, but those of {self.log.name} have "
                f"{self.spec.action_shape}; learn with the spaces of the log."
            )

    def draw(self, state: Synthetic, explorer: Explorer, key: PRNGKeyArray) -> tuple[Synthetic, Transition]:
        make_key, own_key, real_key = jax.random.split(key, 3)
        state = seldom(state.age >= self.lifetime, _renewed, state, self, explorer, make_key)
        synthetic = take(state.rows, jax.random.randint(own_key, (self.sampled,), 0, state.count))
        _, real = self.parts
        rows = jax.random.randint(real_key, (self.batch_size - self.sampled,), 0, real.size)
        batch = jax.tree.map(lambda *xs: jnp.concatenate(xs), synthetic, take(real, rows))
        return eqx.tree_at(lambda s: s.age, state, state.age + 1), batch

    def report(self, state: Synthetic) -> tuple[Synthetic, Metrics]:
        whole = state.count / state.rows.size
        return state, {"synthetic/dropped": state.dropped.astype(jnp.float32), "synthetic/whole": whole}


def _renewed(state: Synthetic, source: PolicyGuidedDiffusion, policy: Policy | None, key: PRNGKeyArray) -> Synthetic:
    """The next set; the one before, if nothing of the next is whole."""
    model, _ = source.parts
    found = source.generate(key, policy)
    rows, whole = jax.vmap(model.columns.unpack)(found)
    dropped = (~jnp.isfinite(found).all((1, 2))).sum(dtype=jnp.int32)
    kept: Bool[Array, "rows"] = whole.ravel()
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    count = kept.sum(dtype=jnp.int32)
    made = take(flat, jnp.argsort(~kept, stable=True)), count
    rows, count = select(count > 0, made, (state.rows, state.count))
    return Synthetic(rows, count, jnp.zeros((), jnp.int32), state.dropped + dropped)
