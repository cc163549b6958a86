"""Who argues before the judge: an argumentator, and who answers it; both learn by PPO.

Both act in one game (`habitus.envs.worlds.debate`), so a round of it is one roll-out of a compiled
world; each update improves one of them on its own moves, the other being as good as frozen.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from gymnasium import spaces
from jaxtyping import Array, Int, PRNGKeyArray

from habitus.core.experience import Transition
from habitus.core.protocols import Policy, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, copy, select
from habitus.methods.online.ppo import PPO, PPOState
from habitus.nets.policies import Mode, Sampling

Opponent = Literal["max-min", "self-play", "isolated"]


class DebatersState(eqx.Module):
    """Both players and the number of updates done."""

    argumentator: PPOState
    opponent: PPOState
    updates: Int[Array, ""]


class InTurn(Policy):
    """Whoever's turn it is acts; the last feature of an observation says who, and is shown to neither."""

    first: Policy
    second: Policy

    def __call__(self, obs: Array, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        moves = [policy(obs[:-1], (), key)[0] for policy in (self.first, self.second)]
        return jnp.where(obs[-1] > 0, moves[1], moves[0]), carry


class EitherSide(Policy):
    """One policy makes every move, whoever's turn it is."""

    policy: Policy

    def __call__(self, obs: Array, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        return self.policy(obs[:-1], carry, key)


def own_moves(rollout: Transition, player: Int[Array, ""]) -> Transition:
    """The game as one of two players sees it: its own moves, each with all that is paid until its next.

    Args:
        rollout: whole games [moves, games] of an even length.

    Returns:
        transitions [moves / 2, games], without the feature that says whose turn it is.
    """
    length = rollout.reward.shape[0]
    starts = (rollout.obs[0, :, -1] > 0) == (player > 0)
    at = 2 * jnp.arange(length // 2)[:, None] + jnp.where(starts, 0, 1)
    games = jnp.arange(at.shape[1])
    answer = jnp.minimum(at + 1, length - 1)
    paid = rollout.reward[at, games] + jnp.where(at + 1 < length, rollout.reward[answer, games], 0.0)
    return Transition(
        obs=rollout.obs[at, games, :-1],
        action=rollout.action[at, games],
        reward=jnp.where(player > 0, -paid, paid),
        terminated=rollout.terminated[at, games] | rollout.terminated[answer, games],
        truncated=jnp.zeros(at.shape, bool),
        next_obs=rollout.next_obs[answer, games, :-1],
    )


class Debaters(PPO):
    """An argumentator that is hard to refute. A debate between two players, or one that speaks alone."""

    against: Opponent = eqx.field(static=True, default="max-min")
    confuser_updates: int = 20  # of each generation, against the argumentator as it is; authors' code: 150
    argumentator_updates: int = 6  # and then of the argumentator; authors' code: 5. 0 trains a confuser alone
    refresh: int = 20  # updates between copies to the opponent in self-play; authors' code: 150
    learning_rate: float = 5e-4  # this and what follows: authors' code
    discount: float = 0.9
    gae_lambda: float = 0.7
    clip: float = 0.1
    entropy: float = 0.01
    epochs: int = 2
    minibatch_size: int = 128
    max_grad_norm: float = 1.0
    num_envs: int = 256  # games of a round
    rollout_length: int = 6  # moves of a game
    hidden: tuple[int, ...] = (128, 128)  # authors' code: (512, 512)

    trains: ClassVar = {}

    def __check_init__(self) -> None:
        known = ("max-min", "self-play", "isolated")
        require(self.against in known, f"against must be one of {', '.join(known)}, but is {self.against!r}.")
        for name in ("confuser_updates", "refresh"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more, but is {getattr(self, name)}.")
        require(self.argumentator_updates >= 0, "argumentator_updates must be 0 or more.")

    def rounds(self, generations: int) -> int:
        """How many updates so many generations are; one who speaks alone has no confuser to wait for."""
        return generations * (self.argumentator_updates + (self.against != "isolated") * self.confuser_updates)

    def init(self, spec: Spec, key: PRNGKeyArray) -> DebatersState:  # type: ignore[override]
        require(
            spec.horizon == self.rollout_length,
            f"a round is whole games, so rollout_length must be their {spec.horizon} moves, not {self.rollout_length}.",
        )
        shown = spaces.Dict({name: space for name, space in spec.observation_space.items() if name != "turn"})  # type: ignore[attr-defined]
        spec, keys = Spec(shown, spec.action_space, spec.horizon), jax.random.split(key)
        return DebatersState(super().init(spec, keys[0]), super().init(spec, keys[1]), jnp.zeros((), jnp.int32))

    def update(self, state: DebatersState, batch: Transition, key: PRNGKeyArray) -> tuple[DebatersState, Metrics]:  # type: ignore[override]
        won = batch.reward.sum(0).mean()
        if self.against == "isolated":
            rows = dataclasses.replace(batch, obs=batch.obs[..., :-1], next_obs=batch.next_obs[..., :-1])
            better, metrics = super().update(state.argumentator, rows, key)
            return DebatersState(better, state.opponent, state.updates + 1), metrics | {"utility": won}
        turn = state.updates % (self.confuser_updates + self.argumentator_updates)
        confuses = (turn < self.confuser_updates) & (self.against == "max-min")
        learns = select(confuses, state.opponent, state.argumentator)
        better, metrics = super().update(learns, own_moves(batch, confuses.astype(jnp.int32)), key)
        argumentator = select(confuses, state.argumentator, better)
        opponent = select(confuses, better, state.opponent)
        if self.against == "self-play":
            opponent = select((state.updates + 1) % self.refresh == 0, argumentator, opponent)
        return DebatersState(argumentator, opponent, state.updates + 1), metrics | {"utility": won}

    def policy(self, state: DebatersState) -> Policy:  # type: ignore[override]
        """The argumentator, sure of itself, on either side."""
        return EitherSide(Mode(state.argumentator.actor))

    def explorer(self, state: DebatersState) -> Policy:  # type: ignore[override]
        return InTurn(Sampling(state.argumentator.actor), Sampling(state.opponent.actor))


class Attack(Debaters):
    """A fresh confuser against an argumentator that no longer learns: how easily it is refuted."""

    argumentator_updates: int = 0
    clip: float = 0.4  # this and what follows: authors' code
    entropy: float = 3e-4
    max_grad_norm: float = 2.0

    continues: ClassVar = ("Debaters",)

    def adopt(self, state: DebatersState, earlier: DebatersState) -> DebatersState:
        """The argumentator of an earlier run; everything else begins anew."""
        return dataclasses.replace(state, argumentator=copy(earlier.argumentator))
