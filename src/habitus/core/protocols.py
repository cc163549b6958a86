"""The four nouns: what acts, where it acts, where experience comes from, how it improves a policy."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import gymnasium
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from habitus.core.domains import check_domains
from habitus.core.domains import require as require
from habitus.core.experience import Action, Obs, Step
from habitus.core.spec import Spec
from habitus.core.trees import Metrics

Carry = Any
Explorer = Any  # a Policy; where the source runs in Python, its compiled form (habitus.train.host.Actor)
EnvState = Any
Batch = Any


class Policy(eqx.Module):
    """What acts: written for one observation, batched by `jax.vmap`.

    `carry` holds whatever the policy remembers within an episode; it starts as `init()` and is
    reset by whoever runs the episodes.
    """

    def init(self) -> Carry:
        """The carry at the start of an episode."""
        return ()

    def rewarded(self, carry: Carry, reward: Float[Array, ""]) -> Carry:
        """The carry once the last action has been paid for; unchanged unless the policy listens.

        Whoever runs the episodes calls it after each step, with the reward of the world. A policy
        that holds another passes it on.
        """
        del reward
        return carry

    def report(self, carry: Carry) -> Metrics:
        """What the policy has to say of the episode so far, such as the `staleness` of its plan in steps.

        A policy that holds another passes it on.
        """
        del carry
        return {}

    @abc.abstractmethod
    def __call__(self, obs: Obs, carry: Carry, key: PRNGKeyArray) -> tuple[Action, Carry]:
        """The action for one observation, and the next carry."""


class Env(eqx.Module):
    """A world as pure functions. A learned world model is one too."""

    pure: ClassVar[bool] = True

    @property
    @abc.abstractmethod
    def observation_space(self) -> gymnasium.Space:
        """The space of one observation."""

    @property
    @abc.abstractmethod
    def action_space(self) -> gymnasium.Space:
        """The space of one action."""

    @property
    def horizon(self) -> int | None:
        """The longest episode in steps, or None."""
        return None

    @property
    def costs(self) -> tuple[str, ...]:
        """Names of the costs in `Step.info["cost"]`, in order; none for most worlds."""
        return ()

    @property
    def switches(self) -> tuple[int, ...]:
        """Entries of a real action that are on or off, such as a gripper; none for most worlds."""
        return ()

    @abc.abstractmethod
    def reset(self, key: PRNGKeyArray) -> tuple[EnvState, Obs]:
        """A first state and its observation."""

    @abc.abstractmethod
    def step(self, state: EnvState, action: Action, key: PRNGKeyArray) -> tuple[EnvState, Step]:
        """The consequence of one action. Never resets."""

    @property
    def spec(self) -> Spec:
        """The contract that learners are given."""
        spaces = self.observation_space, self.action_space
        return Spec(*spaces, self.horizon, costs=self.costs, switches=self.switches)


class HostEnv(abc.ABC):
    """Several copies of a world that runs in Python, stepped together.

    `step` returns the true successor of every copy; copies whose episode ended are reset at once,
    and `first_obs` says what each copy shows next.

    Attributes:
        num_envs: number of copies.
        costs, switches: as of an `Env`.
    """

    pure: ClassVar[bool] = False
    num_envs: int
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    horizon: int | None = None
    costs: tuple[str, ...] = ()
    switches: tuple[int, ...] = ()

    @abc.abstractmethod
    def reset(self, seed: int) -> Obs:
        """First observations [num_envs, ...] of fresh episodes."""

    @abc.abstractmethod
    def step(self, action: Action) -> tuple[Step, Obs]:
        """The consequences of one action a copy, and the observations [num_envs, ...] to act on next."""

    def close(self) -> None:  # noqa: B027 - most worlds hold nothing
        """Releases what the copies hold."""

    @property
    def spec(self) -> Spec:
        """The contract that learners are given."""
        spaces = self.observation_space, self.action_space
        return Spec(*spaces, self.horizon, costs=self.costs, switches=self.switches)


class Source(eqx.Module):
    """Where experience comes from, whatever the learner.

    A pure source compiles into the loop; a host source runs in Python and hands arrays over.
    """

    @property
    @abc.abstractmethod
    def pure(self) -> bool:
        """Whether `init` and `draw` are pure functions that JAX can compile."""

    @property
    @abc.abstractmethod
    def spec(self) -> Spec:
        """The contract that the learner is given."""

    @property
    def acts(self) -> bool:
        """Whether the explorer takes part in a draw."""
        return False

    @abc.abstractmethod
    def init(self, explorer: Explorer, key: PRNGKeyArray) -> PyTree:
        """What the source remembers between draws; `explorer` gives the shape of its carry."""

    @abc.abstractmethod
    def draw(self, state: PyTree, explorer: Explorer, key: PRNGKeyArray) -> tuple[PyTree, Batch]:
        """The next batch, collected by `explorer` where this source acts.

        With `updates_per_draw` above 1 the batch has one more leading axis of that length.
        """

    @property
    def updates_per_draw(self) -> int:
        """How many batches one draw holds."""
        return 1

    @property
    def prioritised(self) -> bool:
        """Whether batches are `Weighted`, and what a learner makes of each row changes how often it is drawn."""
        return False

    def reprioritise(self, state: PyTree, priority: Float[Array, "batch"]) -> PyTree:
        """The state after a learner said how much it has to learn from each row of the last batch."""
        return state

    def draws(self, steps: int) -> int:
        """How many draws `steps` amount to: environment steps for a source that acts, else updates."""
        return steps

    def steps(self, draws: int) -> int:
        """Inverse of `draws`: how far a run is after so many."""
        return draws

    def report(self, state: PyTree) -> tuple[PyTree, Metrics]:
        """What the source has to say since the last report, such as episode returns."""
        return state, {}

    def snapshot(self, state: PyTree) -> PyTree:
        """The arrays of a host state that a checkpoint must hold."""
        return state

    def restore(self, state: PyTree, saved: PyTree) -> PyTree:
        """A host state with the arrays of a checkpoint back in place."""
        return saved


class Learner(eqx.Module):
    """How experience improves a policy: documented hyperparameters and four pure functions.

    Class attributes:
        on_policy: whether a batch must come from the current policy.
        trains: for each network in the state, the losses whose gradient reaches it. A loss is a
            method `(network, state, batch, key) -> (loss, metrics)` of that name.
        sides: whether it learns from a world and a log at once, told apart (`Sides`).
        constrained: whether it keeps costs below a limit, so that its transitions must come with costs.
        continues: slugs of other learners whose runs this one can go on from (`warm_start`).
        from_start: whether its windows begin where episodes do (see `window`); and for an on-policy learner,
            whether its roll-outs do, [horizon, num_envs] of the world and [episodes, horizon] of a log.
        takes_log: whether an on-policy learner can be given a log besides, as `Spec.dataset`.
        hindsight: whether it learns to reach goals, so that the windows of a log whose observations hold goals are to
            come with goals that were reached (`data.hindsight.HindsightSource`).
    """

    on_policy: ClassVar[bool] = False
    trains: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    sides: ClassVar[bool] = False
    constrained: ClassVar[bool] = False
    continues: ClassVar[tuple[str, ...]] = ()
    takes_log: ClassVar[bool] = False
    from_start: ClassVar[bool] = False
    hindsight: ClassVar[bool] = False

    @property
    def window(self) -> int | None:
        """Steps of the windows that it learns from; None if its batches are of single transitions.

        The batches of a learner with windows are `Trajectory`s [batch, window] of a log.
        """
        return None

    @property
    def before(self) -> int:
        """Steps of each window that lie before the row that was drawn, such as earlier observations."""
        return 0

    def __check_init__(self) -> None:
        check_domains(hyperparameters(self))

    @abc.abstractmethod
    def init(self, spec: Spec, key: PRNGKeyArray) -> PyTree:
        """The first state. Raises `SpaceMismatch` where the method cannot act in these spaces."""

    @abc.abstractmethod
    def update(self, state: PyTree, batch: Batch, key: PRNGKeyArray) -> tuple[PyTree, Metrics]:
        """One gradient step (off-policy) or one improvement round (on-policy)."""

    @abc.abstractmethod
    def policy(self, state: PyTree) -> Policy:
        """What to deploy and to evaluate."""

    def adopt(self, state: PyTree, earlier: PyTree) -> PyTree:
        """The first state of a run that goes on from another's last: by default that one as it is.

        Args:
            state: the fresh state, from the spec of the new source.
            earlier: the last state of a run of this learner, or of one of those that it `continues`.
        """
        return earlier

    def world(self, log: Any) -> Env | None:
        """The world that it builds from a log (a `Dataset`), for a learner that acts in one; None where it does not.

        `learn` asks for it where the learner acts and is given a log and no world.
        """
        return None

    def rollouts(self, env: Env | HostEnv, **options: Any) -> Source | None:
        """The source of fresh experience that it wants of a world, for a learner whose actions are not those of single
        steps; None for the plain one.

        Args:
            options: of `Rollouts`.
        """
        return None

    def explorer(self, state: PyTree) -> Policy:
        """What collects; the policy unless the method says otherwise."""
        return self.policy(state)


def hyperparameters(learner: eqx.Module) -> dict[str, Any]:
    """Field names and values of a learner, in order."""
    return {f.name: getattr(learner, f.name) for f in dataclasses.fields(learner)}
