"""TQ and SACo: what a log exploits and what it explores, and the logs that show why both matter.

Two numbers say much about which offline method will work on a log. Trajectory quality is its mean
return, from 0 for a random policy to 1 for the best policy of an online run: cloning needs it.
Coverage is how many distinct pairs of state and action it holds, relative to the replay of that run:
value learning without a constraint needs it. The study compares methods on logs that come from one
online run and differ in both. In a deterministic world the count of pairs bounds the exponential of
the entropy of visits; where transitions are random it says less.

K. Schweighofer et al., "A Dataset Perspective on Offline Reinforcement Learning", CoLLAs 2022.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.card import Card
from habitus.core.errors import ConfigError, DataError
from habitus.core.experience import Transition, flatten_time
from habitus.core.protocols import Env, Learner, Policy, require
from habitus.data.dataset import COLUMNS, Dataset
from habitus.data.inspect import reference_log
from habitus.data.measures import (
    entropy_of_visits,
    mean_return,
    of_equal_size,
    state_action_coverage,
    trajectory_quality,
    unique_pairs,
)
from habitus.envs.registry import World, canonical, make, name_of
from habitus.train.collect import collect, run_episodes, start
from habitus.train.engine import PureEngine
from habitus.train.sources import Replay, Uniform

CARD = Card(
    title="A Dataset Perspective on Offline Reinforcement Learning",
    authors="Schweighofer, Kajetan and Dinu, Marius-Constantin and Radler, Andreas and Hofmarcher, Markus "
    "and Patil, Vihang Prakash and Bitto-Nemling, Angela and Eghbal-zadeh, Hamid and Hochreiter, Sepp",
    year=2022,
    venue="Conference on Lifelong Learning Agents",
    arxiv="2111.04714",
    kind="instrument",
    entry="dataset_perspective",
    data=("log",),
    paper=True,
)

NOISE = 0.2  # share of uniform actions in the noisy log; paper
MIXED = 0.8  # share of random transitions in the mixed log; paper
_EVALUATION_SEED = 2_000_000
_LOG_KEY = 1_000_003  # sets the keys of the logs apart from those of the run


# --- the instrument


@dataclasses.dataclass(frozen=True)
class Perspective:
    """A log as its two numbers, and what they are made of.

    Attributes:
        name: of the log.
        transitions: its size.
        mean_return: of complete episodes, undiscounted.
        trajectory_quality: TQ, or None without reference returns.
        coverage, log_coverage: SACo and lSACo, or None without a reference log.
        unique_pairs: u, distinct pairs of state and action.
        visit_entropy: of those pairs [nats]; its exponential is at most `unique_pairs`.
    """

    name: str
    transitions: int
    mean_return: float
    trajectory_quality: float | None
    coverage: float | None
    log_coverage: float | None
    unique_pairs: float
    visit_entropy: float

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each figure."""
        no_references = "unknown: the log names no random_return and expert_return"
        no_replay = "unknown: give the replay of an online run as the reference"
        return [
            ("log", f"{self.name}, {self.transitions:,} transitions"),
            ("trajectory quality (TQ)", _figure(self.trajectory_quality, no_references)),
            ("state-action coverage (SACo)", _figure(self.coverage, no_replay)),
            ("coverage of logarithms (lSACo)", _figure(self.log_coverage, no_replay)),
            ("mean return", f"{self.mean_return:.4g}"),
            ("distinct pairs", f"{self.unique_pairs:,.0f}"),
            ("entropy of visits", f"{self.visit_entropy:.3f} nats"),
        ]


def dataset_perspective(dataset: Dataset, reference: Dataset | None = None) -> Perspective:
    """Measures a log.

    Args:
        reference: the replay of an online run in the same world; of a standard data set the `replay`
            split of its task unless given. The longer of the two is cut, as coverage grows with size.

    Raises:
        DataError: if no episode is complete, or its reference returns are equal.
    """
    reference = reference or reference_log(dataset)
    known = {"random_return", "expert_return"} <= dataset.meta.keys()
    coverage = log_coverage = None
    if reference is not None:
        pair = of_equal_size(dataset, reference)
        coverage, log_coverage = (state_action_coverage(*pair, log=log) for log in (False, True))
    return Perspective(
        name=dataset.name,
        transitions=len(dataset),
        mean_return=mean_return(dataset),
        trajectory_quality=trajectory_quality(dataset) if known else None,
        coverage=coverage,
        log_coverage=log_coverage,
        unique_pairs=unique_pairs(dataset, reference),
        visit_entropy=entropy_of_visits(dataset, reference),
    )


def _figure(value: float | None, missing: str) -> str:
    return missing if value is None else f"{value:.3f}"


# --- the study: one online run, and logs made from it


@dataclasses.dataclass(frozen=True)
class OnlineRun:
    """What an online learner saw and became.

    Attributes:
        world: where it learned, in canonical spaces.
        policy: its final policy, in canonical spaces.
        replay: every transition of the run, in order.
        scores: mean return of each of the evaluations along the run.
        seed: of the run.
    """

    world: Env
    policy: Policy
    replay: Dataset
    scores: tuple[float, ...]
    seed: int


