"""Roll-outs with a log beside them: whole, apart, and the same after a resume."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from habitus.core.errors import ConfigError, SpaceMismatch
from habitus.core.experience import Sides
from habitus.data.source import DatasetSource
from habitus.envs.adapters.gymnasium import GymnasiumEnv
from habitus.envs.registry import make
from habitus.train.host import Actor
from habitus.train.loop import learn
from habitus.train.rollouts import Rollouts
from habitus.train.setup import describe, make_source

from .tiny import HostTicks, Ticks, Tiny, TinyOnPolicy, assert_same, small_log

LOG = small_log()


class Hybrid(TinyOnPolicy):
    """Learns from its own actions, and a little from the log's."""

    sides = True

    def update(self, state, batch, key):
        assert isinstance(batch, Sides)
        state, metrics = super().update(state, batch.own, key)
        return dataclasses.replace(state, weight=state.weight + 0.1 * batch.logged.reward.mean()), metrics


class Episodic(Hybrid):
    from_start = True


def host():
    return GymnasiumEnv(HostTicks, num_envs=2)


def first_batches(source, n=2):
    explorer = Tiny(counting=True).explorer(Tiny().init(source.spec, jax.random.key(0)))
    explorer = explorer if source.pure else Actor.of(explorer)
    state, out = source.init(explorer, jax.random.key(0)), []
    for i in range(n):
        state, batch = source.draw(state, explorer, jax.random.key(i))
        out.append(batch)
    return out


@pytest.mark.parametrize("world", [Ticks, host], ids=["pure", "host"])
def test_a_batch_is_a_roll_out_and_rows_of_the_log(world):
    source = Rollouts(world(), 2, 4, beside=DatasetSource(LOG, 16))
    assert source.steps(source.draws(17)) == 24 and source.spec.dataset is LOG.canonical()
    first, second = first_batches(source)
    assert first.own.reward.shape == (4, 2) and first.logged.reward.shape == (16,)
    np.testing.assert_array_equal(np.asarray(second.own.obs)[:, 0, 0], [4, 0, 1, 2])  # episodes of five go on
    rows = np.asarray(first.logged.obs)[:, 0].astype(int)
    np.testing.assert_array_equal(first.logged.reward, LOG.reward[rows])
    assert (np.asarray(first.logged.obs) != np.asarray(second.logged.obs)).any()


@pytest.mark.parametrize("world", [Ticks, host], ids=["pure", "host"])
def test_fresh_draws_begin_with_first_steps(world):
    for batch in first_batches(Rollouts(world(), 2, 3, fresh=True), 3):
        np.testing.assert_array_equal(batch.obs[:, :, 0], np.repeat(np.arange(3), 2).reshape(3, 2))
        np.testing.assert_allclose(batch.action[:, 0, 0], [0, 0.01, 0.02], atol=1e-6)  # carries begin anew too


def test_learn_makes_what_a_learner_of_both_needs():
    options = {"num_envs": 3, "batch_size": 7}
    source, _ = make_source(Hybrid(), None, Ticks(), LOG, None, options)
    assert (source.num_envs, source.length, source.fresh, source.beside.batch_size) == (3, 4, False, 7)
    whole, _ = make_source(Episodic(), None, Ticks(), LOG, None, {})
    assert (whole.length, whole.fresh, whole.beside.window, whole.beside.from_start) == (5, True, 5, True)
    about = describe(Hybrid(), source, None)["source"]
    assert about["beside"]["kind"] == "DatasetSource" and about["beside"]["dataset"]["rows"] == 40
    for given in ({"env": Ticks()}, {"data": LOG}):
        with pytest.raises(ConfigError, match="both env"):
            learn(Hybrid(), steps=8, **given)
    with pytest.raises(ConfigError, match="cannot mix in a log"):
        learn(TinyOnPolicy(), env=Ticks(), data=LOG, steps=8)
    with pytest.raises(ConfigError, match="no horizon"):
        learn(Episodic(), env=make("pendulum").env, data="pendulum-random", steps=8)
    with pytest.raises(SpaceMismatch, match="the log"):
        learn(Hybrid(), env="pendulum", data=LOG, steps=8)
    with pytest.raises(ConfigError, match="fit on the device"):
        Rollouts(Ticks(), beside=DatasetSource(LOG, resident=0))


@pytest.mark.parametrize("world", [Ticks, host], ids=["pure", "host"])
def test_a_resumed_run_goes_on_with_the_log(world, tmp_path):
    folders = {"folder": tmp_path / "run", "checkpoints": 2, "points": 2}
    learner = Hybrid()
    whole = learn(learner, env=world(), data=LOG, steps=40, points=2)
    learn(learner, env=world(), data=LOG, steps=20, **folders)
    resumed = learn(learner, env=world(), data=LOG, steps=40, resume=True, **folders)
    if world is Ticks:
        assert_same(resumed, whole)
    assert resumed.history["step"][-1] == 40 and np.isfinite(resumed.history["loss"]).all()
