"""BESO and GC-BC: memory, goals, guidance, the loss, and what they learn from play in which two ways are right.

That solvers have their orders and levels their law is tested in `tests/generative`.
"""

from __future__ import annotations

import dataclasses
from collections import deque

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError, SpaceMismatch
from habitus.core.spec import Spec
from habitus.data.dataset import Dataset
from habitus.data.hindsight import HindsightSource
from habitus.data.source import DatasetSource
from habitus.generative.edm import Denoiser
from habitus.generative.guidance import guided
from habitus.generative.multistep import solver
from habitus.generative.samplers import sample
from habitus.generative.schedules import exponential, karras
from habitus.methods.generative._goal_imitation import GoalPolicy
from habitus.methods.generative.beso import BESO
from habitus.methods.generative.gcbc import GCBC
from habitus.nets.normalise import Standardiser
from habitus.nets.optim import cosine_adamw
from habitus.nets.sequence import Steps
from habitus.train.loop import learn
from habitus.train.setup import log_source

KEY = jax.random.key(0)
SIZES = {"context": 3, "width": 16, "layers": 1, "heads": 2, "batch_size": 64, "learning_rate": 5e-3, "dropout": 0.0}


def play(episodes=100, length=6, seed=0):
    """Somebody goes to -1 or 1 in an episode, in each step upwards or downwards, and asks for nothing.

    The action's first entry says where, three times as far in the user's units; its second is up or down.
    """
    rng, rows = np.random.default_rng(seed), episodes * length
    side = np.repeat(rng.choice([-1.0, 1.0], (episodes, 1)), length, 0).astype(np.float32)
    up = rng.choice([-1.0, 1.0], (rows, 1)).astype(np.float32)
    last = np.arange(1, rows + 1) % length == 0
    before = np.where(np.roll(last, 1)[:, None], 0.0, np.roll(side, 1, 0)).astype(np.float32)

    def obs(place):
        return {"achieved_goal": place, "desired_goal": np.full_like(place, 5.0), "observation": np.ones_like(place)}

    box = spaces.Box(-9, 9, (1,))
    return Dataset.from_arrays(
        obs=obs(before), next_obs=obs(side), action=np.concatenate([3 * side, 0.5 * up], 1), reward=np.zeros(rows),
        terminated=np.zeros(rows, bool), truncated=last, action_space=spaces.Box(-4, 4, (2,)), validate=False,
        observation_space=spaces.Dict({"achieved_goal": box, "desired_goal": box, "observation": box}),
    )  # fmt: skip


LOG = play()
ACHIEVED, DESIRED = 0, 1  # columns of an observation
SPEC = dataclasses.replace(LOG.spec, updates=300)


def seen(place, goal):
    return jnp.asarray([place, goal, 1.0], jnp.float32)


@pytest.fixture(scope="module")
def fresh():
    """A learner, its first state, and a batch."""
    learner = BESO(**SIZES)
    source = HindsightSource(LOG, 64, window=3)
    state = eqx.filter_jit(learner.init)(SPEC, KEY)
    return learner, state, source.draw((), None, KEY)[1]


@pytest.fixture(scope="module")
def run():
    return learn(BESO(**SIZES), LOG, 1200, points=1)


# --- memory


class Echo(GoalPolicy):
    """Answers with what it is shown: the row of now, the newest state, the last action, the goal."""

    def draw(self, past, now, states, goal, key):
        before = jnp.where(now > 0, past[jnp.maximum(now - 1, 0), 0], -1.0)
        oldest = jnp.where(now > 0, past[0, 0], -1.0)
        return jnp.stack([now.astype(jnp.float32), states[now, -1], states[0, -1], goal[0, -1], before, oldest])


def test_it_remembers_the_last_states_and_actions_and_begins_with_a_shorter_sequence(fresh):
    _, state, _ = fresh
    box = Spec(SPEC.observation_space, spaces.Box(-100, 100, (6,)))
    mean, std = float(state.rows.scale.mean[-1]), float(state.rows.scale.std[-1])
    scale = Standardiser(jnp.full(6, 0.3), jnp.full(6, 2.0))
    policy = Echo((), state.rows, scale, Steps.blank(box, 3), clip=50.0)
    act = jax.jit(lambda obs, carry: policy(obs, carry, KEY))
    places, actions, carry = deque(maxlen=3), deque(maxlen=2), policy.init()
    for step in range(7):
        places.append((0.1 * step - mean) / std)
        found, carry = act(seen(0.1 * step, 1.0 + step), carry)
        found = (found - 0.3) / 2.0
        known = [len(places) - 1, places[-1], places[0], (1 + step - mean) / std]
        known += [actions[-1], actions[0]] if actions else [-1, -1]
        np.testing.assert_allclose(found, known, atol=1e-5)
        actions.append(found[0])
    np.testing.assert_array_equal(policy.init().valid, False)


