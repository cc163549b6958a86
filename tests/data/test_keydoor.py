"""The solver's demonstrations, and the levels they are of."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.data.keydoor import demonstrate, noise_for
from habitus.data.validate import check
from habitus.envs.registry import make
from habitus.envs.worlds.keydoor import DROP

WORLD = make("keydoor", size=5)


def test_the_solver_earns_what_the_length_of_its_way_is_worth_and_no_way_is_shorter():
    log = demonstrate(WORLD, range(20))
    np.testing.assert_allclose(log.returns, 1 - 0.9 * log.lengths / WORLD.horizon, rtol=1e-5)
    assert log.terminated[log.ends].all() and not [d for d in check(log) if d.severity == "error"]
    noisy = demonstrate(WORLD, range(20), noise=0.3)
    assert (noisy.lengths >= log.lengths).all() and noisy.lengths.mean() > log.lengths.mean()
    assert (np.asarray(noisy.action) == DROP).any()  # keys laid down elsewhere are found again


def test_noise_is_tuned_to_a_share_of_the_best_return():
    best = demonstrate(WORLD, range(40)).returns.mean()
    noise = noise_for(WORLD, 0.6, range(40))
    assert demonstrate(WORLD, range(40), noise, seed=2).returns.mean() == pytest.approx(0.6 * best, abs=0.1)


def test_a_seed_is_a_level_and_levels_to_train_in_are_none_of_those_to_be_judged_in():
    few, other = (make("keydoor", levels=3, first_level=first) for first in (0, 1_000_000))
    starts = {}
    for name, world in (("train", few), ("unseen", other)):
        state, _ = jax.vmap(world.reset)(jax.random.split(jax.random.key(5), 64))
        starts[name] = {tuple(np.concatenate([np.ravel(x)[i * np.size(x) // 64 : (i + 1) * np.size(x) // 64]
                        for x in jax.tree.leaves(state)]).tolist()) for i in range(64)}  # fmt: skip
        assert len(starts[name]) == 3
    assert not starts["train"] & starts["unseen"]
    level, _ = make("keydoor").reset(jax.random.key(1))  # an evaluation's episode from seed 1
    assert tuple(np.concatenate([np.ravel(x) for x in jax.tree.leaves(level)]).tolist()) in starts["train"]


def test_bad_input_is_one_sentence():
    with pytest.raises(ConfigError, match="levels must be above 0"):
        make("keydoor", levels=0)
    with pytest.raises(ConfigError, match="say how many"):
        make("keydoor", first_level=3)
    with pytest.raises(ConfigError, match="knows KeyDoor"):
        demonstrate(make("cartpole"), range(2))
    with pytest.raises(ConfigError, match="share of the actions"):
        demonstrate(WORLD, range(2), noise=1.5)