def online_runs(
    learner: Learner,
    env: World,
    steps: int,
    seeds: Sequence[int],
    evaluations: int = 50,
    episodes: int = 50,
    **options: Any,
) -> list[OnlineRun]:
    """Trains `learner` online for `steps` steps a seed, in one copy of the world each, and keeps all it saw.

    Args:
        learner: `DQN`, or `TabularQ` where observations are integers.
        evaluations: how often to evaluate along the way, always on the same `episodes` first states.
        options: of `Replay`.

    Raises:
        ConfigError: if the world is not a compiled one, or `steps` are not a whole number of draws.
    """
    world = canonical(make(env))
    if not isinstance(world, Env):
        raise ConfigError("the study rolls out compiled worlds; give a built-in or gymnax one.")
    require(evaluations > 0, f"evaluations must be above 0, but is {evaluations}.")
    options = {"batch_size": getattr(learner, "batch_size", 128)} | options
    source = Replay(world, num_envs=1, capacity=steps, **options)
    draws = source.draws(steps)
    require(source.steps(draws) == steps, f"steps={steps} end amid a draw; {source.steps(draws)} would not.")
    spec = dataclasses.replace(source.spec, updates=draws * source.updates_per_draw)
    engine = PureEngine(learner, source, spec, seeds, None)
    scores = []
    for part in np.diff(np.linspace(0, draws, min(evaluations, draws) + 1).astype(int)):
        engine.advance(int(part))
        found = [run_episodes(engine.policy(i), world, episodes, _EVALUATION_SEED) for i in range(len(seeds))]
        scores.append([float(each.returns.mean()) for each in found])
    seen = engine.own.source.buffer.data
    return [
        OnlineRun(
            world=world,
            policy=engine.policy(i),
            replay=_log(world, jax.tree.map(lambda x, i=i: x[i], seen)),
            scores=tuple(row[i] for row in scores),
            seed=seed,
        )
        for i, seed in enumerate(seeds)
    ]


def study_logs(run: OnlineRun) -> dict[str, Dataset]:
    """Logs of the size of the run's replay that differ in quality and coverage.

    The five kinds of the paper: `random` (uniform actions), `expert` (the final policy), `noisy` (it,
    with a fifth of the actions uniform), `replay` (all of training), `mixed` (four fifths random, one
    fifth expert). And four that fill the plane of TQ and SACo between them: `near-expert` (a twentieth
    uniform), `half` (random and expert), `sparse` (a twentieth of the random log, repeated), `single`
    (one episode of the expert, repeated). Each names its reference returns: the mean of the random log
    and the best evaluation of the run.
    """
    size, world = len(run.replay), run.world
    uniform = Uniform.over(world.spec, run.policy)
    behaviours = {
        "random": uniform,
        "expert": run.policy,
        "noisy": Distracted(run.policy, uniform, NOISE),
        "near-expert": Distracted(run.policy, uniform, 0.05),
    }
    keys = jax.random.split(jax.random.fold_in(jax.random.key(run.seed), _LOG_KEY), len(behaviours))
    logs = {"replay": run.replay}
    for (name, policy), key in zip(behaviours.items(), keys, strict=True):
        logs[name] = _log(world, _roll_out(world, policy, key, size))
    random, expert = logs["random"], logs["expert"]
    for name, share in (("mixed", MIXED), ("half", 0.5)):
        rows = whole_episodes(random, round(share * size))
        logs[name] = _assembled((random, np.arange(rows)), (expert, np.arange(size - rows)))
    for name, log, most in (("sparse", random, size // 20), ("single", expert, int(expert.lengths[0]))):
        logs[name] = _assembled((log, np.resize(np.arange(whole_episodes(log, most)), size)))
    shared = {
        "task": name_of(world),
        "seed": run.seed,
        "horizon": world.horizon,
        "random_return": mean_return(random),
        "expert_return": max(run.scores),
    }
    return {name: dataclasses.replace(log, meta=shared | {"split": name}) for name, log in logs.items()}


class Distracted(Policy):
    """A policy whose actions are replaced by uniform ones with probability `share`."""

    policy: Policy
    uniform: Uniform
    share: float

    def init(self) -> Any:
        return self.policy.init()

    def rewarded(self, carry: Any, reward: Float[Array, ""]) -> Any:
        return self.policy.rewarded(carry, reward)

    def __call__(self, obs: Any, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        policy_key, uniform_key, choice_key = jax.random.split(key, 3)
        action, carry = self.policy(obs, carry, policy_key)
        other, _ = self.uniform(obs, carry, uniform_key)
        return jnp.where(jax.random.bernoulli(choice_key, self.share), other, action), carry


def whole_episodes(log: Dataset, rows: int) -> int:
    """How many of the first `rows` rows are of complete episodes.

    Raises:
        DataError: if not even the first episode is that short.
    """
    ends = log.ends[log.complete & (log.ends < rows)]
    if len(ends) == 0:
        raise DataError(f"{log.name} completes no episode within {rows} rows; make the online run longer.")
    return int(ends[-1]) + 1


@eqx.filter_jit
def _roll_out(world: Env, policy: Policy, key: PRNGKeyArray, steps: int) -> Transition:
    start_key, run_key = jax.random.split(key)
    return flatten_time(collect(world, start(world, 1, policy, start_key), policy, run_key, steps)[1])


def _log(world: Env, rows: Transition) -> Dataset:
    """Transitions in order as a log; the last episode is as a rule not complete."""
    arrays: dict[str, Any] = {name: np.asarray(column) for name, column in rows.columns.items()}
    arrays |= {"observation_space": world.observation_space, "action_space": world.action_space}
    return Dataset.from_arrays(**arrays, validate=False)


def _assembled(*parts: tuple[Dataset, Int[np.ndarray, "..."]]) -> Dataset:
    """Rows of logs one after the other; a part ends with an episode, but for the last, which may be cut."""
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(log, name)[rows] for log, rows in parts]) for name in COLUMNS
    }
    for space in ("observation_space", "action_space"):
        arrays[space] = getattr(parts[0][0], space)
    return Dataset.from_arrays(**arrays, validate=False)
