"""ReinFlow: chains and their likelihoods, the noise, worlds of chunks, and a flow that learns from rewards."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError
from habitus.core.experience import Step
from habitus.core.protocols import Env
from habitus.core.spec import Spec
from habitus.envs.adapters.gymnasium import GymnasiumEnv
from habitus.envs.chunked import ChunkedWorld
from habitus.generative.chains import FlowChain
from habitus.generative.chunks import Chunking
from habitus.generative.flow import flow_sample
from habitus.methods.generative.flow_policy import FlowPolicy
from habitus.methods.generative.reinflow import ReinFlow
from habitus.nets.losses import prepare_round
from habitus.train.chunk_rollouts import ChunkRollouts
from habitus.train.loop import learn

KEY = jax.random.key(0)
SIZE = dict(predicted=2, observed=1, executed=2, width=16, blocks=1)
SMALL = ReinFlow(**SIZE, num_envs=8, rollout_length=4, minibatch_size=16, hidden=(8,), critic_warmup=0)


class Track(Env):
    """Adds actions up, pays them, and ends once the sum passes 1, or after ten steps."""

    @property
    def observation_space(self):
        return spaces.Box(-20, 20, (1,))

    @property
    def action_space(self):
        return spaces.Box(-1, 1, (1,))

    @property
    def horizon(self):
        return 10

    def reset(self, key):
        return jnp.zeros(2), jnp.zeros(1)

    def step(self, state, action, key):
        state = state + jnp.stack([action[0], 1.0])
        over = state[0] > 1
        return state, Step(state[:1], action[0], over, (state[1] >= 10) & ~over, {"success": over})


class Bandit(Env):
    """One step, paid `-(a - 0.5)^2`."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Box(-1, 1, (1,))
    horizon = 1

    def reset(self, key):
        return jnp.zeros(()), jnp.zeros(1)

    def step(self, state, action, key):
        return state, Step(jnp.zeros(1), -((action[0] - 0.5) ** 2), jnp.array(True), jnp.array(False), {})


class Constant(eqx.Module):
    """A noise that is the same always."""

    std: float
    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, t, window):
        return jnp.full(self.shape, self.std)


def chain_of(std, steps=4, shape=(2, 1), velocity=lambda x, t, window: 0.5 - x):
    return FlowChain(shape, steps, velocity, Constant(std, shape), jnp.zeros((1, 1)))


def state_of(learner=SMALL):
    world = Track()
    return learner.init(dataclasses.replace(Spec(world.observation_space, world.action_space, 10), updates=100), KEY)


# --- chains


def test_the_density_of_one_link_is_that_of_two_gaussians():
    dist = chain_of(0.3, steps=1, velocity=lambda x, t, window: 0.2 - 0.5 * x)
    chain = jnp.asarray([[[0.4], [-0.1]], [[0.1], [0.5]]])
    mean = np.asarray(chain[0] + 0.2 - 0.5 * chain[0])
    normal = lambda x, m, s: -0.5 * ((x - m) / s) ** 2 - np.log(s) - 0.5 * np.log(2 * np.pi)  # noqa: E731
    expected = normal(np.asarray(chain[0]), 0, 1).sum() + normal(np.asarray(chain[1]), mean, 0.3).sum()
    assert float(dist.log_prob_whole(chain)) == pytest.approx(expected, rel=1e-5)
    assert float(dist.log_prob(chain)) == pytest.approx(expected / 4, rel=1e-5)


def test_without_noise_it_is_eulers_method():
    dist = chain_of(1e-6)
    chain = dist.sample(KEY)
    flow = flow_sample(lambda x, t: 0.5 - x, chain[0], 4)
    np.testing.assert_allclose(chain[-1], jnp.clip(flow, -1, 1), atol=1e-4)
    np.testing.assert_allclose(dist.without_noise(chain[0]), chain[-1], atol=1e-4)


def test_entropy_and_what_is_cut_off():
    for steps, std, expected in ((4, 0.08, 0.60), (4, 0.05, 0.98), (4, 0.10, 0.42), (4, 0.24, -0.28), (1, 0.1, -0.27)):
        dist = chain_of(std, steps=steps, shape=(50, 3))
        size = 150
        closed = (size / 2 * np.log(2 * np.pi * np.e) * (steps + 1) + steps * size * np.log(std)) / ((steps + 1) * size)
        assert float(dist.entropy()) == pytest.approx(closed, rel=1e-4)
        # of a draw, the log density is minus the entropy, up to the noise of the draw and its cuts
        typical = (steps * (-np.log(std) - 1.419) - 1.419) / (steps + 1)
        assert typical == pytest.approx(expected, abs=0.01)
        assert float(dist.log_prob_whole(dist.sample(KEY)) / dist.terms) == pytest.approx(typical, abs=0.12)
    sharp = chain_of(0.001, shape=(50, 3))
    assert float(sharp.log_prob(sharp.sample(KEY))) == 1.0


