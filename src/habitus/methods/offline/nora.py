"""NORA: an optimistic actor-critic that switches rarely, with or without a log.

Actor-critics explore badly where the critic judges the current policy and the policy drags errors of
older critics along. Here the critic aims at the optimal values whatever the policy does, and adds to
each value what it may be underrated by; it is fitted anew only once some evidence has doubled, which
happens logarithmically often; and with each new critic the actor starts again from uniform and runs
multiplicative weights against a critic that stands still. A log joins the regression, so that bonuses
are small where it reaches (H-NORA); with a log that covers a good policy optimism can be left out
altogether (`bonus=0`, NOAH).

The paper searches a confidence set of functions; this is its instance that can be computed, on counts
of finitely many states, or on features that are linear in values.

K. Tan, W. Fan and Y. Wei, "Actor-Critics Can Achieve Optimal Sample Efficiency", ICML 2025.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.errors import ConfigError, DataError, SpaceMismatch
from habitus.core.experience import Trajectory, Transition
from habitus.core.protocols import Learner, Policy, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, take
from habitus.nets.distributions import Categorical
from habitus.nets.policies import ByStep, Greedy, Sampling
from habitus.nets.regression import ActionBlocks, Counted, Evidence, LinearCritic, Regression, Ridge, Table
from habitus.train.buffer import empty_transitions

CARD = Card(
    title="Actor-Critics Can Achieve Optimal Sample Efficiency",
    authors="Tan, Kevin and Fan, Wei and Wei, Yuting",
    year=2025,
    venue="International Conference on Machine Learning",
    arxiv="2505.03710",
    kind="learner",
    entry="NORA",
    data=("env", "log"),
    actions=("discrete",),
    paper=True,
)

Critic = Table | LinearCritic
TOLERANCE = 1e-5  # of rewards beyond their range, in float32


class SoftActor(eqx.Module):
    """`pi(a | s)` in proportion to `exp(weight f(s, a))`: multiplicative weights after `weight / eta` rounds against
    one critic `f`. With a leading axis, one for each step."""

    critic: Critic
    weight: Float[Array, "*steps"]

    def __call__(self, obs: Array) -> Categorical:
        values = self.critic(obs)
        return Categorical(self.weight * (values - values.max()))


class Epoch(eqx.Module):
    """What stands between two switches: the critic of each step and the evidence at its fit; and the actor's weight."""

    critic: Critic
    fitted: Evidence
    weight: Float[Array, ""]


