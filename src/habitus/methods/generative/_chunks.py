"""What learners of chunks of actions share: windows, a conditional denoiser, its average, and how it is executed."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from habitus.core.experience import Trajectory
from habitus.core.protocols import Learner, Policy, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, descend, trainable
from habitus.execution.horizon import RecedingHorizon
from habitus.execution.planner import Planner
from habitus.generative.chunks import Chunking
from habitus.generative.denoisers import ResidualMLP, check_residual
from habitus.generative.ema import follow
from habitus.nets.normalise import Standardiser
from habitus.nets.policies import Normalised

S = TypeVar("S", bound="ChunkState")
Window = Float[Array, "observed *obs"]


class ChunkState(eqx.Module):
    """The denoiser, its average, with which it acts, the optimiser and the scales of observations.

    Attributes:
        total: how many updates are planned; 0 for an endless run, whose learning rate does not fall.
        done: updates so far.
        switches: entries of an action that are on or off.
    """

    denoiser: Any
    average: Any
    denoiser_opt: optax.OptState
    normaliser: Standardiser
    total: Int[Array, ""]
    done: Int[Array, ""]
    obs_shape: tuple[int, ...] = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    switches: tuple[int, ...] = eqx.field(static=True)


class ChunkLearner(Learner):
    """Imitates a log by a model of the next `predicted` actions, given the last `observed` observations.

    Bounded real actions. AdamW as in diffusion policies (Chi et al. 2023, authors' code): the learning rate rises
    over the first updates and falls as a cosine to 0 at the planned end; the policy is the average of the parameters.
    """

    learning_rate: float = 1e-3  # authors' code: 1e-4, of a U-Net
    weight_decay: float = 1e-6
    warmup_updates: int = 500
    batch_size: int = 256
    predicted: int = 16  # Tp, steps of a chunk
    observed: int = 2  # To, observations that it is drawn from
    executed: int = 1  # Ta, steps of it that are executed; authors' code: 8
    width: int = 256
    blocks: int = 2  # of two layers each

    trains: ClassVar = {"denoiser": ("denoiser_loss",)}

    def __check_init__(self) -> None:
        require(self.weight_decay >= 0, f"weight_decay must be 0 or more, but is {self.weight_decay}.")
        require(self.warmup_updates >= 1, f"warmup_updates must be 1 or more, but is {self.warmup_updates}.")
        check_residual(self.width, self.blocks)
        _ = self.chunking

    @property
    def chunking(self) -> Chunking:
        """Which steps are seen, predicted and executed."""
        return Chunking(self.predicted, self.observed, self.executed)

    @property
    def window(self) -> int:
        return self.predicted

    @property
    def before(self) -> int:
        return self.chunking.before

    # --- what methods fill in

    @abc.abstractmethod
    def example_loss(
        self, network: Any, chunk: Float[Array, "predicted actions"], seen: Window, key: PRNGKeyArray
    ) -> Float[Array, ""]:
        """The loss of one chunk and the observations that it follows."""

    @abc.abstractmethod
    def planner(self, state: ChunkState) -> Planner:
        """What draws chunks with the averaged network, of canonical actions."""

    def network(self, spec: Spec, key: PRNGKeyArray) -> Any:
        """The denoiser at first."""
        shape, seen = (self.predicted, spec.action_size), self.observed * spec.obs_size
        return ResidualMLP(shape, self.width, self.blocks, key, seen)

    # --- the learner

    def init(self, spec: Spec, key: PRNGKeyArray) -> ChunkState:
        spec.require("bounded", type(self).__name__)
        network = self.network(spec, key)
        return ChunkState(
            denoiser=network,
            average=network,
            denoiser_opt=self.optimizer(self.learning_rate).init(trainable(network)),
            normaliser=Standardiser.of(spec),
            total=jnp.asarray(spec.updates or 0, jnp.int32),
            done=jnp.zeros((), jnp.int32),
            obs_shape=spec.obs_shape,
            action_size=spec.action_size,
            switches=spec.switches,
        )

    def optimizer(self, rate: Any) -> optax.GradientTransformation:
        """AdamW at a learning rate."""
        return optax.adamw(rate, b1=0.95, b2=0.999, eps=1e-8, weight_decay=self.weight_decay)

    def rate(self, state: ChunkState) -> Float[Array, ""]:
        """The learning rate of the next update."""
        return self.rate_after(state.done, state.total)

    def rate_after(self, done: Int[Array, ""], total: Int[Array, ""]) -> Float[Array, ""]:
        """The learning rate after `done` updates of `total`; that of an endless run (0) does not fall."""
        return self.learning_rate * warmed_cosine(done, total, self.warmup_updates)

    def denoiser_loss(
        self, denoiser: Any, state: ChunkState, batch: Trajectory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The mean of `example_loss` over a batch of windows; actions past the end of an episode are its last one."""
        cut = self.chunking
        chunks, seen = cut.actions(batch), cut.seen(batch)
        keys = jax.random.split(key, len(chunks))
        loss = jax.vmap(lambda a, o, k: self.example_loss(denoiser, a, o, k))(chunks, seen, keys).mean()
        return loss, {"denoiser_loss": loss}

    def shown(self, state: ChunkState, batch: Trajectory) -> Trajectory:
        """A batch as the network sees it: with standardised observations."""
        return eqx.tree_at(lambda b: b.steps, batch, state.normaliser.transition(batch.steps))

    def update(self, state: S, batch: Trajectory, key: PRNGKeyArray) -> tuple[S, Metrics]:
        batch = self.shown(state, batch)
        adam = self.optimizer(self.rate(state))
        denoiser, opt, metrics = descend(
            adam, self.denoiser_loss, state.denoiser, state.denoiser_opt, state, batch, key
        )
        after = denoiser, follow(state.average, denoiser, state.done), opt, state.done + 1
        return eqx.tree_at(lambda s: (s.denoiser, s.average, s.denoiser_opt, s.done), state, after), metrics

    def policy(self, state: ChunkState) -> Policy:
        cut = self.chunking
        return Normalised(RecedingHorizon(self.planner(state), cut.executed, cut.observed), state.normaliser)


def warmed_cosine(done: Int[Array, ""], total: Int[Array, ""], warmup: Any) -> Float[Array, ""]:
    """Share of a learning rate after `done` updates: it rises over the first `warmup`, and falls as a cosine to 0 at
    `total`; 0 stands for a run without an end, in which it stays."""
    rising = jnp.minimum(1.0, (done + 1) / warmup)
    falling = 0.5 + 0.5 * jnp.cos(jnp.pi * jnp.minimum(done / jnp.maximum(total, 1), 1.0))
    return rising * jnp.where(total > 0, falling, 1.0)


class OneLevel(eqx.Module):
    """A network that is told one level for the whole chunk, for planners that tell one for each row."""

    network: Any

    def __call__(self, chunk: Array, level: Num[Array, "rows"], window: Window) -> Array:
        return self.network(chunk, level[0], window)
