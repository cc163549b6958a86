"""Which steps of a window are seen, predicted and executed."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError
from habitus.data.dataset import Dataset
from habitus.data.source import DatasetSource
from habitus.execution.denoising import down
from habitus.execution.horizon import RecedingHorizon
from habitus.execution.planner import Sampled
from habitus.generative.chunks import Chunking
from habitus.nets.normalise import Standardiser

KEY = jax.random.key(0)


def log_of(lengths=(4, 6)):
    """Episodes whose observations and actions count the rows."""
    rows, ends = np.arange(sum(lengths)), np.cumsum(lengths) - 1
    return Dataset.from_arrays(
        obs=rows[:, None].astype(np.float32), next_obs=rows[:, None] + np.float32(1),
        action=(rows[:, None] / 100).astype(np.float32), reward=rows.astype(np.float32),
        terminated=np.isin(rows, ends), truncated=np.zeros(len(rows), bool),
        action_space=spaces.Box(-1, 1, (1,)), observation_space=spaces.Box(-np.inf, np.inf, (1,)),
    )  # fmt: skip


LOG, CUT = log_of(), Chunking(predicted=5, observed=3, executed=2)


def test_windows_reach_back_and_are_clipped_to_their_episode():
    windows = LOG.windows(CUT.predicted, np.array([0, 4, 6, 9]), CUT.before)
    assert CUT.seen(windows)[..., 0].tolist() == [[0, 0, 0], [4, 4, 4], [4, 5, 6], [7, 8, 9]]
    rows = (CUT.actions(windows)[..., 0] * 100).round().astype(int).tolist()
    assert rows == [[0, 0, 0, 1, 2], [4, 4, 4, 5, 6], [4, 5, 6, 7, 8], [7, 8, 9, 9, 9]]
    assert windows.valid.tolist() == [[False, False, True, True, True]] * 2 + [[True] * 5, [True] * 3 + [False] * 2]
    assert windows.time.tolist()[1:] == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4], [3, 4, 5, 5, 5]]
    assert CUT.now == slice(2, 4) and windows.to_go[3, 2:].tolist() == [9, 9, 9]
    with pytest.raises(ConfigError, match="before its row"):
        LOG.windows(3, np.array([0]), -1)


@pytest.mark.parametrize("resident", [0, 2**30])
def test_a_source_draws_the_same_windows(resident):
    source = DatasetSource(LOG, 128, window=5, before=2, resident=resident)
    _, batch = source.draw((), None, KEY)
    rows = np.asarray(batch.steps.reward[:, 2]).astype(int)
    expected = LOG.canonical().windows(5, rows, 2)
    assert jax.tree.all(jax.tree.map(np.array_equal, batch, expected))
    assert len(set(rows)) == len(LOG) and batch.valid[:, 2].all() and not batch.valid[:, 0].all()
    for bad in (dict(window=2), dict(), dict(window=5, from_start=True)):
        with pytest.raises(ConfigError, match="before=2"):
            DatasetSource(LOG, 8, before=2, resident=resident, **bad)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="predict 4 or more"):
        Chunking(predicted=3, observed=3, executed=2)
    with pytest.raises(ConfigError, match="observed must be 1"):
        Chunking(predicted=3, observed=0, executed=2)


class Counting(eqx.Module):
    """Plans `first + 0.1 i`, where first is the sum of what it sees."""

    def __call__(self, seen, key):
        return seen.sum() + 0.1 * jnp.arange(5.0)[:, None]


def test_a_plan_that_is_drawn_is_executed_where_the_windows_say():
    policy = RecedingHorizon(Sampled(Counting(), CUT.predicted, 1, (1,), calls=4), CUT.executed, CUT.observed)
    carry, taken = policy.init(), []
    for obs in (1.0, 2.0, 4.0, 8.0, 16.0):
        action, carry = policy(jnp.asarray([obs]), carry, KEY)
        taken.append(float(action[0]))
    sums = [3, 3, 1 + 2 + 4, 1 + 2 + 4, 4 + 8 + 16]  # before the first step the first observation is repeated
    np.testing.assert_allclose(taken, np.array(sums) + [0.2, 0.3, 0.2, 0.3, 0.2], atol=1e-5)
    assert policy.report(carry)["calls"] == 12 and policy.report(carry)["plans"] == 3
    with pytest.raises(ConfigError, match="from nothing"):
        policy.planner(jnp.zeros((3, 1)), KEY, down(jnp.zeros((5, 1)), (0,), jump=True))


# --- scales


def test_extremes_become_one_and_what_is_constant_is_only_shifted():
    values = np.array([[0.0, 5.0, -1.0], [4.0, 5.0, 3.0], [1.0, 5.00005, 1.0]])
    scale = Standardiser.extent(values)
    found = scale(jnp.asarray(values, jnp.float32))
    np.testing.assert_allclose(found[:, 0], [-1, 1, -0.5], atol=1e-6)
    np.testing.assert_allclose(found[:, 1], [0, 0, 5e-5], atol=1e-6)
    np.testing.assert_allclose(found[:, 2], [-1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(scale.undo(found), values, atol=1e-6)


def test_moments_become_zero_and_one_and_what_is_constant_is_only_shifted():
    values = np.array([[0.0, 5.0], [4.0, 5.0], [2.0, 5.0]])
    scale = Standardiser.moments(values)
    found = scale(jnp.asarray(values, jnp.float32))
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found.std(0), [1, 0], atol=1e-6)
    np.testing.assert_allclose(scale.undo(found), values, atol=1e-6)
