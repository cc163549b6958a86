"""Hume: candidates and their calls, values and their floor, slices and what moves them, and the stages of a run."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError
from habitus.core.policy import Deployed
from habitus.data.dataset import Dataset
from habitus.execution.planner import best_of, candidate_keys
from habitus.execution.two_rate import Advised
from habitus.generative.flow import euler_calls, flow_sample
from habitus.methods.generative._hume import Worth
from habitus.methods.generative.flow_policy import Timed
from habitus.methods.generative.hume import Hume
from habitus.methods.offline.cql import CQL

from .cases import KEY, close, gradient, same

ROWS, LENGTH, WON, GAMMA = 8, 10, 9, 0.98
TINY = dict(predicted=8, valued=3, refined=2, executed=2, period=4, candidates=4, sampling_steps=5, width=16, blocks=1,
            hidden=(8,), query_size=8, refiner_width=8, refiner_blocks=1, batch_size=8, warmup_updates=2)  # fmt: skip
PLAIN = dict(time_temperatures=(1.0, 1.0))
LEARNER = Hume(**TINY)
NONE = jnp.asarray(-jnp.inf)


def demonstrations():
    """Two episodes, one that is won with its tenth step and one that is cut without success."""
    rng, n = np.random.default_rng(0), 2 * LENGTH
    obs = rng.normal(size=(n + 1, 3)).astype(np.float32)
    last = np.arange(1, n + 1) % LENGTH == 0
    won = np.arange(n) == WON
    return Dataset.from_arrays(
        obs=obs[:-1], next_obs=obs[1:], action=rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        reward=won.astype(np.float32), terminated=won, truncated=last & ~won,
        observation_space=spaces.Box(-np.inf, np.inf, (3,)), action_space=spaces.Box(-1, 1, (2,)),
        meta={"horizon": LENGTH},
    )  # fmt: skip


LOG = demonstrations()
SPEC = dataclasses.replace(LOG.spec, updates=10)


@pytest.fixture(scope="module")
def state():
    return eqx.filter_jit(LEARNER.init)(SPEC, KEY)


def batch(rows=np.arange(ROWS), learner=LEARNER):
    return LOG.canonical().windows(learner.window, rows, learner.before)


macro = eqx.filter_jit(LEARNER.macro)


def silent(refiner):
    """The network with answers of zero."""
    return eqx.tree_at(lambda r: (r.out.weight, r.out.bias), refiner, replace_fn=jnp.zeros_like)


# --- candidates


@pytest.mark.parametrize(
    ("left", "calls"), [(1.0, 10), (0.98, 10), (0.96, 10), (0.94, 9), (0.92, 9), (0.9, 9), (0.7, 7), (0.55, 6)]
)
def test_calls_of_ten_steps_in_single_precision(left, calls):
    assert euler_calls(left, 0.0, 10) == calls


def test_candidates_differ_in_temperature_and_never_reach_the_upper_one(state):
    slow = dataclasses.replace(LEARNER, sampling_steps=10, candidates=5, time_temperatures=(0.9, 1.0)).slow(state)
    left, gain, calls = slow.planner.temperatures.of(5)
    np.testing.assert_allclose(left, [0.9, 0.92, 0.94, 0.96, 0.98])
    assert calls.tolist() == [9, 9, 9, 10, 10] and (gain == 1).all()
    assert int(slow(jnp.zeros((1, 3)), KEY).calls) == 47
    half = dataclasses.replace(LEARNER, theta2=0.5, **PLAIN).slow(state).planner
    assert half.temperatures.of(1)[2].tolist() == [3]  # of 5 steps, while half a step more than half the way is left


def test_a_gain_shortens_the_way_and_an_early_end_keeps_noise(state):
    """With a velocity of 1 everywhere the way is the number of calls times their size."""
    one = eqx.tree_at(lambda s: s.average, state, lambda x, level, window: jnp.ones_like(x) / 4)
    key = candidate_keys(KEY, 1)[0]
    start = jax.random.normal(key, (8, 2))
    for settings, way in (
        (PLAIN, 1.0),
        (dict(time_temperatures=(0.6, 1.0)), 0.6),
        (PLAIN | dict(noise_temperatures=(0.5, 1.0)), 0.5),
        (PLAIN | dict(theta2=0.4), 0.4),
    ):
        found = dataclasses.replace(LEARNER, candidates=1, **settings).slow(one)(jnp.zeros((1, 3)), KEY).chunk
        np.testing.assert_allclose(found, jnp.clip(start + way / 4, -1, 1), atol=1e-6)


def test_one_cold_candidate_and_no_refinement_is_the_slow_flow(state):
    learner = dataclasses.replace(LEARNER, candidates=1, theta1=1.0, **PLAIN)
    quiet = eqx.tree_at(lambda s: s.refiner_average, state, silent(state.refiner_average))
    policy = learner.policy(quiet)
    act, carry, obs = eqx.filter_jit(lambda p, *at: p(*at)), policy.init(), jnp.ones(3)
    key = candidate_keys(jax.random.split(KEY)[0], 1)[0]
    seen = state.normaliser(obs)[None]
    chunk = flow_sample(Timed(state.average), jax.random.normal(key, (8, 2)), 5, seen)
    for row in np.clip(chunk, -1, 1)[:4]:
        action, carry = act(policy, obs, carry, KEY)
        np.testing.assert_allclose(action, row, atol=1e-5)
    assert {k: int(v) for k, v in policy.report(carry).items()} == {
        "staleness": 3, "staleness/worst": 3, "calls": 5, "plans": 1, "fast/calls": 8,
    }  # fmt: skip


def test_the_best_of_more_is_never_worse_and_the_first_of_equals_is_taken(state):
    window, values, chunks = jnp.ones((1, 3)), [], []
    for n in (1, 4, 8):
        slow = dataclasses.replace(LEARNER, candidates=n, **PLAIN).slow(state)
        chunks.append(slow(window, KEY).chunk)
        values.append(float(slow.scorer(window, chunks[-1])))
    assert values == sorted(values) and values[0] < values[-1]
    even = eqx.tree_at(lambda s: s.target_critic, state, lambda obs, action: jnp.zeros(2))
    close(dataclasses.replace(LEARNER, candidates=4, **PLAIN).slow(even)(window, KEY).chunk, chunks[0], atol=1e-5)
    scores, order = jnp.asarray([0.3, 2.0, -1.0, 0.5]), jnp.asarray([2, 0, 3, 1])
    assert order[best_of(scores[order])] == best_of(scores) == 1


def test_a_chunk_is_worth_the_lesser_of_two_values_of_its_first_actions():
    chunk = jnp.arange(16.0).reshape(8, 2)
    worth = Worth(lambda obs, actions: jnp.stack([actions.sum(), obs.sum()]), now=1, valued=3)
    assert worth(jnp.full((2, 3), 100.0), chunk) == 2 + 3 + 4 + 5 + 6 + 7
    assert worth(jnp.zeros((2, 3)), chunk) == 0


# --- values


def test_rewards_and_floors_of_progress_in_closed_form():
    rows = LEARNER.macro(batch(np.arange(2 * LENGTH)))
    before = np.maximum(LENGTH - 3 - np.arange(LENGTH), 0)  # costly steps that are left to a success
    np.testing.assert_allclose(rows.floor[:LENGTH], -(1 - GAMMA**before) / 0.02, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(rows.floor[LENGTH:], -50, rtol=1e-4)
    paid = np.append(np.minimum(before, 3), np.full(LENGTH, 3))
    np.testing.assert_allclose(rows.reward, -(1 - GAMMA**paid) / 0.02, rtol=1e-4, atol=1e-6)
    goes_on = np.append(before >= 3, np.ones(LENGTH, bool))
    np.testing.assert_allclose(rows.discount, np.where(goes_on, GAMMA**3, 0), rtol=1e-5)
    obs = np.asarray(LOG.obs)
    np.testing.assert_array_equal(
        rows.next_obs[goes_on], obs[np.minimum(np.arange(20) + 3, [WON] * 10 + [19] * 10)[goes_on]]
    )
    assert same(rows.action[:2], np.stack([np.asarray(LOG.action)[i : i + 3].ravel() for i in (0, 1)]))
    # returns are consistent: the floor of a row is its reward and the discounted floor of where it leads
    after = np.minimum(np.arange(20) + 3, [WON] * 10 + [19] * 10)
    np.testing.assert_allclose(rows.floor, rows.reward + rows.discount * rows.floor[after], rtol=1e-4, atol=1e-4)


def test_rewards_of_the_log_stop_where_the_episode_does():
    rows = dataclasses.replace(LEARNER, rewards="log").macro(batch(np.arange(2 * LENGTH)))
    np.testing.assert_allclose(rows.reward[:LENGTH], np.where(np.arange(10) < 7, 0, GAMMA ** (9.0 - np.arange(10))))
    np.testing.assert_allclose(rows.discount[:LENGTH], np.where(np.arange(10) < 7, GAMMA**3, 0), rtol=1e-6)
    np.testing.assert_allclose(rows.discount[-3:], GAMMA ** np.array([3, 2, 1]), rtol=1e-6)  # cut, not over
    assert same(rows.next_obs[-1], np.asarray(LOG.next_obs)[-1])
    assert (rows.floor == -jnp.inf).all()
    with pytest.raises(ConfigError, match="how far an episode is from its end"):
        LEARNER.macro(dataclasses.replace(batch(), left=None))


def row_of(state, floor):
    """Arguments of the conservative gap, at one row of the log."""
    rows = macro(batch())
    return state, rows.obs[0], rows.next_obs[0], rows.action[0], KEY, floor


@eqx.filter_jit
def gap_of(critic, args):
    return CQL.conservative_gap(LEARNER, critic, *args)


def test_without_a_floor_the_gap_is_that_of_cql(state):
    ours, plain = (gap_of(state.critic, row_of(state, f)) for f in (NONE, None))
    close(ours, plain)
    lifted = gap_of(state.critic, row_of(state, jnp.asarray(5.0)))
    assert (lifted > ours).all()


def test_values_below_the_floor_are_not_pushed_down(state):
    """With a floor far above them, what is left of the gradient is that of the logged action."""
    args = row_of(state, jnp.asarray(1e3))
    found = eqx.filter_jit(eqx.filter_grad(lambda c: gap_of(c, args).sum()))(state.critic)
    logged = eqx.filter_grad(lambda c: -c(args[1], args[3]).sum())(state.critic)
    close(found, logged, atol=1e-6)


def test_uniform_actions_count_by_their_density(state):
    """With a policy of hardly any spread, whose own actions count nothing, the integral is that of uniform ones."""
    narrow = eqx.tree_at(
        lambda s: (s.actor.net.mlp.layers[-1].weight, s.actor.net.mlp.layers[-1].bias), state,
        (jnp.zeros((8, 12)), jnp.repeat(jnp.asarray([0.0, -20.0]), 6)),
    )  # fmt: skip
    flat = jax.tree.map(lambda x: 0 * x if eqx.is_inexact_array(x) else x, state.critic)
    np.testing.assert_allclose(gap_of(flat, row_of(narrow, NONE)), 6 * np.log(2) + np.log(4 / 12), rtol=1e-5)


def test_the_target_is_the_best_of_several_actions_by_the_lesser_value(state):
    rows = macro(batch())
    rows = dataclasses.replace(rows, reward=jnp.zeros(ROWS), discount=jnp.ones(ROWS))
    critic = lambda obs, action: jnp.stack([action[0], action[0] + 1])  # noqa: E731
    judged = eqx.tree_at(lambda s: s.target_critic, state, critic)
    error, value = LEARNER.bellman_error(state.critic, judged, rows, KEY)
    for i, key in enumerate(jax.random.split(KEY, ROWS)[:2]):
        drawn = jax.vmap(state.actor(rows.next_obs[i]).sample)(jax.random.split(key, LEARNER.samples))
        np.testing.assert_allclose(value[i] - error[i], drawn[:, 0].max(), rtol=1e-5)


def test_the_actor_climbs_the_values(state):
    rows = macro(batch())
    steep = eqx.tree_at(lambda s: s.critic, state, lambda obs, action: jnp.full(2, 100 * action[0]))
    bias = (
        eqx.filter_jit(lambda a: gradient(LEARNER.actor_loss, a, steep, rows, KEY))(state.actor).net.mlp.layers[-1].bias
    )
    assert bias[0] < -1 and jnp.abs(bias[1:6]).max() < jnp.abs(bias[0]) / 10


# --- slices


def test_a_slice_that_is_right_is_left_alone(state):
    """A slow flow that draws the log's own action, always the same, leaves the fast one nothing to do."""
    wanted = jnp.tile(jnp.asarray([0.3, -0.6]), (8, 1))
    exact = lambda x, level, window: (wanted - x) / (1 - level / 100)  # noqa: E731
    sure = eqx.tree_at(lambda s: s.average, state, exact)
    shown = batch()
    constant = jnp.broadcast_to(wanted[0], shown.steps.action.shape)
    shown = eqx.tree_at(lambda b: b.steps.action, shown, constant)
    loss = eqx.filter_jit(lambda refiner: LEARNER.refiner_loss(refiner, sure, shown, KEY)[0])
    np.testing.assert_allclose(loss(silent(state.refiner)), 0, atol=1e-9)
    assert loss(state.refiner) > 1e-3
    fast = LEARNER.fast(eqx.tree_at(lambda s: s.refiner_average, state, silent(state.refiner)))
    assert same(fast.refine(wanted[:2], jnp.asarray(2), jnp.ones(3)), wanted[:2])


