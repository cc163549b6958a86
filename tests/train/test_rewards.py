"""Policies hear what their actions earned, whoever runs the episodes; learners get the windows that they ask for."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.core.experience import Trajectory
from habitus.core.policy import Deployed
from habitus.data.source import DatasetSource
from habitus.envs.adapters.gymnasium import GymnasiumEnv
from habitus.nets.normalise import Standardiser
from habitus.nets.policies import Deterministic, Noisy, Normalised
from habitus.train.collect import HostCollector, collect, run_episodes, start
from habitus.train.host import Actor, listens
from habitus.train.loop import learn
from habitus.train.sources import Replay, Uniform

from .tiny import Counting, HostTicks, Listening, Ticks, Tiny, small_log

WRAPPED = Noisy(Normalised(Listening(), Standardiser.identity()), 0.0)


class Paying(Ticks):
    """As `Ticks`, but pays the first number of the action."""

    def step(self, state, action, key):
        after, step = super().step(state, action, key)
        return after, eqx.tree_at(lambda s: s.reward, step, action[0])


def earned(rollout) -> list[float]:
    """What the policy had heard before each step."""
    return np.round(100 * np.asarray(rollout.action)[..., 0].ravel()).tolist()


def test_a_compiled_roll_out_tells_the_policy_its_rewards_and_starts_again_with_the_episode():
    state = start(Ticks(3), 2, WRAPPED, jax.random.key(0))
    state, first = collect(Ticks(3), state, WRAPPED, jax.random.key(1), 4)
    _, then = collect(Ticks(3), state, WRAPPED, jax.random.key(2), 2)
    assert earned(first) == [0, 0, 1, 1, 2, 2, 0, 0] and earned(then) == [1, 1, 2, 2]


def test_so_does_a_world_on_the_host():
    env = GymnasiumEnv(lambda: HostTicks(3), 2)
    actor = Actor.of(Deployed.of(WRAPPED, env.spec))
    collector = HostCollector(env, actor, 0)
    rows = [collector.step(actor) for _ in range(5)]
    assert [earned(row) for row in rows] == [[0, 0], [1, 1], [2, 2], [0, 0], [1, 1]]


def test_evaluation_tells_them_too():
    first = Deployed.of(Listening(), Ticks().spec)
    # pays 1 at each step, so the actions, and the return where actions are paid, follow from what is heard
    found = run_episodes(_Doubling(), Paying(4), 3)
    np.testing.assert_allclose(found.returns, 0.1 * (1 + 1 + 2 + 4))
    assert run_episodes(first, Ticks(4), 3).returns.tolist() == [4, 4, 4]


class _Doubling(Listening):
    """Acts as much as it has earned, and a tenth at first."""

    def __call__(self, obs, carry, key):
        return jnp.where(carry == 0, 0.1, carry)[None], carry


def test_a_policy_that_does_not_listen_costs_nothing_on_the_host():
    weight = jnp.zeros((2, 1))
    silent = Noisy(Normalised(Counting(weight), Standardiser.identity()), 0.0)
    assert not listens(silent) and not listens(Deterministic(lambda obs: obs)) and listens(WRAPPED)
    actor, carry = Actor.of(silent), jnp.zeros(2)
    assert actor.hear is None and actor.rewarded(carry, np.ones(2)) is carry
    assert not listens(Uniform.over(Ticks().spec, WRAPPED))  # keeps the carry of another as it is


def test_a_learner_whose_explorer_listens_is_heard_on_the_host():
    class Heard(Tiny):
        def explorer(self, state):
            return Listening()

    source = Replay(GymnasiumEnv(lambda: HostTicks(3), 2), 4, 64, warmup=2, updates_per_step=0.5)
    run = learn(Heard(), source, 14, points=1, seeds=[0])
    assert np.isfinite(run.history["loss"]).all()


def test_a_session_remembers_and_forgets():
    policy = Deployed.of(Listening(), Ticks().spec)
    session, seen = policy.session(), []
    obs = np.zeros(2, np.float32)
    for reward in (1.0, 2.0, 4.0):
        seen.append(float(session.act(obs)[0]))
        session.reward(reward)
    session.reset()
    np.testing.assert_allclose([*seen, session.act(obs)[0]], [0.0, 0.01, 0.03, 0.0], atol=1e-7)
    noisy = Deployed.of(Noisy(Counting(jnp.zeros(1)), 0.1), Ticks().spec)
    first, again = noisy.session(3), noisy.session(3)
    actions = [first.act(obs)[0] for _ in range(3)]
    assert actions == [again.act(obs)[0] for _ in range(3)] and actions[0] == noisy.act(obs, seed=3)[0]
    assert len(set(actions)) == 3


class Windowed(Tiny):
    """Learns from windows of a log."""

    length: int = 3

    @property
    def window(self):
        return self.length

    def update(self, state, batch, key):
        assert isinstance(batch, Trajectory) and batch.valid.shape == (8, self.length)
        state, metrics = super().update(state, batch.steps, key)
        return state, metrics | {"first_time": batch.time[:, 0].max()}


class Whole(Windowed):
    from_start = True


def test_a_learner_gets_the_windows_that_it_asks_for():
    assert learn(Windowed(), small_log(), 20, points=1).history["first_time"].max() > 0
    assert learn(Whole(), small_log(), 20, points=1).history["first_time"].max() == 0
    assert np.isfinite(learn(Windowed(), DatasetSource(small_log(), 8, window=3), 5, points=1).history["loss"]).all()


@pytest.mark.parametrize(
    ("learner", "options", "says"),
    [
        (Windowed(), {"env": Ticks()}, "learns from windows of 3 steps of a log, but a replay .* gives single"),
        (Windowed(), {"env": Ticks(), "data": small_log()}, "give data=... alone"),
        (Windowed(), {"source": DatasetSource(small_log(), 8)}, "DatasetSource gives single transitions"),
        (Windowed(), {"source": DatasetSource(small_log(), 8, window=4)}, "windows of 4 steps"),
        (Tiny(), {"source": DatasetSource(small_log(), 8, window=3)}, "leave window out"),
        (Windowed(), {"data": small_log(), "source_options": {"window": 2}}, "source_options gives windows of 2"),
    ],
)
def test_what_gives_other_batches_is_refused_before_anything_compiles(learner, options, says):
    with pytest.raises(ConfigError, match=says):
        learn(learner, steps=2000, **options)