def test_what_fills_up_a_short_history_is_never_seen(fresh):
    learner, state, _ = fresh
    policy = learner.policy(state)
    filled = eqx.tree_at(lambda p: (p.blank.obs, p.blank.action), policy, replace_fn=lambda x: x + 9)
    act = eqx.filter_jit(lambda policy, obs, carry: policy(obs, carry, KEY))
    carries = [policy.init(), filled.init()]
    for step in range(3):
        pairs = [act(policy, seen(0.2 * step, 1.0), carry) for carry in carries]
        np.testing.assert_allclose(pairs[0][0], pairs[1][0], atol=1e-5)
        carries = [carry for _, carry in pairs]


def test_actions_are_scaled_to_the_log_and_clipped_a_tenth_beyond_it(fresh):
    learner, state, _ = fresh
    np.testing.assert_allclose(state.scale.undo(jnp.ones(2)), [0.75, 0.125])  # of a box of 4
    loud = eqx.tree_at(lambda s: s.average.network.out.bias, state, jnp.array([1e3, -1e3]))
    action, carry = eqx.filter_jit(learner.policy(loud))(seen(0.0, 1.0), state.blank, KEY)
    np.testing.assert_allclose(action, [0.75 * 1.1, -0.125 * 1.1], rtol=1e-5)
    np.testing.assert_array_equal(carry.action[-1], action)


# --- goals and guidance


def test_guidance_0_ignores_the_goal_1_is_the_conditional_model_and_beyond_it_extrapolates(fresh):
    _, state, _ = fresh
    x, sigma, states = jnp.ones((3, 2)), jnp.asarray(0.4), jnp.ones((3, 2))
    goal, nothing = jnp.ones((1, 2)), jnp.zeros((1, 2))

    @eqx.filter_jit
    def at(strength, goal):
        return guided(lambda x, s, g: state.actor(x, s, states, g), goal, nothing, strength)(x, sigma)

    plain, aimed = at(0.0, nothing), at(1.0, goal)
    np.testing.assert_array_equal(at(0.0, goal), plain)
    np.testing.assert_allclose(aimed, eqx.filter_jit(state.actor)(x, sigma, states, goal), atol=1e-6)
    np.testing.assert_allclose(at(1.0, nothing), plain, atol=1e-6)
    np.testing.assert_allclose(at(2.0, goal), plain + 2 * (aimed - plain), atol=1e-5)
    assert float(jnp.abs(aimed - plain).max()) > 1e-3


@pytest.mark.parametrize("strength, each", [(0.0, 1), (1.0, 1), (1.5, 2)])
def test_an_action_costs_one_call_a_step_and_guidance_beyond_the_two_policies_another(fresh, strength, each):
    learner, state, _ = fresh
    calls = []

    class Counting(Denoiser):
        def __call__(self, *given):
            jax.debug.callback(lambda: calls.append(1))
            return super().__call__(*given)

    counted = Counting(state.average.network, state.average.sigma_data)
    state = dataclasses.replace(state, average=counted)
    policy = dataclasses.replace(learner, guidance=strength).policy(state)
    jax.block_until_ready(eqx.filter_jit(policy)(seen(0.0, 1.0), policy.init(), KEY))
    jax.effects_barrier()
    assert len(calls) == 3 * each


@eqx.filter_jit
def loss_of(learner, state, batch):
    return learner.actor_loss(state.actor, state, batch, KEY)[0]


def with_goal(batch, goal):
    return eqx.tree_at(lambda b: b.steps.obs, batch, batch.steps.obs.at[..., DESIRED].set(goal))


def test_the_loss_is_told_the_goal_unless_it_is_dropped(fresh):
    learner, state, batch = fresh
    never, always = (dataclasses.replace(learner, goal_drop=p) for p in (0.0, 1.0))
    other = with_goal(batch, -0.5)
    assert float(loss_of(always, state, batch)) == float(loss_of(always, state, other))
    assert float(loss_of(never, state, batch)) != float(loss_of(never, state, other))
    # dropped is the same as a goal that is the mean of what is achieved: zeros after scaling
    mean = float(state.rows.scale.mean[-1])
    np.testing.assert_allclose(loss_of(never, state, with_goal(batch, mean)), loss_of(always, state, batch), rtol=1e-5)


