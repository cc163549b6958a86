"""Prioritised replay: rows come in proportion to their priorities, and weights undo that."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.data.dataset import Dataset
from habitus.data.prioritised import Priorities, Prioritised
from habitus.data.source import DatasetSource

ROWS = 8
OBS = np.arange(ROWS, dtype=np.float32)[:, None]
LOG = Dataset.from_arrays(
    obs=OBS, next_obs=OBS, action=np.zeros(ROWS, int), reward=OBS[:, 0], terminated=np.ones(ROWS, bool),
    truncated=np.zeros(ROWS, bool), validate=False,
)  # fmt: skip


def source(**settings):
    return Prioritised(DatasetSource(LOG, 4_000), **settings)


def seen(batch):
    return np.bincount(np.asarray(batch.rows.obs[:, 0], int), minlength=ROWS) / 4_000


def test_before_anything_is_known_rows_are_drawn_uniformly():
    replay = source()
    _, batch = replay.draw(replay.init(None, jax.random.key(0)), None, jax.random.key(1))
    np.testing.assert_allclose(seen(batch), 1 / ROWS, atol=0.03)
    np.testing.assert_allclose(batch.weight, 1.0, rtol=1e-5)


def test_rows_come_by_the_power_of_their_priority_and_weights_undo_it():
    replay, priority = source(alpha=0.5, beta=1.0), jnp.arange(1.0, ROWS + 1) ** 2
    state = replay.reprioritise(Priorities(jnp.zeros(ROWS), jnp.arange(ROWS)), priority)
    _, batch = replay.draw(state, None, jax.random.key(0))
    wanted = np.arange(1, ROWS + 1) / np.arange(1, ROWS + 1).sum()
    np.testing.assert_allclose(seen(batch), wanted, atol=0.03)
    by_row = np.asarray(batch.weight) * np.asarray(batch.rows.obs[:, 0] + 1)
    np.testing.assert_allclose(by_row, by_row[0], rtol=1e-4)  # w P is the same for every row
    assert float(batch.weight.max()) == 1.0


def test_a_row_not_yet_drawn_is_as_urgent_as_the_most_urgent():
    replay = source(alpha=1.0)
    state = replay.reprioritise(Priorities(jnp.zeros(ROWS), jnp.arange(2)), jnp.array([3.0, 1.0]))
    _, batch = replay.draw(state, None, jax.random.key(0))
    np.testing.assert_allclose(seen(batch), np.array([3, 1, *[3] * 6]) / 22, atol=0.03)


def test_other_rewards_change_nothing_else():
    plain = DatasetSource(LOG, 4)
    paid = plain.rewarded(np.full(ROWS, 7.0))
    (_, a), (_, b) = (s.draw((), None, jax.random.key(0)) for s in (plain, paid))
    assert (np.asarray(b.reward) == 7).all() and (np.asarray(a.obs) == np.asarray(b.obs)).all()


@pytest.mark.parametrize("bad", [{"alpha": -0.1}, {"beta": 1.1}])
def test_numbers_out_of_their_domain_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        source(**bad)


def test_a_log_on_disk_is_refused():
    with pytest.raises(ConfigError, match="too large"):
        Prioritised(DatasetSource(LOG, 4, resident=1))