def test_noise_lies_between_its_bounds_and_is_their_geometric_mean_where_the_network_says_nothing():
    noise = SMALL.chains(state_of().actor, state_of())(jnp.zeros((1, 1))).noise
    noise = dataclasses.replace(noise, low=0.10, high=0.24)
    silent = eqx.tree_at(lambda n: n.net, noise, lambda x: jnp.zeros(2))
    np.testing.assert_allclose(silent(jnp.asarray(0.5), jnp.zeros((1, 1))), 0.15492, rtol=1e-4)
    loud = eqx.tree_at(lambda n: n.net.layers[-1].weight, noise, 1e3 * noise.net.layers[-1].weight)
    windows = 3 * jax.random.normal(KEY, (50, 1, 1))
    found = jax.vmap(loud)(jnp.linspace(0, 1, 50), windows)
    assert found.min() >= 0.0999 and found.max() <= 0.2401 and found.max() - found.min() > 0.1


def test_the_greatest_noise_is_held_and_then_falls():
    learner, state = SMALL, state_of()
    at = lambda n: float(learner.greatest_noise(eqx.tree_at(lambda s: s.done, state, jnp.asarray(n))))  # noqa: E731
    last = 0.3 * 0.08 + 0.7 * 0.20
    assert at(0) == at(35) == pytest.approx(0.20) and at(100) == pytest.approx(last)
    assert at(67) == pytest.approx((0.20 + last) / 2, abs=2e-3)


# --- gradients


def rollout(learner=SMALL, state=None):
    source = learner.rollouts(Track(), num_envs=learner.num_envs, length=learner.rollout_length)
    state = state_of(learner) if state is None else state
    explorer = learner.explorer(state)
    return state, source.draw(source.init(explorer, KEY), explorer, KEY)[1]


@pytest.fixture(scope="module")
def ready():
    state, batch = rollout()
    return state, prepare_round(SMALL.chains(state.actor, state), state.critic, batch, 0.99, 0.95)


def test_the_first_ratio_is_one_and_the_gradient_that_of_the_normalised_log_density(ready):
    state, batch = ready
    value, metrics = SMALL.actor_loss(state.actor, state, batch, KEY)
    assert abs(float(metrics["kl"])) < 1e-6
    plain = dataclasses.replace(SMALL, entropy=0.0)
    ours = eqx.filter_grad(lambda a: plain.actor_loss(a, state, batch, KEY)[0])(state.actor)
    advantage = (batch.advantage - batch.advantage.mean()) / batch.advantage.std()

    def policy_gradient(actor):
        whole = jax.vmap(lambda o, a: SMALL.chains(actor, state)(o).log_prob_whole(a))(batch.obs, batch.action)
        inside = jnp.abs(batch.log_prob) < 1
        return -(whole / (5 * 2) * advantage * inside).mean()

    theirs = eqx.filter_grad(policy_gradient)(state.actor)
    for mine, other in zip(jax.tree.leaves(ours.network), jax.tree.leaves(theirs.network), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-4 * float(jnp.abs(other).max() + 1e-3))


def test_no_advantage_and_no_gradient_beyond_the_cut(ready):
    state, batch = ready
    plain = dataclasses.replace(SMALL, entropy=0.0)
    flat = eqx.tree_at(lambda b: b.advantage, batch, jnp.zeros_like(batch.advantage))
    far = eqx.tree_at(lambda b: b.action, batch, batch.action + 10.0)
    far = eqx.tree_at(lambda b: b.log_prob, far, jnp.full_like(batch.log_prob, -1.0))
    for rows in (flat, far):
        grads = eqx.filter_grad(lambda a, rows=rows: plain.actor_loss(a, state, rows, KEY)[0])(state.actor)
        assert all((g == 0).all() for g in jax.tree.leaves(grads))


