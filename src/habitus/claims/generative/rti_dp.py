"""RTI-DP: can a diffusion policy plan anew in every step with a few network calls, and does that pay?

Two networks are trained on the same log, one of them on a gripper that is divided by ten; everything else is how
they are executed. The first level is chosen on validation episodes and judged on fresh ones. As the paper's
baseline may be beaten by a better sampler, DDIM with as many calls is reported beside it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.claims.generative import _picking
from habitus.claims.harness import Claim, Measure, Outcome, above, fact
from habitus.core.experience import Action, Step
from habitus.core.protocols import Env
from habitus.core.trees import select
from habitus.envs.worlds.planar_pick import HALF, PickState
from habitus.envs.wrappers import Wrapper
from habitus.measure.statistics import paired_difference
from habitus.methods.generative.diffusion_policy import DiffusionPolicy
from habitus.methods.generative.rti_dp import RTIDP
from habitus.train.loop import learn
from habitus.train.run import Run

JUMP = 0.15  # how far a target moves
LATEST = 12  # steps after the first grasp in which it does
LEAST_SUCCESS = 0.4  # of whole chains, or nothing is learned from the comparison
MARGIN, CHEAPER = 0.05, 5


@dataclasses.dataclass(frozen=True)
class Budget:
    """Sizes of the experiment."""

    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    demonstrations: int = 500
    steps: int = 30_000
    batch_size: int = 128
    levels: int = 50
    first: tuple[int, ...] = (0, 1, 2, 3, 5, 8, 12, 20, 49)
    validation: int = 100
    episodes: int = 200
    width: int = 256
    blocks: int = 2


FULL = Budget()
SMOKE = Budget(
    seeds=(10, 11), demonstrations=3, steps=10, batch_size=8, levels=4, first=(0, 3), validation=2, episodes=2,
    width=16, blocks=1,
)  # fmt: skip


class Jump(eqx.Module):
    """A state of the world inside, when the target jumps (steps to go, -1 before the grasp) and whether it has."""

    inner: PickState
    to_go: Int[Array, ""]
    jumped: Bool[Array, ""]


class JumpingTarget(Wrapper):
    """`PlanarPick` in which one target moves by `JUMP` a while after the first grasp."""

    def reset(self, key: PRNGKeyArray) -> tuple[Jump, Array]:
        state, obs = self.env.reset(key)
        return Jump(state, jnp.full((), -1, jnp.int32), jnp.array(False)), obs

    def inner(self, state: Jump) -> PickState:
        return state.inner

    def step(self, state: Jump, action: Action, key: PRNGKeyArray) -> tuple[Jump, Step]:
        step_key, delay_key, which_key, angle_key = jax.random.split(key, 4)
        inner, step = self.env.step(state.inner, action, step_key)
        grasped = (inner.held >= 0) & (state.to_go < 0) & ~state.jumped
        to_go = jnp.where(grasped, jax.random.randint(delay_key, (), 1, LATEST), state.to_go - (state.to_go > 0))
        now = (to_go == 0) & ~state.jumped
        angle = jax.random.uniform(angle_key, maxval=2 * jnp.pi)
        moved = jnp.where(
            (jnp.arange(2) == jax.random.randint(which_key, (), 0, 2))[:, None],
            inner.targets + JUMP * jnp.stack([jnp.cos(angle), jnp.sin(angle)]),
            inner.targets,
        )
        moved = jnp.clip(moved, -HALF, HALF)
        after = select(now, dataclasses.replace(inner, targets=moved), inner)
        world: Any = self.env
        shown = jnp.where(now, world.observe(after), step.obs)
        return Jump(after, to_go, state.jumped | now), dataclasses.replace(step, obs=shown)


def run(budget: Budget) -> Outcome:
    """Two trainings, and every way to execute them."""
    world = _picking.world()
    log = _picking.demonstrations(world, budget.demonstrations)
    base = RTIDP(levels=budget.levels, batch_size=budget.batch_size, width=budget.width, blocks=budget.blocks,
                 warm_levels=(0,))  # fmt: skip
    runs = {
        kind: learn(dataclasses.replace(base, switch=kind), log, budget.steps, seeds=budget.seeds, points=5)
        for kind in ("clip", "scale")
    }
    success, calls = _arms(runs, world, budget)
    chosen = _choose(success["validation"], budget)
    moving = _moving(runs, chosen, budget)
    notes = [
        f"{budget.demonstrations} demonstrations of an expert with eight ways to do it, recorded under noise of 0.2.",
        "Batches are half of the card's, and networks are residual MLPs.",
        f"The first level {chosen} was chosen on {budget.validation} validation episodes; judged on fresh ones.",
        "In the moving-target episodes one target moves by 0.15 up to twelve steps after the first grasp.",
        "DDIM has the unscaled network and as many calls as the arm of the same first level.",
    ]
    figures = {
        kind: {arm: x.tolist() for arm, x in found.items()} for kind, found in (success | {"moving": moving}).items()
    } | {"network calls per action": calls}
    return Outcome(_measures(success["test"], moving, calls, chosen, budget), notes, figures)


def _with(run: Run, **changes: Any) -> Run:
    """The same networks, executed otherwise."""
    return dataclasses.replace(run, learner=dataclasses.replace(run.learner, **changes))


def _whole(run: Run, executed: int, steps: int | None = None, eta: float = 1.0) -> Run:
    """The same network, with a new plan from pure noise every `executed` steps."""
    ours = run.learner
    assert isinstance(ours, RTIDP)
    size: dict[str, Any] = {
        name: getattr(ours, name) for name in ("levels", "predicted", "observed", "width", "blocks")
    }
    return dataclasses.replace(run, learner=DiffusionPolicy(executed=executed, sampling_steps=steps, eta=eta, **size))


def _arms(runs: dict[str, Run], world: Env, budget: Budget) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Success of each arm in validation and test episodes, and its network calls per action."""
    arms = {f"DDPM, every {n}": _whole(runs["clip"], n) for n in (1, 2, 4)}
    for k in budget.first:
        levels = tuple(range(k, -1, -1))
        arms[f"DDIM, {k + 1} calls"] = _whole(runs["clip"], 1, steps=k + 1, eta=0.0)
        arms[f"scale from {k}"] = _with(runs["scale"], warm_levels=levels)
        arms[f"clip from {k}"] = _with(runs["clip"], warm_levels=levels)
    some = tuple(range(min(3, budget.levels - 1), -1, -1))
    arms["scale, noise added"] = _with(runs["scale"], warm_levels=some, renoise=True)
    arms["switches as they are"] = _with(runs["clip"], warm_levels=some, switch="none")
    sets = {"validation": budget.validation, "test": budget.episodes}
    success = {
        kind: {arm: _picking.successes(r.policies, world, n, [s + 500 * i for s in budget.seeds])
               for arm, r in arms.items()}
        for i, (kind, n) in enumerate(sets.items())
    }  # fmt: skip
    return success, {arm: _picking.calls_per_action(r.policies[0], world) for arm, r in arms.items()}


