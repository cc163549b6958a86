"""DT: what it aims at, what it hears, and that asking for less gives less."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.data.dataset import Dataset
from habitus.methods.offline.dt import DT
from habitus.nets.sequence import return_target
from habitus.train.loop import learn

from .cases import KEY

SMALL = {
    "width": 16, "layers": 1, "heads": 2, "context": 4, "batch_size": 32, "learning_rate": 3e-3, "warmup_updates": 20,
}  # fmt: skip


def two_steps(episodes=128, seed=0):
    """Episodes of two steps with random actions out of two; a step pays its action, and the first one tenfold."""
    rng, rows = np.random.default_rng(seed), 2 * episodes
    action, second = rng.integers(0, 2, rows), np.arange(rows) % 2 == 1
    codes = np.eye(2, dtype=np.float32)
    return Dataset.from_arrays(
        obs=codes[second.astype(int)],
        next_obs=codes[np.ones(rows, int)],
        action=action,
        reward=np.where(second, 1.0, 10.0).astype(np.float32) * action,
        terminated=second,
        truncated=np.zeros(rows, bool),
        validate=False,
    )


LOG = two_steps()


@pytest.fixture(scope="module")
def run():
    return learn(DT(**SMALL), LOG, 800, points=1)


def aiming(run, target):
    """The policy of a run with another target."""
    inner = run.policy.policy
    changed = dataclasses.replace(inner, policy=dataclasses.replace(inner.policy, target=jnp.float32(target)))
    return dataclasses.replace(run.policy, policy=changed)


@pytest.mark.parametrize("target", [0.0, 1.0, 10.0, 11.0])
def test_it_does_what_leads_to_the_return_that_is_asked_for_and_hears_what_is_earned(run, target):
    policy, right = aiming(run, target), []
    for seed in range(10):
        session, total = policy.session(seed), 0.0
        for code, pays in zip(np.eye(2, dtype=np.float32), (10.0, 1.0), strict=True):
            reward = pays * float(session.act(code))
            session.reward(reward)
            total += reward
        right.append(total == target)
    assert np.mean(right) >= 0.8


def test_it_aims_at_the_best_of_the_log_by_default_and_lowers_its_aim_by_what_it_earns(run):
    policy = run.policy.policy.policy
    assert float(policy.target) == 11.0
    carry = policy.rewarded(policy.init(), jnp.float32(10.0))
    assert float(carry[1]) == 1.0
    _, (steps, _) = policy(jnp.zeros(2), jax.tree.map(jnp.asarray, carry), KEY)
    assert float(steps.number[-1]) == pytest.approx(1 / 11)


def test_a_target_on_another_scale_is_refused_with_the_range_of_the_log():
    assert return_target(LOG, 20.0, "DT") == 20.0 and return_target(LOG, None, "DT") == 11.0
    for wrong in (3600.0, -30.0):
        says = f"target is {wrong:g}, but the returns of the data set lie between 0 and 11"
        with pytest.raises(ConfigError, match=says):
            learn(DT(target=wrong, **SMALL), LOG, 10)


def test_logs_without_returns_are_refused_and_one_episode_is_enough():
    single = LOG.subset(episodes=[int(np.argmax(LOG.returns))])
    assert return_target(single, None, "DT") == 11.0
    cut = dataclasses.replace(single, terminated=np.zeros(2, bool), truncated=np.zeros(2, bool))
    with pytest.raises(ConfigError, match="no episode of the data set was recorded to its end"):
        learn(DT(**SMALL), cut, 2)
    with pytest.raises(ConfigError, match="needs one: give data"):
        DT().init(dataclasses.replace(LOG.spec, dataset=None), KEY)


def test_padding_does_not_count():
    learner = DT(**SMALL, dropout=0.0)
    state = learner.init(LOG.spec, KEY)
    short, long = (LOG.windows(n, np.arange(20) * 2) for n in (2, 4))
    losses = [float(learner.actor_loss(state.actor, state, windows, KEY)[0]) for windows in (short, long)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    first = jax.tree.map(lambda x: x[:, :1], short)
    assert float(learner.actor_loss(state.actor, state, first, KEY)[0]) != losses[0]
