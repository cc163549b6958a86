"""CPO: the step is that of the constrained quadratic problem, and the plain one where no cost binds."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.core.trees import trainable
from habitus.methods.online.cpo import CPO
from habitus.nets.constrained import dual_step
from habitus.nets.trust_region import as_vector, trust_region_step
from habitus.train.loop import learn

from .cases import HIDDEN, KEY, batch_for, box_spec, close

DELTA = 0.02
SPEC = dataclasses.replace(box_spec(), costs=("heat",))


@jax.jit
def solved(g, b, c, curvature):
    natural = jnp.linalg.solve(curvature, jnp.stack([g, b], 1)).T
    return dual_step(g, b, c, natural[0], natural[1], DELTA)


def problems(n=60):
    rng = np.random.default_rng(0)
    for _ in range(n):
        root = rng.normal(size=(2, 2))
        yield rng.normal(size=2), rng.normal(size=2), rng.normal() * 0.2, root @ root.T + 0.2 * np.eye(2)


def region(curvature):
    """A fine grid over the trust region."""
    radius, angle = np.meshgrid(np.linspace(0, 1, 80), np.linspace(0, 2 * np.pi, 721))
    circle = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(-1, 2)
    return np.sqrt(2 * DELTA) * np.linalg.solve(np.linalg.cholesky(curvature).T, circle.T).T


def test_the_step_solves_the_constrained_quadratic_problem():
    feasible = 0
    for g, b, c, curvature in problems():
        step, recovers = (np.asarray(x) for x in solved(g, b, c, curvature))
        assert 0.5 * step @ curvature @ step <= DELTA * 1.001
        grid = region(curvature)
        keeps = c + grid @ b <= 0
        if keeps.any():
            feasible += 1
            assert c + b @ step <= 1e-4
            assert g @ step <= (grid[keeps] @ g).min() + 0.01
        elif recovers:  # as much less cost as the region allows
            assert b @ step == pytest.approx((grid @ b).min(), abs=5e-3)
    assert 30 < feasible < 60


def ready(learner, state, cost):
    rows = dataclasses.replace(batch_for(SPEC, 64, terminated=0.1), cost=cost)
    rollout = jax.tree.map(lambda x: x.reshape(16, 4, *x.shape[1:]), rows)
    return rollout, learner.prepare(state, rollout)


def test_without_costs_the_step_is_that_of_trpo():
    learner = CPO(hidden=HIDDEN, limit=0.1)
    state = learner.init(SPEC, KEY)
    rollout, batch = ready(learner, state, jnp.zeros((64, 1)))
    flat = dataclasses.replace(batch, cost_advantage=jnp.zeros(64))
    ours, metrics = jax.jit(lambda s: constrained(learner, s, flat, -0.1))(state)
    theirs, _ = jax.jit(
        lambda s: trust_region_step(learner.region, learner.actor_loss, s.actor, learner.divergence, s, flat, KEY)
    )(state)
    close(trainable(ours), trainable(theirs), atol=1e-5)
    assert metrics["rejected"] == 0 and 0 < metrics["kl"] <= 1.5 * learner.max_kl


def constrained(learner, state, batch, excess):
    from habitus.nets.constrained import Bounds, constrained_step

    bounds = Bounds(learner.divergence, learner.cost_surrogate, jnp.asarray(excess))
    return constrained_step(learner.region, learner.actor_loss, state.actor, bounds, state, batch, KEY)


def test_above_the_limit_the_expected_cost_falls_and_below_it_it_does_not_pass_it():
    learner = CPO(hidden=HIDDEN)
    state = learner.init(SPEC, KEY)
    _, batch = ready(learner, state, jax.random.uniform(KEY, (64, 1)))
    step = jax.jit(lambda s, excess: constrained(learner, s, batch, excess))
    before = as_vector(state.actor)[0]
    for excess, recovers in ((1.0, 1.0), (1e-3, 0.0), (-1e-3, 0.0)):
        actor, metrics = step(state, excess)
        assert metrics["recovery"] == recovers and metrics["rejected"] == 0
        assert not np.allclose(as_vector(actor)[0], before)
        assert learner.cost_surrogate(actor, state, batch, KEY) <= max(-excess, 0.0) + 1e-6


def test_a_world_without_costs_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match="the world or log reports none"):
        learn("cpo", env="pendulum", steps=2048)
