"""What imitation of play towards goals shares, whatever is drawn: windows, scales, averages, the policy's memory."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.errors import ConfigError
from habitus.core.experience import Trajectory
from habitus.core.protocols import Learner, Policy, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, copy, descend, trainable
from habitus.generative.ema import follow, ramped_decay
from habitus.nets.goals import GoalRows
from habitus.nets.normalise import Standardiser
from habitus.nets.optim import cosine_adamw
from habitus.nets.sequence import Steps, masked_mean


class ImitationState(eqx.Module):
    """The network, the average of its parameters, the optimiser, and the scales of the log.

    Attributes:
        rows: how observations become states and goals.
        scale: of actions, to [-1, 1] between the log's extremes.
        blank: an empty memory.
        planned: updates in all, infinite if that is not known.
        step: updates so far.
    """

    actor: Any
    average: Any
    actor_opt: optax.OptState
    rows: GoalRows
    scale: Standardiser
    blank: Steps
    planned: Float[Array, ""]
    step: Int[Array, ""]


class GoalPolicy(Policy):
    """Acts from the last states and actions of the episode, towards the goal of the newest observation.

    A history shorter than the window is what the networks saw in training as the beginning of a window: it is filled up
    at its end, where nothing is seen by what comes before.
    """

    network: Any
    rows: GoalRows
    scale: Standardiser
    blank: Steps
    clip: Float[Array, ""] | float  # bound of scaled actions

    def init(self) -> Steps:
        return self.blank

    def __call__(self, obs: Array, carry: Steps, key: PRNGKeyArray) -> tuple[Array, Steps]:
        carry = carry.then(jnp.zeros(()), obs)
        recent, now = carry.in_front(), carry.valid.sum() - 1
        states, goal = self.rows.states(recent.obs), self.rows.goal(obs)
        drawn = self.draw(self.scale(recent.action), now, states, goal, key)
        action = self.scale.undo(jnp.clip(drawn, -self.clip, self.clip))
        return action, carry.acted(action)

    @abc.abstractmethod
    def draw(
        self,
        past: Float[Array, "window actions"],
        now: Int[Array, ""],
        states: Float[Array, "window width"],
        goal: Float[Array, "goals width"],
        key: PRNGKeyArray,
    ) -> Float[Array, "actions"]:
        """The scaled action of row `now`; the rows before it hold the actions taken, those after it nothing."""


class GoalImitation(Learner):
    """Learns from windows of a log what to do next. Real, bounded actions; observations may hold goals or not."""

    learning_rate: float = 1e-3  # falls to 0 as a cosine
    weight_decay: float = 1e-4
    batch_size: int = 128
    context: int = 4  # steps of a window, W
    width: int = 64
    layers: int = 2
    heads: int = 4
    dropout: float = eqx.field(default=0.05, static=True)
    ema_decay: float = 0.999  # highest, of the average that acts
    clip: float = 1.1  # of actions, as a multiple of what the log holds

    hindsight = True
    trains: ClassVar = {"actor": ("actor_loss",)}

    def __check_init__(self) -> None:
        for name in ("context", "width", "layers", "heads"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more, but is {getattr(self, name)}.")
        even = self.width % self.heads == 0
        require(even, f"heads must divide the width of {self.width}, but are {self.heads}.")
        require(0 <= self.dropout < 1, f"dropout must be in [0, 1), but is {self.dropout}.")
        require((self.ema_decay >= 0) & (self.ema_decay < 1), f"ema_decay must be in [0, 1), but is {self.ema_decay}.")
        require(self.weight_decay >= 0, f"weight_decay must be 0 or more, but is {self.weight_decay}.")
        require(self.clip > 0, f"clip must be above 0, but is {self.clip}.")

    @property
    def window(self) -> int:
        return self.context

    @abc.abstractmethod
    def network(self, rows: GoalRows, actions: int, key: PRNGKeyArray) -> Any:
        """What is trained, for real actions of so many dimensions."""

    @abc.abstractmethod
    def errors(
        self,
        actor: Any,
        actions: Float[Array, "window actions"],
        states: Float[Array, "window width"],
        goal: Float[Array, "goals width"],
        key: PRNGKeyArray,
    ) -> Float[Array, "window actions"]:
        """The loss of each entry of one window."""

    def init(self, spec: Spec, key: PRNGKeyArray) -> ImitationState:
        name = type(self).__name__
        spec.require("bounded", name)
        if spec.dataset is None:
            raise ConfigError(f"{name} takes its scales from a log: give data=...")
        rows = GoalRows.of(spec)
        actor = self.network(rows, spec.action_size, key)
        planned = jnp.asarray(float(spec.updates or jnp.inf), jnp.float32)
        return ImitationState(
            actor=actor,
            average=copy(actor),
            actor_opt=self.optimizer(planned).init(trainable(actor)),
            rows=rows,
            scale=Standardiser.extent(spec.dataset.action),
            blank=Steps.blank(spec, self.context),
            planned=planned,
            step=jnp.zeros((), jnp.int32),
        )

    def optimizer(self, planned: Float[Array, ""]) -> optax.GradientTransformation:
        """AdamW with a learning rate that ends at 0."""
        return cosine_adamw(self.learning_rate, planned, self.weight_decay)

    def actor_loss(
        self, actor: Any, state: ImitationState, batch: Trajectory, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """Mean of `errors` over the steps that belong to the episode. A window has one goal, that of its first row."""
        obs, keys = batch.steps.obs, jax.random.split(key, len(batch.valid))
        given = state.scale(batch.steps.action), state.rows.states(obs), state.rows.goal(obs[:, 0])
        error = jax.vmap(lambda *xs: self.errors(actor, *xs))(*given, keys)
        loss = masked_mean(error.mean(-1), batch.valid)
        return loss, {"actor_loss": loss}

    def update(self, state: ImitationState, batch: Trajectory, key: PRNGKeyArray) -> tuple[ImitationState, Metrics]:
        actor, opt, metrics = descend(
            self.optimizer(state.planned), self.actor_loss, state.actor, state.actor_opt, state, batch, key
        )
        average = follow(state.average, actor, state.step, lambda n: ramped_decay(n, self.ema_decay))
        fresh = (actor, average, opt, state.step + 1)
        return eqx.tree_at(lambda s: (s.actor, s.average, s.actor_opt, s.step), state, fresh), metrics