def test_steps_past_the_end_do_not_count(state):
    shown = batch(np.full(ROWS, LENGTH - 2))  # two steps within the episode
    other = eqx.tree_at(lambda b: b.steps.action, shown, shown.steps.action.at[:, 2:].set(0.9))
    loss = eqx.filter_jit(lambda b: LEARNER.refiner_loss(state.refiner, state, b, KEY)[0])
    assert loss(shown) == loss(other) != loss(batch())


def test_slices_are_taken_at_the_age_of_the_plan_and_executed_row_by_row(state):
    fast = LEARNER.fast(eqx.tree_at(lambda s: s.refiner_average, state, silent(state.refiner)))
    chunk, carry, found = jnp.linspace(-1, 1, 16).reshape(8, 2), fast.init(), []
    for age in (0, 1, 2, 0, 1):
        advice = Advised(jnp.ones(3), chunk, jnp.ones(3), jnp.asarray(age), jnp.array(True), jnp.asarray(age == 0))
        action, carry = fast(advice, carry, KEY)
        found.append(action)
    np.testing.assert_allclose(found, chunk[jnp.asarray([0, 1, 2, 0, 1])], atol=1e-6)
    assert fast.report(carry) == {"calls": 12}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (dict(period=8), "lie beyond the 8 steps"),
        (dict(latency=4), "lie beyond the 8 steps"),
        (dict(refined=9), "lie beyond the 8 steps"),
        (dict(executed=3), "execute fewer"),
        (dict(valued=9), "more than the 8"),
        (dict(rewards="sparse"), "'progress' or 'log'"),
        (dict(time_temperatures=(0.0, 1.0)), "time_temperatures must be"),
        (dict(theta2=0.2, time_temperatures=(0.7, 1.0)), "not one of 5 steps"),
        (dict(plan_share=0.6, value_share=0.4), "leave some"),
    ],
)
def test_settings_that_do_not_fit(settings, why):
    with pytest.raises(ValueError, match=why):
        Hume(**TINY | settings)


