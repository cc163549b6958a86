"""The guardian: how much it flags, what it flags whatever its settings, and what it refuses."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError, DataError
from habitus.data.density import DensityGuard

RNG = np.random.default_rng(0)
PAIRS = RNG.normal(size=(400, 4)).astype(np.float32)


def flags(guard, pairs):
    return np.asarray(jax.vmap(lambda p: guard(p[:3], p[3:]))(jnp.asarray(pairs)))


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_it_flags_its_share_of_the_log(share):
    assert abs(flags(DensityGuard.fit(PAIRS, share), PAIRS).mean() - share) <= 1 / len(PAIRS)


def test_what_is_flagged_stays_flagged_as_the_share_grows():
    few, many = (flags(DensityGuard.fit(PAIRS, share), 1.5 * PAIRS) for share in (0.05, 0.2))
    assert few.sum() < many.sum() and not (few & ~many).any()


def test_far_is_out_and_the_middle_is_in():
    guard = DensityGuard.fit(PAIRS)
    far = 10 * np.eye(4, dtype=np.float32)
    assert flags(guard, far).all()
    density = jax.vmap(lambda p: guard.log_density(p[:3], p[3:]))(jnp.asarray(PAIRS))
    assert not flags(guard, PAIRS[[int(density.argmax())]]).any()


def test_a_constant_factor_of_the_density_changes_nothing():
    guard = DensityGuard.fit(PAIRS)
    points = jnp.concatenate([guard.points] * 2)  # every density doubled
    doubled = eqx.tree_at(lambda g: (g.points, g.threshold), guard, (points, guard.threshold + jnp.log(2.0)))
    probe = RNG.normal(size=(200, 4)) * 1.5
    np.testing.assert_array_equal(flags(guard, probe), flags(doubled, probe))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(DataError, match="log 200 or more"):
        DensityGuard.fit(PAIRS[:100])
    with pytest.raises(DataError, match="NaN"):
        DensityGuard.fit(np.where(np.arange(400)[:, None] == 7, np.nan, PAIRS))
    for bad in ({"share": 0.0}, {"bandwidth": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            DensityGuard.fit(PAIRS, **bad)