def test_the_loss_is_the_mean_over_the_rows_of_the_episode_of_what_the_network_misses(fresh):
    learner, state, batch = fresh
    assert not batch.valid.all()
    padded = ~batch.valid[..., None]
    other = eqx.tree_at(
        lambda b: (b.steps.action, b.steps.obs), batch,
        (batch.steps.action + 7 * padded, batch.steps.obs.at[..., ACHIEVED].add(7 * padded[..., 0])),
    )  # fmt: skip
    np.testing.assert_allclose(loss_of(learner, state, batch), loss_of(learner, state, other), rtol=1e-5)
    shifted = eqx.tree_at(lambda b: b.steps.action, batch, batch.steps.action.at[0, 0].add(0.5))
    assert float(loss_of(learner, state, batch)) != float(loss_of(learner, state, shifted))


def test_a_window_has_one_level_and_its_rows_see_nothing_later(fresh):
    learner, state, batch = fresh
    actions, states = jnp.zeros((3, 2)), jnp.ones((3, 2))
    errors = jax.jit(lambda states: learner.errors(state.actor, actions, states, jnp.zeros((1, 2)), KEY))
    one, other = errors(states), errors(states.at[2].add(1.0))
    np.testing.assert_array_equal(one[:2], other[:2])
    assert (one[2] != other[2]).any()
    # of a network that answers 0 the errors are the squared target, of variance 1 at every level
    silent = Denoiser(lambda x, code, *_: jnp.zeros_like(x), 0.5)
    data = 0.5 * jax.random.normal(KEY, (40_000,))
    for sigma in (0.01, 0.5, 5.0):
        found = silent.errors(data, jnp.asarray(sigma), jax.random.normal(jax.random.key(1), data.shape))
        assert float(found.mean()) == pytest.approx(1.0, abs=0.02)


def test_the_denoiser_keeps_what_is_clean_and_ignores_what_is_noise(fresh):
    _, state, _ = fresh
    x = jnp.array([[0.3, -0.2], [0.1, 0.4], [0.0, 1.0]])
    given = jnp.ones((3, 2)), jnp.zeros((1, 2))
    np.testing.assert_allclose(eqx.filter_jit(state.actor)(x, jnp.asarray(1e-6), *given), x, atol=1e-5)
    skip, out, _ = state.actor.scales(jnp.asarray(1e5))
    np.testing.assert_allclose([skip, out], [0.0, 0.5], atol=1e-6)


# --- samplers


def test_grids_have_their_levels():
    np.testing.assert_allclose(exponential(3, 0.05, 1.0), [1, 0.22361, 0.05, 0], atol=1e-5)
    for rho in (5.0, 7.0):
        grid = karras(9, 0.02, 1.0, rho)
        assert float(grid[0]) == 1.0 and float(grid[-2]) == np.float32(0.02) and float(grid[-1]) == 0.0


def test_many_steps_of_euler_map_noise_to_gaussian_data_as_the_exact_flow_does():
    mean, std, high = 0.3, 0.5, 1.0

    def exact(x, s):
        return (std**2 * x + s**2 * mean) / (std**2 + s**2)

    noise = jax.random.normal(KEY, (20_000,))
    grid = exponential(1000, 0.002, high)
    euler, ddim = (jax.jit(lambda n=n: sample(exact, noise, grid, KEY, solver=solver(n)))() for n in ("euler", "ddim"))
    np.testing.assert_allclose(euler, ddim, atol=2e-5)
    spread = high * std / np.sqrt(std**2 + high**2) * float(noise.std())
    assert float(euler.std()) == pytest.approx(spread, rel=0.01)
    anew = jax.jit(lambda: sample(exact, noise, exponential(200, 0.02, high), KEY, solver=solver("euler-ancestral")))()
    assert float(anew.std()) == pytest.approx(0.495, abs=0.01)


def test_the_sampler_is_chosen_after_training(run):
    state, learner = jax.tree.map(jnp.asarray, run.states[0]), run.learner
    acted = []
    for changes in (
        {},
        {"sampling_steps": 1},
        {"solver": "dpm++2m", "sampling_steps": 10},
        {"solver": "euler-ancestral", "grid": "linear"},
    ):
        policy = dataclasses.replace(learner, **changes).policy(state)
        assert len(policy.sigmas) == changes.get("sampling_steps", 3) + 1
        acted.append(eqx.filter_jit(policy)(seen(0.0, 1.0), policy.init(), KEY)[0])
    assert len({tuple(a.tolist()) for a in acted}) == 4


# --- training