def test_the_actor_rests_while_the_value_warms_up():
    learner = dataclasses.replace(SMALL, critic_warmup=1)
    state, batch = rollout(learner)
    update = eqx.filter_jit(learner.update)
    after, _ = update(state, batch, KEY)
    same = lambda a, b: eqx.tree_equal(a.actor.network, b.actor.network)  # noqa: E731
    assert same(after, state) and not eqx.tree_equal(after.critic, state.critic)
    assert not same(update(after, batch, KEY)[0], state)


# --- worlds of chunks


def test_a_chunk_is_executed_until_the_episode_ends():
    cut = Chunking(predicted=5, observed=2, executed=3)
    world = ChunkedWorld(Track(), cut, links=2)
    state, window = world.reset(KEY)
    assert window.shape == (2, 1) and world.action_space.shape == (2, 5, 1)
    chain = jnp.stack([jnp.zeros((5, 1)), jnp.asarray([9.0, 0.2, 0.3, 0.1, 9.0])[:, None]])
    state, step = world.step(state, chain, KEY)
    np.testing.assert_allclose(step.obs[:, 0], [0.5, 0.6], rtol=1e-6)  # rows 1 to 3 were executed
    assert float(step.reward) == pytest.approx(0.6) and not step.terminated
    rest = chain.at[1, 1:4, 0].set(jnp.asarray([0.1, 0.5, 0.9]))
    state, step = world.step(state, rest, KEY)
    assert step.terminated and not step.truncated and bool(step.info["success"])
    assert float(step.reward) == pytest.approx(0.6) and float(step.obs[-1, 0]) == pytest.approx(1.2)
    assert world.spec.action_space == Track().action_space


def test_steps_are_those_of_the_world_inside():
    source = SMALL.rollouts(Track(), num_envs=4, length=5)
    assert isinstance(source, ChunkRollouts) and source.steps(3) == 3 * 4 * 5 * 2 and source.draws(41) == 2
    with pytest.raises(ConfigError, match="runs in Python"):
        SMALL.rollouts(GymnasiumEnv("CartPole-v1", 2))


def test_rewards_of_a_chunk_are_divided_by_the_spread_of_returns():
    state, batch = rollout()
    returns = np.asarray(SMALL.running_returns(batch))
    reward, done = np.asarray(batch.reward), np.asarray(batch.done)
    before = np.zeros(8)
    for t in range(4):
        expected = reward[t] + 0.99 * before
        np.testing.assert_allclose(returns[t], expected, rtol=1e-5)
        before = np.where(done[t], 0.0, expected)


# --- runs


def test_a_flow_learns_from_rewards_and_keeps_what_it_knew():
    size = dict(predicted=1, observed=1, executed=1, width=16, blocks=1)
    learner = ReinFlow(**size, num_envs=64, rollout_length=4, minibatch_size=64, hidden=(8,), learning_rate=1e-3,
                       critic_warmup=1)  # fmt: skip
    run = learn(learner, env=Bandit(), steps=60 * 256, evaluations=2, episodes=200, points=4)
    assert run.returns[-1, 0] > -0.05 > run.history["episode/return"][0, 0]
    assert (run.history["clamped"] < 0.2).all()


def test_it_goes_on_from_a_flow_policy_of_its_size():
    log = record(Track())
    base = learn(FlowPolicy(**SIZE, batch_size=16, warmup_updates=5), log, steps=20, points=1)
    start = SMALL.adopt(state_of(), base.states[0])
    for mine, theirs in ((start.actor.network, base.states[0].average), (start.normaliser, base.states[0].normaliser)):
        assert jax.tree.all(jax.tree.map(np.array_equal, *(eqx.filter(x, eqx.is_array) for x in (mine, theirs))))
    with pytest.raises(ConfigError, match="another size"):
        dataclasses.replace(SMALL, width=24).adopt(state_of(dataclasses.replace(SMALL, width=24)), base.states[0])


def record(world):
    from habitus.core.protocols import Policy
    from habitus.train.logs import record_log

    class Steady(Policy):
        def __call__(self, obs, carry, key):
            return jnp.full(1, 0.15), carry

    return record_log(Steady(), world, 10)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (dict(noise_low=0.3), "noise_low"),
        (dict(sampling_steps=0), "sampling_steps"),
        (dict(noise_hold=2.0), "noise_hold"),
        (dict(predicted=1), "predict 2 or more"),
        (dict(critic_warmup=-1), "critic_warmup"),
    ],
)
def test_settings_that_do_not_fit(bad, why):
    with pytest.raises(ConfigError, match=why):
        dataclasses.replace(SMALL, **bad)