class NORAState(eqx.Module):
    """All episodes, their evidence, and the epoch.

    Attributes:
        steps: transitions [horizon, capacity], those of a log first.
        valid: which of them there are, [horizon, capacity].
        stored: where the next episode goes.
        evidence: of every step, so far.
        epoch: critic and actor.
        regression: how values are fitted.
    """

    steps: Transition
    valid: Bool[Array, "horizon capacity"]
    stored: Int[Array, ""]
    evidence: Evidence
    epoch: Epoch | None
    regression: Regression

    @property
    def horizon(self) -> int:
        """Steps of an episode."""
        return self.valid.shape[0]

    @property
    def room(self) -> Int[Array, ""]:
        """For how many episodes more."""
        return self.valid.shape[1] - self.stored

    def add(self, episodes: Trajectory) -> NORAState:
        """With further episodes [episodes, horizon]."""
        plain = dataclasses.replace(episodes, steps=dataclasses.replace(episodes.steps, cost=None))
        rows = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), plain)

        def write(store: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(store, jnp.asarray(new, store.dtype), self.stored, 1)

        return dataclasses.replace(
            self,
            steps=jax.tree.map(write, self.steps, rows.steps),
            valid=write(self.valid, rows.valid),
            stored=self.stored + rows.valid.shape[1],
            evidence=self.regression.add(self.evidence, rows.steps, rows.valid),
        )


class NORA(Learner):
    """No-regret optimistic rare-switching actor-critic. Discrete actions and a time limit; states are integers, or
    vectors in which values are linear."""

    bonus: float = 0.1  # of a pair seen once, as a share of the range of returns; 0 is no optimism; ours
    step_size: float = 5.0  # of the actor on values over their range; theory: sqrt(8 log(actions) / length of an epoch)
    penalty: float = 1.0  # ridge, where observations are vectors; ours
    min_reward: float = eqx.field(static=True, default=0.0)  # of one step; a run stops at a reward out of range
    max_reward: float = eqx.field(static=True, default=1.0)  # of one step; the paper's are in [0, 1]
    max_return: float | None = eqx.field(static=True, default=None)  # of an episode, if below horizon * max_reward
    num_envs: int = 1  # episodes in one update; paper

    on_policy: ClassVar = True
    from_start: ClassVar = True
    takes_log: ClassVar = True

    def __check_init__(self) -> None:
        require(self.bonus >= 0, f"bonus must be 0 or more, but is {self.bonus}.")
        require(self.step_size > 0, f"step_size must be above 0, but is {self.step_size}.")
        require(self.penalty > 0, f"penalty must be above 0, but is {self.penalty}.")
        ordered = -math.inf < self.min_reward < self.max_reward < math.inf
        require(ordered, f"min_reward={self.min_reward} must be below max_reward={self.max_reward}, and both finite.")
        require(
            self.max_return is None or self.max_return > 0, f"max_return must be above 0, but is {self.max_return}."
        )

    def limits(self, horizon: int) -> tuple[Float[np.ndarray, "horizon"], Float[np.ndarray, "horizon"]]:
        """The least and the greatest return from each step on; an episode may end at any."""
        left = np.arange(horizon, 0, -1)
        most = np.inf if self.max_return is None else self.max_return
        return min(self.min_reward, 0.0) * left, np.minimum(max(self.max_reward, 0.0) * left, most)

    def span(self, horizon: int) -> float:
        """The greatest return of an episode less the least."""
        low, high = self.limits(horizon)
        return float(high[0] - low[0])

    def regression(self, spec: Spec) -> Regression:
        """How values are fitted in these spaces: on counts, or on the vector in a block for each action."""
        if spec.tabular:
            return Counted(spec.obs_size, spec.num_actions)
        features = ActionBlocks(spec.num_actions)
        return Ridge(features, jnp.asarray(self.penalty), features.size(spec.obs_size))

    def init(self, spec: Spec, key: PRNGKeyArray) -> NORAState:
        spec.require("discrete", type(self).__name__)
        if spec.image:
            raise SpaceMismatch("NORA's critic is a table or linear, so it needs integers or vectors, not images.")
        if spec.horizon is None or spec.updates is None:
            raise ConfigError("NORA needs a longest episode (max_episode_steps=...) and the number of updates planned.")
        return self.begin(spec, self.logged(spec))

    def begin(self, spec: Spec, logged: Trajectory | None) -> NORAState:
        """The first state, given the episodes of a log [episodes, horizon], if there are any."""
        assert spec.horizon is not None and spec.updates is not None
        capacity = spec.updates * self.num_envs + (0 if logged is None else logged.valid.shape[0])
        blank = dataclasses.replace(empty_transitions(spec, spec.horizon * capacity), cost=None)
        regression = self.regression(spec)
        state = NORAState(
            steps=jax.tree.map(lambda x: x.reshape(spec.horizon, capacity, *x.shape[1:]), blank),
            valid=jnp.zeros((spec.horizon, capacity), bool),
            stored=jnp.zeros((), jnp.int32),
            evidence=regression.start(spec.horizon),
            epoch=None,
            regression=regression,
        )
        state = state if logged is None else state.add(logged)
        return dataclasses.replace(state, epoch=self.switch(state))

    def logged(self, spec: Spec) -> Trajectory | None:
        """The episodes of the log, if there is one, as [episodes, horizon].

        Raises:
            DataError: if they are longer than the world's, or rewards are out of range.
        """
        log = spec.dataset
        if log is None:
            return None
        assert spec.horizon is not None
        longest = max(int(log.lengths.max()), log.meta.get("horizon") or 0)
        if longest > spec.horizon:
            raise DataError(f"{log.name} has episodes of up to {longest} steps, but those of the world end by "
                            f"{spec.horizon}; a log from another horizon has other values.")  # fmt: skip
        low, high = float(log.reward.min()), float(log.reward.max())
        if low < self.min_reward - TOLERANCE or high > self.max_reward + TOLERANCE:
            raise DataError(f"rewards of {log.name} are in [{low:g}, {high:g}], but NORA was told "
                            f"[{self.min_reward:g}, {self.max_reward:g}]; set min_reward and max_reward.")  # fmt: skip
        return log.windows(spec.horizon, log.starts)

    def adopt(self, state: NORAState, earlier: NORAState) -> NORAState:
        """Goes on with all that the earlier run saw, its log included, so a log is to be given once."""
        joined = jax.tree.map(lambda *xs: jnp.concatenate(xs, 1), *((s.steps, s.valid) for s in (earlier, state)))
        none = state.regression.start(state.horizon)
        return dataclasses.replace(
            earlier,
            steps=joined[0],
            valid=joined[1],
            stored=earlier.valid.shape[1] + state.stored,
            evidence=earlier.evidence + state.evidence - none,
        )

    # --- critic and actor

    def fit(self, state: NORAState) -> Critic:
        """Optimistic least squares to `r + max f_{h+1}(s', .)`, from the last step backwards."""
        bonus = self.bonus * self.span(state.horizon)

        def back(after: Critic, row: tuple[Any, ...]) -> tuple[Critic, Critic]:
            h, steps, valid, evidence, low, high = row
            target = steps.reward + jnp.where(steps.terminated, 0.0, self.backup(state, h, after, steps.next_obs))
            critic = state.regression.fit(evidence, steps, target, valid, bonus, low, high)
            return critic, critic

        limits = map(jnp.asarray, self.limits(state.horizon))
        rows = (jnp.arange(state.horizon), state.steps, state.valid, state.evidence, *limits)
        return jax.lax.scan(back, state.regression.nothing(), rows, reverse=True)[1]

    def backup(self, state: NORAState, h: Array, after: Critic, obs: Array) -> Float[Array, "episodes"]:
        """The value of the states after step `h`: that of the best action, whatever the policy is."""
        return jax.vmap(after)(obs).max(-1)

    def due(self, state: NORAState, epoch: Epoch) -> Bool[Array, ""]:
        """Whether there is enough news for a new critic."""
        return state.regression.doubled(state.evidence, epoch.fitted)

    def switch(self, state: NORAState) -> Epoch:
        """A new critic, and the actor uniform again."""
        return Epoch(self.fit(state), state.evidence, jnp.zeros(()))

    def improve(self, state: NORAState, epoch: Epoch) -> Epoch:
        """One round of multiplicative weights: `pi(a | s)` times `exp(eta f(s, a))`."""
        return dataclasses.replace(epoch, weight=epoch.weight + self.step_size / self.span(state.horizon))

    def update(self, state: NORAState, batch: Transition, key: PRNGKeyArray) -> tuple[NORAState, Metrics]:
        """Stores the episodes of the current policy; a switch, if evidence has doubled; one round of the actor.

        Args:
            batch: a roll-out [horizon, num_envs] from fresh starts.
        """
        given, expected = batch.reward.shape, (state.horizon, self.num_envs)
        require(given == expected, f"a batch is {given} steps by episodes, expected {expected}.")
        return self.improved(state, Trajectory.of_rollout(batch))

    def improved(self, state: NORAState, episodes: Trajectory) -> tuple[NORAState, Metrics]:
        """The same, from episodes [num_envs, horizon]."""
        assert state.epoch is not None
        reward, room = episodes.steps.reward, state.room - self.num_envs
        wrong = (reward < self.min_reward - TOLERANCE) | (reward > self.max_reward + TOLERANCE)
        held, state = state.epoch, state.add(episodes)
        switched = self.due(state, held)
        epoch = self.improve(state, jax.lax.cond(switched, lambda: self.switch(state), lambda: held))
        metrics = {
            "switched": switched.astype(jnp.float32),
            "value": jax.vmap(take(epoch.critic, 0))(episodes.steps.obs[:, 0]).max(-1).mean(),
            # not finite, so that the run stops, where the promises of the fields do not hold
            "reward_in_range": jnp.where((wrong & episodes.valid).any(), jnp.nan, 1.0),
            "room": jnp.where(room >= 0, room, jnp.nan),
        }
        return dataclasses.replace(state, epoch=epoch), metrics

    def actor(self, state: NORAState) -> SoftActor:
        """The policy of each step, with a leading axis."""
        assert state.epoch is not None
        return SoftActor(state.epoch.critic, jnp.broadcast_to(state.epoch.weight, state.horizon))

    def explorer(self, state: NORAState) -> Policy:
        return ByStep(Sampling(self.actor(state)), state.horizon)

    def policy(self, state: NORAState) -> Policy:
        """What the actor tends to within an epoch: the critic's best action."""
        assert state.epoch is not None
        return ByStep(Greedy(state.epoch.critic), state.horizon)
