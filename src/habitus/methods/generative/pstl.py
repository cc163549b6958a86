"""Diverse driving by rules: one logged outcome of a scene becomes many plans, each asked for by its rules.

The rules are formulas of signal temporal logic with a few parameters: speeds, distances, which lane. What each log
keeps of them is calibrated; with other manoeuvres and looser parameters, gradient descent on the formulas' robustness
then finds many plans where the log had one. A diffusion model clones these, given the scene and the parameters, so that
it can be told what to do; and a small network repairs those of its plans that break the rules, in ways that differ.
Drawing and repairing takes a fraction of the time of optimising, or of guiding each step of the denoising.

Y. Meng and C. Fan, "Diverse Controllable Diffusion Policy with Signal Temporal Logic", IEEE Robotics and Automation
Letters 2024.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from habitus.core.card import Card
from habitus.core.errors import ConfigError
from habitus.core.protocols import Env, HostEnv, require
from habitus.data.dataset import Dataset
from habitus.data.source import DatasetSource
from habitus.envs.worlds.lane_scene import LaneScene
from habitus.envs.wrappers import innermost
from habitus.methods.generative._lane_plans import Search, augmented, logged, plans_of
from habitus.methods.generative._plan_diffusion import PlanDiffusion, PlanSampler
from habitus.methods.generative._refine import Refined, Refiner, draw_all
from habitus.train.recipe import Stages
from habitus.train.run import Run, merge

CARD = Card(
    title="Diverse Controllable Diffusion Policy with Signal Temporal Logic",
    authors="Meng, Yue and Fan, Chuchu",
    year=2024,
    venue="IEEE Robotics and Automation Letters",
    arxiv="2503.02924",
    kind="recipe",
    entry="pstl",
    data=("log",),
    actions=("continuous",),
    paper=True,
)


@dataclasses.dataclass
class Ruled(Run):
    """The run of the refiners, whose policies drive, and what they came from.

    Attributes:
        plans: what the diffusion was trained on.
        diffusion: its run; its policies answer a case with a plan.
    """

    plans: Dataset | None = None
    diffusion: Run | None = None


def world_of(env: Env | HostEnv) -> LaneScene:
    """The lane scene in a world, whatever its wrappers.

    Raises:
        ConfigError: if there is none.
    """
    inner = innermost(env)
    if not isinstance(inner, LaneScene):
        raise ConfigError(f"the rules are about lane-scene, but the world is a {type(inner).__name__}.")
    return inner


def drawn(sampler: PlanSampler, plans: Dataset, rows: int, siblings: int, key: PRNGKeyArray) -> Dataset:
    """For `rows` cases of a data set, drawn at random, `siblings` plans each; the reward is the share that is right."""
    pick_key, draw_key = jax.random.split(key)
    picked = np.asarray(jax.random.randint(pick_key, (rows,), 0, len(plans)))
    cases = np.asarray(plans.canonical().obs[picked])
    found, rho = draw_all(Refined(sampler), cases, siblings, draw_key)
    return plans_of(cases, found.reshape(rows, -1), (rho > 0).mean(1), siblings)


def pstl(
    data: Dataset,
    env: Env | HostEnv,
    *,
    stages: Stages = Stages(),
    horizon: int = 20,  # steps of a plan; paper
    randoms: int = 32,  # plans for each scene and manoeuvre; authors' code: 64
    search_iterations: int = 300,  # of Adam; authors' code: 2000
    search_learning_rate: float = 0.02,  # authors' code: 0.005
    temperature: float = 0.05,  # of the smooth robustness, 1 / tau; authors' code: 0.01
    levels: int = 50,  # of noise; authors' code: 100
    noise_share: float = 1.0,  # of the cosine schedule's beta; authors' code: 0.2
    updates: int = 10_000,  # of the diffusion
    batch_size: int = 256,  # plans in one of these
    hidden: tuple[int, ...] = (256, 256),  # of both networks; authors' code
    siblings: int = 32,  # plans of a case that are repaired together; authors' code: 64
    shards: int = 2,  # groups of them within which they shall differ; authors' code: 4
    diversity: float = 1.0,  # weight of the expected number of different plans; authors' code
    stl_weight: float = 0.0,  # weight of keeping the rules; 0 in the paper's final recipe
    pool: int = 500,  # cases that the repair is learned on
    refine_updates: int = 2_000,
    refine_batch_size: int = 8,  # cases in one of these
    learning_rate: float = 3e-4,  # of both; authors' code
    seed: int = 0,  # of the augmentation, which all seeds share
) -> Ruled:
    """A policy that drives by rules, from a log with one outcome of each scene and the world that it is of.

    Raises:
        ConfigError, SpaceMismatch, DataError: before anything is compiled, if an argument or the log does not fit.
    """
    world = world_of(env)
    require(horizon >= 2, f"horizon must be 2 steps or more, but is {horizon}.")
    require(pool >= 1, f"pool must be 1 or more, but is {pool}.")
    search = Search(search_learning_rate, search_iterations, temperature=temperature)
    diffusion = PlanDiffusion(
        road=world, levels=levels, noise_share=noise_share, candidates=min(5, levels), learning_rate=learning_rate,
        batch_size=batch_size, hidden=hidden,
    )  # fmt: skip
    refiner = Refiner(
        siblings=siblings, shards=shards, diversity=diversity, stl_weight=stl_weight, temperature=temperature,
        drive_siblings=4 * shards, learning_rate=learning_rate, batch_size=refine_batch_size, hidden=hidden,
    )  # fmt: skip
    plans = augmented(logged(data, world, horizon), world, jax.random.key(seed), randoms, search)
    cloned = stages.learn("diffusion", diffusion, DatasetSource(plans, batch_size), updates)
    parts = []
    for own_seed, state in zip(stages.seeds, cloned.states, strict=True):
        sampler = diffusion.policy(state)
        rows = drawn(sampler, plans, pool, siblings, jax.random.key(own_seed))
        learner = dataclasses.replace(refiner, sampler=sampler)
        source = DatasetSource(rows, refine_batch_size)
        parts.append(stages.learn(f"refine-{own_seed}", learner, source, refine_updates, seeds=[own_seed]))
    run = dataclasses.replace(merge(parts), spec=data.spec, env=env)  # type: ignore[arg-type]
    return Ruled(**vars(run), plans=plans, diffusion=cloned)
