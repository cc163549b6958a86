"""Diffusion and flow policies, SDP and RTI-DP: what they learn at, how they are executed, and what is refused."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError, SpaceMismatch
from habitus.core.experience import Step
from habitus.core.protocols import Env
from habitus.data.dataset import Dataset
from habitus.execution.horizon import RecedingHorizon
from habitus.execution.streaming import Streaming, resting_levels
from habitus.methods.generative.diffusion_policy import DiffusionPolicy
from habitus.methods.generative.flow_policy import FlowPolicy
from habitus.methods.generative.rti_dp import RTIDP
from habitus.methods.generative.sdp import SDP
from habitus.train.loop import learn

KEY = jax.random.key(0)
TINY = dict(predicted=5, observed=2, executed=2, width=16, blocks=1, batch_size=32, warmup_updates=10)
LEARNERS = {
    "diffusion": DiffusionPolicy(levels=8, **TINY),
    "flow": FlowPolicy(**TINY),
    "sdp": SDP(levels=8, **TINY),
    "rti-dp": RTIDP(levels=8, **TINY | {"executed": 1}),
}


def wave(episodes=40, length=12, **meta):
    """Two entries of an action follow the time of the episode, whose observation shows it; the second is a switch."""
    time = np.tile(np.arange(length), episodes)
    angle = 2 * np.pi * time / length
    obs = np.stack([np.sin(angle), np.cos(angle)], 1).astype(np.float32)
    last = time == length - 1
    action = np.stack([0.5 * np.sin(angle), np.where(time < length // 2, 1.0, -1.0)], 1).astype(np.float32)
    return Dataset.from_arrays(
        obs=obs, next_obs=np.roll(obs, -1, 0), action=action, reward=np.zeros(len(time), np.float32),
        terminated=last, truncated=np.zeros(len(time), bool), action_space=spaces.Box(-1, 1, (2,)),
        observation_space=spaces.Box(-1, 1, (2,)), meta={"horizon": length} | meta,
    )  # fmt: skip


LOG = wave(switches=[1])


class Clock(Env):
    """Shows the time as `wave` does, and pays the negative distance to its action."""

    @property
    def observation_space(self):
        return spaces.Box(-1, 1, (2,))

    @property
    def action_space(self):
        return spaces.Box(-1, 1, (2,))

    @property
    def horizon(self):
        return 12

    def show(self, time):
        angle = 2 * jnp.pi * time / 12
        return jnp.stack([jnp.sin(angle), jnp.cos(angle)])

    def reset(self, key):
        return jnp.zeros((), jnp.int32), self.show(0)

    def step(self, state, action, key):
        wanted = jnp.stack([0.5 * self.show(state)[0], jnp.where(state < 6, 1.0, -1.0)])
        after = state + 1
        reward = -jnp.abs(action - wanted).mean()
        return after, Step(self.show(after), reward, jnp.array(False), after >= 12, {})


@pytest.mark.parametrize("name", LEARNERS)
def test_it_follows_a_log(name):
    learner = dataclasses.replace(LEARNERS[name], width=64, learning_rate=3e-3)
    run = learn(learner, LOG, steps=1500, points=2, evaluate_in=Clock(), evaluations=1, episodes=20)
    assert run.returns[-1, 0] / 12 > -0.15  # a random policy gets about -0.8


def spread(policy):
    """The kinds of policies inside, outermost first."""
    kinds = []
    while True:
        kinds.append(type(policy))
        if not hasattr(policy, "policy"):
            return kinds, policy
        policy = policy.policy


def state_of(learner, log=LOG):
    return learner.init(log.spec, KEY)


def test_what_acts_is_the_average_and_the_learning_rate_rises_and_falls():
    learner = LEARNERS["flow"]
    state = eqx.tree_at(lambda s: s.total, state_of(learner), jnp.asarray(100))
    assert float(learner.rate(state)) == pytest.approx(learner.learning_rate / 10, rel=1e-3)
    at = lambda n: float(learner.rate(eqx.tree_at(lambda s: s.done, state, jnp.asarray(n))))  # noqa: E731
    assert at(50) == pytest.approx(learner.learning_rate / 2, rel=1e-3) and at(100) == pytest.approx(0, abs=1e-9)
    endless = eqx.tree_at(lambda s: s.total, state, jnp.asarray(0))
    late = eqx.tree_at(lambda s: s.done, endless, jnp.asarray(1000))
    assert float(learner.rate(late)) == pytest.approx(learner.learning_rate)
    _, inside = spread(learner.policy(state))
    assert isinstance(inside, RecedingHorizon) and inside.planner.draw.velocity.network is state.average


# --- SDP


def test_levels_met_while_acting_are_those_it_learns_at():
    learner = SDP()
    resting = resting_levels(17, 2, 4, 48)
    found = np.asarray(dataclasses.replace(learner, regimes=(0, 0, 0, 1.0)).training_levels(KEY, 500))
    calls = resting - found
    assert (calls == calls[:, :1]).all() and sorted(set(calls[:, 0])) == list(range(12))
    assert found.min() == 0 and found[calls[:, 0] == 11][0, 0] == 0


@pytest.mark.parametrize("regime", range(4))
def test_regimes(regime):
    weights = tuple(float(i == regime) for i in range(4))
    found = np.asarray(SDP(regimes=weights).training_levels(KEY, 400))
    assert found.shape == (400, 17) and 0 <= found.min() and found.max() <= 47
    same_in_time, same_in_batch = (found == found[:, :1]).all(), (found == found[:1]).all()
    assert (same_in_time, same_in_batch) == ((True, False), (False, True), (False, False), (False, False))[regime]
    if regime == 2:
        assert abs(np.corrcoef(found[:, 0], found[:, 1])[0, 1]) < 0.2


def test_one_regime_holds_for_a_whole_batch():
    learner = SDP(regimes=(0.5, 0.0, 0.0, 0.5))
    kinds = {
        bool((levels == levels[:, :1]).all())
        for levels in (np.asarray(learner.training_levels(jax.random.key(i), 16)) for i in range(12))
    }
    assert kinds == {True, False}


def test_it_streams_and_a_level_for_each_step_is_told_to_the_network():
    learner = LEARNERS["sdp"]
    policy = learner.policy(state_of(learner))
    _, streaming = spread(policy)
    assert isinstance(streaming, Streaming) and streaming.calls == 4 and learner.parts == 2
    carry = policy.init()
    for i in range(3):
        action, carry = policy(jnp.zeros(2), carry, jax.random.key(i))
    assert int(policy.report(carry)["calls"]) == 8 and (jnp.abs(action) <= 1).all()
    np.testing.assert_array_equal(carry.memory.level, streaming.resting)
    chunk, levels = jnp.zeros((5, 2)), jnp.arange(5)
    network = streaming.planner.network
    assert not np.allclose(network(chunk, levels, jnp.zeros((2, 2))), network(chunk, levels[::-1], jnp.zeros((2, 2))))


# --- RTI-DP


def test_switches_are_small_in_the_data_and_whole_in_what_is_executed():
    batch = LOG.canonical().windows(5, np.arange(4), 1)
    plain = np.asarray(batch.steps.action)
    for kind, factor in ((None, 10), ("scale", 10), ("clip", 1), ("none", 1)):
        learner = dataclasses.replace(LEARNERS["rti-dp"], switch=kind)
        shown = learner.shown(state_of(learner), batch)
        np.testing.assert_allclose(shown.steps.action, plain / [1, factor], rtol=1e-6)
    learner = LEARNERS["rti-dp"]
    policy = learner.policy(state_of(learner))
    action, carry = policy(jnp.zeros(2), policy.init(), KEY)
    assert abs(float(action[1])) == 1 and int(policy.report(carry)["calls"]) == 8
    _, carry = policy(jnp.zeros(2), carry, KEY)
    assert int(policy.report(carry)["calls"]) == 12


def test_undeclared_switches_are_refused_where_they_are_asked_for():
    for kind in ("scale", "clip"):
        with pytest.raises(ConfigError, match="none is declared"):
            learn(dataclasses.replace(LEARNERS["rti-dp"], switch=kind), wave(), steps=4)
    assert state_of(LEARNERS["rti-dp"], wave()).switches == ()
    with pytest.raises(ConfigError, match="a real action has 2"):
        state_of(LEARNERS["flow"], wave(switches=[2]))


# --- what is refused


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: DiffusionPolicy(predicted=3, observed=2, executed=3), "predict 4 or more"),
        (lambda: DiffusionPolicy(levels=8, sampling_steps=9), "sampling_steps must be from 1 to the 8"),
        (lambda: DiffusionPolicy(prediction="score"), "must be one of"),
        (lambda: FlowPolicy(times="late"), "times must be one of"),
        (lambda: SDP(levels=50), "do not divide into the 4 parts"),
        (lambda: SDP(regimes=(0.5, 0.5, 0.5, 0.0)), "sum to 1"),
        (lambda: RTIDP(warm_levels=(1, 2, 0)), "must fall"),
        (lambda: RTIDP(warm_levels=()), "must fall"),
        (lambda: RTIDP(warm_levels=(50, 0)), "must fall from 49"),
        (lambda: RTIDP(switch="flip"), "switch must be"),
    ],
)
def test_settings_that_do_not_fit(make, why):
    with pytest.raises(ConfigError, match=why):
        make()


def test_integers_are_refused():
    log = wave()
    columns = dict(obs=log.obs, next_obs=log.next_obs, reward=log.reward, terminated=log.terminated)
    whole = Dataset.from_arrays(
        **columns, truncated=log.truncated, action=np.zeros(len(log), int), action_space=spaces.Discrete(2),
        observation_space=log.observation_space,
    )  # fmt: skip
    with pytest.raises(SpaceMismatch, match="bounded Box"):
        learn(LEARNERS["flow"], whole, steps=4)
