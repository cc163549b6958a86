"""Reward design for justifiable decisions: a treatment that wins the debate about it is paid for that.

A judge learns from a log which of two actions is better justified, given a few features of the state.
Agents learn to choose these features: an argumentator for the action that was taken, and a confuser
who answers it and is trained harder, so that what the argumentator says is hard to refute. A baseline
policy learns from the log's own rewards; then every logged action that wins a debate against the
baseline's action is paid a bonus, and a second policy learns from a mixture of both rewards.

A. Sukovic and G. Radanovic, "Reward Design for Justifiable Sequential Decision-Making", ICLR 2024.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.protocols import Policy, require
from habitus.data.dataset import Dataset
from habitus.data.prioritised import Prioritised
from habitus.data.source import DatasetSource
from habitus.envs.worlds.debate import Debate, DebateState, Scorer, check_evidence, margin
from habitus.methods.offline._debaters import Debaters, Opponent
from habitus.methods.offline._judge import BradleyTerry, Judge
from habitus.methods.offline.dueling_dqn import DuelingDQN
from habitus.train.recipe import Stages
from habitus.train.run import Run, merge

CARD = Card(
    title="Reward Design for Justifiable Sequential Decision-Making",
    authors="Sukovic, Aleksa and Radanovic, Goran",
    year=2024,
    venue="International Conference on Learning Representations",
    arxiv="2402.15826",
    kind="recipe",
    entry="debate_reward",
    data=("log",),
    actions=("discrete",),
    paper=True,
)


@dataclasses.dataclass
class Justified(Run):
    """The run of the policies that learned from the mixed reward, and what they were judged by.

    Attributes:
        baseline: the run from the log's own rewards.
        debate: the game, with its judge; None where only the baseline was asked for.
        speakers: who argues, for each seed; or None where the judge sees everything.
    """

    baseline: Run | None = None
    debate: Debate | None = None
    speakers: list[Policy | None] = dataclasses.field(default_factory=list)


def judged(
    game: Debate,
    speaker: Policy | None,
    features: Float[Array, "rows n"],
    mine: Int[Array, "rows"],
    other: Int[Array, "rows"],
    key: PRNGKeyArray,
) -> Float[np.ndarray, "rows"]:
    """How much better the judge finds `mine` than `other`, after one debate about each row.

    Args:
        game: says how many features are revealed, and to whom.
        speaker: makes every move, on either side; with None the judge sees the whole state.
        key: draws who starts, row by row.
    """
    starter = jax.random.bernoulli(key, shape=mine.shape)
    return np.asarray(_judged(game, speaker, *map(jnp.asarray, (features, mine, other, starter))))


@eqx.filter_jit
def _judged(game: Debate, speaker: Policy | None, *rows: Array) -> Float[Array, "rows"]:
    spec = game.spec

    def one(features: Array, mine: Array, other: Array, starter: Array) -> Float[Array, ""]:
        if speaker is None:
            return margin(game.judge, features, jnp.ones_like(features), mine, other)

        def move(state: DebateState, _: None) -> tuple[DebateState, None]:
            feature, _carry = speaker(spec.encode_obs(game.show(state)), (), jax.random.key(0))
            return game.reveal(state, feature), None

        first = game.about(features, jnp.stack([mine, other]), starter)
        return game.margin(jax.lax.scan(move, first, None, game.evidence)[0])

    return jax.vmap(one)(*rows)


def actions_of(policy: Policy, features: Float[Array, "rows n"]) -> Int[Array, "rows"]:
    """What a policy in canonical spaces does in each row."""
    return _actions(policy, jnp.asarray(features))


@eqx.filter_jit
def _actions(policy: Policy, features: Float[Array, "rows n"]) -> Int[Array, "rows"]:
    return jax.vmap(lambda o: policy(o, policy.init(), jax.random.key(0))[0])(features)


def justified_reward(
    log: Dataset, game: Debate, speaker: Policy | None, baseline: Policy, bonus: float, key: PRNGKeyArray
) -> Float[np.ndarray, "rows"]:
    """`r^d = bonus 1[J(a_t, e) > J(a_B, e)]`: 0 in a tie, so also where the baseline does the same (section 3.3)."""
    features, mine = jnp.asarray(log.canonical().obs), jnp.asarray(log.canonical().action)
    won = judged(game, speaker, features, mine, actions_of(baseline, features), key) > 0
    return np.where(won, bonus, 0.0).astype(np.float32)


def relabelled(log: Dataset, reward: Float[np.ndarray, "rows"], weight: float) -> Dataset:
    """The log with `(1 - weight) r + weight r^d`; with weight 0 its own rewards, bit for bit (eq. 2)."""
    require(0 <= weight <= 1, f"weight is a share, in [0, 1], but is {weight}.")
    mixed = np.float32(1 - weight) * np.asarray(log.reward) + np.float32(weight) * reward
    return dataclasses.replace(log, reward=mixed)


def train_judge(log: Dataset, evidence: int, stages: Stages, updates: int, hidden: tuple[int, ...]) -> Judge:
    """The judge: one for all seeds, as it is the measure that they are compared by."""
    learner = BradleyTerry(evidence=evidence, hidden=hidden)
    return learner.judge(stages.learn("judge", learner, log, updates, seeds=stages.seeds[:1]).states[0])


def debate_about(log: Dataset, judge: Scorer, evidence: int, alone: bool = False) -> Debate:
    """The game about the rows of a log."""
    rows = log.canonical()
    return Debate(judge, jnp.asarray(rows.obs), jnp.asarray(rows.action), log.spec.num_actions, evidence, alone)


def train_speakers(game: Debate, debaters: Debaters, generations: int, stages: Stages) -> list[Policy | None]:
    """The argumentator of each seed."""
    arena = dataclasses.replace(game, alone=True) if debaters.against == "isolated" else game
    run = stages.learn("debaters", debaters, arena, debaters.rounds(generations) * debaters.num_envs * game.evidence)
    return [debaters.policy(state) for state in run.states]


def debate_reward(
    data: Dataset,
    *,
    stages: Stages = Stages(),
    weight: float = 0.5,  # lambda, of the debate's reward against the log's own; paper: 0.25 to 1
    evidence: int = 6,  # features revealed in a debate, of both sides together; paper
    speakers: str = "max-min",  # or self-play, isolated; "everything" shows the judge the whole state
    bonus: float = 5.0,  # paid for a won debate; authors' code
    judge_updates: int = 3_000,
    judge_hidden: tuple[int, ...] = (256, 256),  # authors' code
    generations: int = 25,  # authors' code: 500
    confuser_updates: int = 20,  # in each generation; authors' code: 150
    argumentator_updates: int = 6,  # in each generation; authors' code: 5
    debate_hidden: tuple[int, ...] = (128, 128),  # authors' code: (512, 512)
    games: int = 256,  # debates in a round; authors' code
    updates: int = 10_000,  # of the baseline, and of the policy; authors' code: 25,000
    learning_rate: float = 3e-4,  # of both; authors' code: 1e-4
    n_step: int = 3,  # rewards before a target bootstraps; authors' code: 6
    value_bound: float = 20.0,  # within which returns lie; authors' code
    discount: float = 0.99,
    batch_size: int = 256,
    hidden: tuple[int, ...] = (128, 128),
) -> Justified:
    """A policy whose decisions can be justified, from a log with discrete actions and vector observations.

    Raises:
        ConfigError, SpaceMismatch: before anything is compiled, if an argument or the log does not fit.
    """
    require(0 <= weight <= 1, f"weight is a share, in [0, 1], but is {weight}.")
    require(bonus > 0, f"bonus must be above 0, but is {bonus}.")
    known = ("max-min", "self-play", "isolated", "everything")
    require(speakers in known, f"speakers must be one of {', '.join(known)}, but is {speakers!r}.")
    features = data.spec.obs_size
    shown = features if speakers == "everything" else evidence
    check_evidence(shown, features, alone=speakers == "everything")
    q = DuelingDQN(
        learning_rate=learning_rate, discount=discount, n_step=n_step, value_bound=value_bound, batch_size=batch_size,
        hidden=hidden,
    )  # fmt: skip
    source = DatasetSource(data, batch_size, q.window)
    assert q.priority is not None
    baseline = stages.learn("baseline", q, Prioritised(source, *q.priority), updates)
    if weight == 0:
        return Justified(**vars(baseline), baseline=baseline)
    judge = train_judge(data, shown, stages, judge_updates, judge_hidden)
    game = debate_about(data, judge, shown, alone=speakers == "everything")
    voices: list[Policy | None] = [None] * len(stages.seeds)
    if speakers != "everything":
        debaters = Debaters(
            against=cast(Opponent, speakers), confuser_updates=confuser_updates,
            argumentator_updates=argumentator_updates,
            num_envs=games, rollout_length=evidence, hidden=debate_hidden,
        )  # fmt: skip
        voices = train_speakers(game, debaters, generations, stages)
    parts = []
    for seed, voice, state in zip(stages.seeds, voices, baseline.states, strict=True):
        paid = justified_reward(data, game, voice, q.policy(state), bonus, jax.random.key(seed))
        mixed = source.rewarded(relabelled(data, paid, weight).reward)
        parts.append(stages.learn(f"policy-{seed}", q, Prioritised(mixed, *q.priority), updates, seeds=[seed]))
    return Justified(**vars(merge(parts)), baseline=baseline, debate=game, speakers=voices)
