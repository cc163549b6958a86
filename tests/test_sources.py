"""What holds for every source among the methods: one that is added later is tested by being there."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np
import pytest
from settings import log

from habitus.core.card import cards
from habitus.core.errors import ConfigError
from habitus.core.experience import Transition
from habitus.methods.offline.td3bc import TD3BC
from habitus.methods.online.ppo import PPO
from habitus.train.loop import learn
from habitus.train.setup import source_class

# fields that make any source small and quick, where it has them
TINY = {
    "batch_size": 16, "length": 2, "stride": 1, "features": 8, "blocks": 1, "levels": 2, "windows": 8, "lifetime": 7,
    "fit_steps": 5, "fit_batch_size": 8,
}  # fmt: skip
LEARNER = TD3BC(hidden=(8, 8), batch_size=16)
SLUGS = [slug for slug, found in cards().items() if found.kind == "source"]
every_source = pytest.mark.parametrize("slug", SLUGS)


def walk():
    """A log whose episodes are four steps long."""
    from habitus.data.dataset import Dataset

    rng, rows = np.random.default_rng(0), 64
    ends = np.arange(rows) % 4 == 3
    obs = rng.normal(size=(rows, 2)).astype(np.float32)
    one = log("continuous", expert=False)
    return Dataset.from_arrays(
        obs=obs, next_obs=np.roll(obs, -1, 0), action=rng.uniform(-2, 2, (rows, 1)).astype(np.float32),
        reward=obs[:, 0], terminated=ends & (rng.random(rows) < 0.5), truncated=ends,
        observation_space=one.observation_space, action_space=one.action_space, validate=False,
    )  # fmt: skip


@cache
def made(slug):
    cls = source_class(slug)
    return cls(walk(), **{k: v for k, v in TINY.items() if k in cls.__dataclass_fields__})


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True) for x, y in pairs)


@cache
def uninterrupted(slug):
    return learn(LEARNER, made(slug), 40, seeds=[1], points=1)


@every_source
def test_it_is_pure_and_hands_out_whole_batches(slug):
    source = made(slug)
    assert source.pure
    state = LEARNER.init(source.spec, jax.random.key(0))
    explorer = LEARNER.explorer(state)

    @jax.jit
    def three(key):
        kept = source.init(explorer, key)
        for k in jax.random.split(key, 3):
            kept, batch = source.draw(kept, explorer, k)
        return batch

    batch = three(jax.random.key(0))
    assert isinstance(batch, Transition) and batch.size == 16 and batch.obs.shape == (16, 2)
    assert all(np.isfinite(np.asarray(x, float)).all() for x in jax.tree.leaves(batch))
    assert same(batch, three(jax.random.key(0))) and not same(batch, three(jax.random.key(1)))


@every_source
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(slug, tmp_path):
    options = {"seeds": [1], "points": 1, "folder": tmp_path / "run", "checkpoints": 1}
    learn(LEARNER, made(slug), 23, **options)
    resumed = learn(LEARNER, made(slug), 40, resume=True, **options)
    assert same(resumed.states, uninterrupted(slug).states)


@every_source
def test_a_seed_among_several_gives_the_bits_it_gives_alone(slug):
    several = learn(LEARNER, made(slug), 40, seeds=[0, 1, 2], points=1)
    assert same(several.states[1], uninterrupted(slug).states[0])
    assert not same(*several.states[:2])


@every_source
def test_a_learner_that_must_act_refuses_it(slug):
    with pytest.raises(ConfigError, match="its own actions"):
        learn(PPO(), made(slug), 100)


def test_what_is_no_source_is_refused_by_name():
    with pytest.raises(ConfigError, match="td3bc is a learner, not a source; the sources are pgd"):
        source_class("td3bc")