def test_what_acts_is_the_average_and_the_learning_rate_ends_at_0(fresh):
    learner, state, batch = fresh
    update = eqx.filter_jit(learner.update)
    after, _ = update(state, batch, KEY)
    one, average, first = (s.network.out.bias for s in (after.actor, after.average, state.actor))
    np.testing.assert_allclose(average, 0.1 * first + 0.9 * one, rtol=1e-5)  # (1 + 0) / (10 + 0) at first
    assert learner.policy(after).network is after.average
    schedule = cosine_adamw(1.0, jnp.asarray(4.0), 0.0)
    opt, rates = schedule.init(jnp.zeros(1)), []
    for _ in range(6):
        step, opt = schedule.update(jnp.ones(1), opt, jnp.zeros(1))
        rates.append(-float(step[0]))
    np.testing.assert_allclose(rates, [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0, 0], atol=1e-5)
    endless = cosine_adamw(1.0, jnp.inf, 0.0).update(jnp.ones(1), opt, jnp.zeros(1))[0]
    assert float(endless[0]) == pytest.approx(-1, 1e-4)


@eqx.filter_jit
def first_actions(policy, goal):
    """In the user's units, of 400 episodes."""
    keys = jax.random.split(jax.random.key(7), 400)
    return 4 * jax.vmap(lambda key: policy(seen(0.0, goal), policy.init(), key)[0])(keys)


def test_it_goes_where_it_is_asked_to_in_either_way_and_plays_where_the_goal_is_ignored(run):
    state = jax.tree.map(jnp.asarray, run.states[0])
    for goal in (-1.0, 1.0):
        found = first_actions(run.learner.policy(state), goal)
        assert ((found[:, 0] * goal) > 2).mean() > 0.95
        assert (jnp.abs(found[:, 1]) > 0.25).mean() > 0.8 and 0.3 < (found[:, 1] > 0).mean() < 0.7
    ignoring = first_actions(dataclasses.replace(run.learner, guidance=0.0).policy(state), 1.0)
    assert (jnp.abs(ignoring[:, 0]) > 1).mean() > 0.75 and 0.3 < (ignoring[:, 0] > 0).mean() < 0.7


def test_the_clone_goes_there_too_but_takes_the_mean_of_the_two_ways():
    run = learn(GCBC(**SIZES), LOG, 600, points=1)
    state = jax.tree.map(jnp.asarray, run.states[0])
    for goal in (-1.0, 1.0):
        found = first_actions(run.learner.policy(state), goal)
        assert ((found[:, 0] * goal) > 2).all() and (jnp.abs(found[:, 1]) < 0.25).all()
        assert (found == found[0]).all()


# --- what it is given


def test_a_log_with_goals_is_drawn_from_in_hindsight_and_one_without_as_it_is():
    learner = BESO(**SIZES)
    source = log_source(learner, LOG)
    assert isinstance(source, HindsightSource) and (source.window, source.batch_size) == (3, 64)
    plain = Dataset.from_arrays(
        np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32), np.zeros((8, 1), np.float32), np.zeros(8),
        np.ones(8, bool), action_space=spaces.Box(-1, 1, (1,)), validate=False,
    )  # fmt: skip
    assert type(log_source(learner, plain)) is DatasetSource
    assert eqx.filter_eval_shape(learner.init, plain.spec, KEY).rows.goals == 0


@pytest.mark.parametrize(
    "bad, match",
    [
        ({"sampling_steps": 0}, "sampling_steps must be 1"),
        ({"sigma_min": 1.0}, "sigma_min is 1.0 and sigma_max 1.0"),
        ({"solver": "eulr"}, "a solver is one of"),
        ({"grid": "linea"}, "a grid of noise levels is one of"),
        ({"width": 10}, "heads must divide"),
        ({"goal_drop": 1.2}, "goal_drop is a probability"),
    ],
)
def test_settings_that_make_no_sense_are_refused(bad, match):
    with pytest.raises(ConfigError, match=match):
        BESO(**bad)


def test_spaces_that_do_not_fit_are_refused():
    box = spaces.Box(-1, 1, (2,))
    with pytest.raises(ConfigError, match="BESO takes its scales from a log"):
        BESO().init(Spec(box, box), KEY)
    with pytest.raises(SpaceMismatch, match="GCBC needs a bounded Box"):
        GCBC().init(Spec(box, spaces.Box(-np.inf, np.inf, (1,))), KEY)
    uneven = Spec(spaces.Dict({"achieved_goal": box, "desired_goal": spaces.Box(-1, 1, (3,))}), box, dataset=LOG)
    with pytest.raises(SpaceMismatch, match="as many, or a multiple"):
        BESO().init(uneven, KEY)
