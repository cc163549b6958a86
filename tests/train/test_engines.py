"""What the two engines do with compiled programs, buffers and the contents of a replay."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.data.io import load
from habitus.data.source import DatasetSource
from habitus.envs.adapters.gymnasium import GymnasiumEnv
from habitus.envs.registry import make
from habitus.methods.offline.td3bc import TD3BC
from habitus.methods.online.sac import SAC
from habitus.train.engine import HostEngine, PureEngine
from habitus.train.host import Actor
from habitus.train.runtime import make_room
from habitus.train.sources import Replay

from .processes import finish, start
from .tiny import HostTicks, Ticks, Tiny, small_log

COUNT = """
import json, sys, jax
from habitus.train.loop import learn

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
)
learn(hidden=(8, 8), batch_size=8, **json.loads(sys.argv[1]))
print(len(compiled))
"""


def compilations(**options) -> int:
    """How many programs a run compiles in a process of its own."""
    (count,) = finish(start(COUNT, json.dumps(options)))
    return int(count)


@pytest.mark.parametrize(
    ("run", "most"),
    [
        ({"learner": "td3bc", "data": "pendulum-medium"}, 100),
        ({"learner": "sac", "env": "pendulum", "source_options": {"warmup": 16}}, 150),
        ({"learner": "sac", "env": "Pendulum-v1", "source_options": {"warmup": 16}}, 150),
    ],
    ids=["log", "compiled world", "host world"],
)
def test_a_longer_run_compiles_no_more(run, most):
    if "data" in run:
        load(run["data"])  # or the first run would also compile what makes it
    short, long = compilations(steps=30, points=3, **run), compilations(steps=120, points=40, **run)
    assert 0 < short == long <= most


def test_what_fills_up_the_last_device_does_no_work():
    source = DatasetSource(small_log(), 8)
    engine = PureEngine(TD3BC(hidden=(8, 8), batch_size=8), source, source.spec, [0, 1, 2], None)
    engine.advance(5)
    padding = -3 % jax.device_count()
    assert engine.own.update.tolist() == [5, 5, 5] + [0] * padding


def test_the_old_state_is_given_up():
    source = Replay(Ticks(), batch_size=4, capacity=64, warmup=8)
    engine = PureEngine(SAC(hidden=(8, 8), batch_size=4), source, source.spec, [0, 1], None)
    engine.advance(1)
    before = engine.own
    engine.advance(1)
    arrays = [x for x in jax.tree.leaves((before.learner, before.source.buffer)) if isinstance(x, jax.Array)]
    assert arrays and all(x.is_deleted() for x in arrays)


def host_engine():
    source = Replay(make("Pendulum-v1"), batch_size=16, capacity=256, warmup=64)
    return HostEngine(SAC(hidden=(8, 8), batch_size=16), source, source.spec, 0, None)


def test_a_host_engine_takes_up_the_updates_and_the_replay():
    first, second = host_engine(), host_engine()
    first.advance(100)
    second.restore(first.snapshot())
    assert int(second.update) == int(first.update) == 100
    left, right = (jax.tree.leaves(e.source.snapshot(e.source_state)) for e in (first, second))
    assert len(left) == len(right) > 5
    for ours, theirs in zip(left, right, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    second.advance(100)
    assert int(second.update) == 200
    first.close()
    second.close()


@pytest.mark.parametrize(("updates_per_step", "num_envs"), [(1.0, 1), (0.5, 1), (0.25, 2), (2.0, 1)])
def test_a_replay_holds_the_last_steps_and_no_step_across_two_episodes(updates_per_step, num_envs):
    source = Replay(Ticks(), batch_size=4, capacity=15, num_envs=num_envs, warmup=5, updates_per_step=updates_per_step)
    learner = TD3BC(hidden=(8,))
    explorer = learner.explorer(learner.init(source.spec, jax.random.key(0)))
    state = source.init(explorer, jax.random.key(1))
    draw = eqx.filter_jit(source.draw)
    for i in range(20):
        state, batch = draw(state, explorer, jax.random.key(i))
        assert batch.reward.shape == ((4,) if source.updates_per_draw == 1 else (source.updates_per_draw, 4))
    rows, steps = state.buffer.data, source.steps(20)
    assert int(state.buffer.size) == source.capacity <= 15 < steps
    # Ticks shows the step of its episode first and the episode's number second.
    np.testing.assert_array_equal(rows.next_obs[:, 0], rows.obs[:, 0] + 1)
    np.testing.assert_array_equal(rows.next_obs[:, 1], rows.obs[:, 1])
    np.testing.assert_array_equal(rows.terminated | rows.truncated, rows.next_obs[:, 0] == 5)
    last = np.arange(steps // num_envs - source.capacity // num_envs, steps // num_envs) % 5
    assert sorted(np.repeat(last, num_envs).tolist()) == sorted(jnp.round(rows.obs[:, 0]).astype(int).tolist())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="memory maps are counted on Linux")
def test_programs_are_forgotten_when_a_process_runs_out_of_memory_maps():
    def maps():
        return len(Path("/proc/self/maps").read_text().splitlines())

    for n in range(40):  # each shape is a program of its own
        jax.jit(lambda x: jnp.sort(x).cumsum())(jnp.ones(n + 1)).block_until_ready()
    before = maps()
    make_room(1.0)
    assert maps() == pytest.approx(before, abs=5)
    make_room(0.0)
    assert maps() < before - 40


@pytest.mark.parametrize("env", [Ticks(), "host"], ids=["pure", "host"])
def test_log_and_buffer_can_be_drawn_from_as_if_they_were_one(env):
    log = small_log()
    log = dataclasses.replace(log, reward=np.full(len(log), 7, np.float32))
    env = GymnasiumEnv(HostTicks) if env == "host" else env
    source = Replay(env, batch_size=4_000, capacity=64, warmup=20, prefill=log, mix="proportional")
    learner = Tiny()
    explorer = learner.explorer(learner.init(source.spec, jax.random.key(0)))
    explorer = explorer if source.pure else Actor.of(explorer)
    _, batch = source.draw(source.init(explorer, jax.random.key(0)), explorer, jax.random.key(1))
    share = float(np.mean(np.asarray(batch.reward) == 7))
    assert share == pytest.approx(len(log) / (len(log) + 21), abs=0.04)  # 20 rows of warm-up, one of this draw
