"""The best of several actions and of several plans."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.core.protocols import Policy
from habitus.execution.best_of_n import BestOfN
from habitus.execution.horizon import RecedingHorizon
from habitus.execution.planner import BestPlan, best_of

from .parts import KEY, Draw, denoising, walk

WINDOW = jnp.zeros((1, 2))


class Wander(Policy):
    """A random walk; counts what it earned besides."""

    def init(self):
        return jnp.zeros(2)

    def rewarded(self, carry, reward):
        return carry.at[1].add(reward)

    def report(self, carry):
        return {"earned": carry[1]}

    def __call__(self, obs, carry, key):
        carry = carry.at[0].add(jax.random.normal(key))
        return carry[:1], carry


class Near(eqx.Module):
    """Likes what is near a place."""

    place: float = 0.0

    def __call__(self, obs, x):
        return -jnp.abs(x - self.place).sum()


def test_more_candidates_are_never_worse_and_one_is_a_draw():
    scores = []
    for n in (1, 4, 32):
        plan = BestPlan(Draw(), Near(), n)(WINDOW, KEY)
        scores.append(float(Near()(WINDOW, plan.chunk)))
        assert plan.calls == n
    assert scores == sorted(scores) and scores[0] < scores[-1]
    only = BestPlan(Draw(), Near(), 1)(WINDOW, KEY).chunk
    np.testing.assert_array_equal(only, Draw()(WINDOW, jax.random.fold_in(KEY, 0)).chunk)


def test_the_first_of_equals_and_never_what_has_no_score():
    assert best_of(jnp.asarray([1.0, 3.0, 3.0])) == 1 and best_of(jnp.asarray([jnp.nan, -9.0, jnp.nan])) == 1
    assert best_of(jnp.full(3, jnp.nan)) == 0
    scores = jax.random.normal(KEY, (7,))
    order = jax.random.permutation(KEY, 7)
    assert order[best_of(scores[order])] == best_of(scores)


def test_the_carry_of_the_chosen_action_goes_on():
    policy = BestOfN(Wander(), Near(1.0), 16)
    actions, carries = walk(policy, 4)
    assert [c[0] for c in carries] == actions[:, 0].tolist()
    assert np.abs(actions - 1).max() < 0.5 < np.abs(walk(Wander(), 4)[0] - 1).max()
    carry = policy.rewarded(carries[-1], jnp.asarray(3.0))
    assert policy.report(carry) == {"earned": 3.0}


def test_plans_within_a_horizon_and_actions_of_a_horizon():
    inner = RecedingHorizon(BestPlan(denoising(4, 5, 0.0, 0.5), Near(0.3), 8), 2)
    assert [int(c.calls) for c in walk(inner, 3)[1]] == [40, 40, 80]
    outer = BestOfN(RecedingHorizon(denoising(4, 5, 0.0, 0.5), 2), Near(0.3), 8)
    actions, carries = walk(outer, 3)
    assert [int(c.calls) for c in carries] == [5, 5, 10]  # of the chosen one
    assert np.abs(actions[[0, 2]] - 0.3).max() < 0.2


class Varied(Draw):
    """Candidate i of n shows i / n in every place."""

    share: jax.Array = eqx.field(default_factory=lambda: jnp.zeros(()))

    def candidate(self, i, n):
        return Varied(share=i / n)

    def __call__(self, window, key, start=None):
        plan = super().__call__(window, key, start)
        return eqx.tree_at(lambda p: p.chunk, plan, jnp.full_like(plan.chunk, self.share))


def test_candidates_may_differ_by_more_than_chance():
    for place, best in ((0.0, 0.0), (0.5, 0.5), (1.0, 0.75)):
        assert (BestPlan(Varied(), Near(place), 4)(WINDOW, KEY).chunk == best).all()


def test_none_is_too_few():
    for make in (lambda: BestOfN(Wander(), Near(), 0), lambda: BestPlan(Draw(), Near(), 0)):
        with pytest.raises(ConfigError, match="n must be 1"):
            make()