def _choose(validation: dict[str, Float[np.ndarray, "seeds"]], budget: Budget) -> int:
    """The first level, 8 at most, of the scaled arm that succeeds most often."""
    return max((k for k in budget.first if k <= 8), key=lambda k: float(validation[f"scale from {k}"].mean()))


def _moving(runs: dict[str, Run], chosen: int, budget: Budget) -> dict[str, Float[np.ndarray, "seeds"]]:
    """Success where a target moves."""
    world: Any = _picking.world()
    jumping = dataclasses.replace(world, env=JumpingTarget(world.env))
    arms = {
        "scale": _with(runs["scale"], warm_levels=tuple(range(chosen, -1, -1))),
        "DDPM, every 1": _whole(runs["clip"], 1),
        "DDPM, every 4": _whole(runs["clip"], 4),
    }
    seeds = [s + 1_000 for s in budget.seeds]
    return {arm: _picking.successes(r.policies, jumping, budget.episodes, seeds) for arm, r in arms.items()}


def _measures(
    success: dict[str, Any], moving: dict[str, Any], calls: dict[str, float], chosen: int, budget: Budget
) -> list[Measure]:
    """The conditions."""
    best = max((f"DDPM, every {n}" for n in (1, 2, 4)), key=lambda arm: float(success[arm].mean()))
    ours, whole, three = f"scale from {chosen}", "DDPM, every 1", min(3, budget.levels - 1)
    near = f"scale from {three}", f"clip from {three}"
    mean = {arm: float(x.mean()) for arm, x in success.items()}
    return [
        fact(f"success, {best}", mean[best], f"at least {LEAST_SUCCESS}, or the comparison says nothing",
             mean[best] >= LEAST_SUCCESS),
        fact(f"success, {ours} - {best}", mean[ours], f"not below by more than {MARGIN}",
             mean[ours] >= mean[best] - MARGIN, mean[best]),
        above(f"success, {ours} - {best}", mean[ours], mean[best],
              paired_difference(success[ours], success[best]), -2 * MARGIN),
        fact(f"network calls per action, {ours}", calls[ours], f"a {CHEAPER}th of {whole} or fewer",
             CHEAPER * calls[ours] <= calls[whole], calls[whole]),
        above(f"success, {near[0]} - {near[1]}", mean[near[0]], mean[near[1]],
              paired_difference(success[near[0]], success[near[1]])),
        above("success after a jump, scale - DDPM, every 4", float(moving["scale"].mean()),
              float(moving["DDPM, every 4"].mean()), paired_difference(moving["scale"], moving["DDPM, every 4"])),
    ]  # fmt: skip


CLAIM = Claim(
    statement="Going on from the last plan, a diffusion policy plans anew in every step with a fraction of the "
    "network calls, at the success of whole chains, if switches are scaled down.",
    run=run,
    full=FULL,
    smoke=SMOKE,
    seeds=FULL.seeds,
)