def test_it_needs_a_planned_number_of_updates():
    with pytest.raises(ConfigError, match="planned number of updates"):
        LEARNER.init(LOG.spec, KEY)


# --- the run


def test_each_stage_trains_its_own_networks(state, tmp_path):
    assert state.ends.tolist() == [5, 8, 10] and state.total == 5
    update = eqx.filter_jit(LEARNER.update)
    parts = {
        "slow": ("denoiser", "average", "denoiser_opt"),
        "values": ("critic", "target_critic", "actor", "log_temperature"),
        "fast": ("refiner", "refiner_average"),
    }
    for step, moves in ((0, "slow"), (4, "slow"), (5, "values"), (7, "values"), (8, "fast"), (9, "fast")):
        before = dataclasses.replace(state, step=jnp.asarray(step, jnp.int32))
        after, metrics = update(before, batch(), jax.random.key(step))
        assert after.step == step + 1 and all(np.isfinite(x) for x in metrics.values())
        for name, fields in parts.items():
            for field in fields:
                pair = (jax.tree.leaves(eqx.filter(getattr(x, field), eqx.is_array)) for x in (before, after))
                assert any((a != b).any() for a, b in zip(*pair, strict=True)) == (name == moves), (step, field)
    deployed = Deployed.of(LEARNER.policy(after), SPEC)
    deployed.save(tmp_path)
    assert np.array_equal(Deployed.load(tmp_path).act(np.ones(3)), deployed.act(np.ones(3)))
