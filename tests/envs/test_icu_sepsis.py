"""ICU-Sepsis: the published figures, exactly, and the package's own environment, step by step."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError, MissingExtra
from habitus.envs.adapters import icu_sepsis
from habitus.envs.adapters.icu_sepsis import DEATH, SURVIVAL, sepsis_tables
from habitus.envs.registry import make
from habitus.envs.tabular import Tabular
from habitus.train.loop import learn


@pytest.fixture(scope="module")
def tables():
    if find_spec("icu_sepsis") is None:
        pytest.skip("icu-sepsis is not installed")
    return sepsis_tables()


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(icu_sepsis, "find_spec", lambda name: None)
    sepsis_tables.cache_clear()
    with pytest.raises(MissingExtra, match=r"habitus\[sepsis\]"):
        make("icu-sepsis")


def test_survival_of_clinicians_and_of_the_optimum_are_the_published_ones(tables):
    best, values = tables.model.solve()
    assert tables.model.mean_return(tables.expert) == pytest.approx(0.7818, abs=5e-4)
    assert tables.model.mean_return(best) == pytest.approx(0.8751, abs=5e-4)
    q = tables.model.action_values(values)
    live = ~tables.model.terminal
    np.testing.assert_allclose(values[live], q[live].max(1), atol=1e-9)


def test_fewer_actions_are_never_better_than_all(tables):
    _, free = tables.model.solve()
    _, bound = tables.model.solve(allowed=tables.admissible)
    assert (bound <= free + 1e-9).all()


def test_an_action_that_is_not_admissible_acts_like_the_mean_of_those_that_are(tables):
    for state in (0, 17, 712):
        moves, ours = tables.model.transition[state], tables.admissible[state]
        np.testing.assert_allclose(moves[~ours], np.broadcast_to(moves[ours].mean(0), moves[~ours].shape), atol=1e-9)


def test_sampled_steps_follow_the_tables(tables):
    world = make("icu-sepsis")
    state, action = 17, 3
    inner = jnp.asarray(state, jnp.int32)
    keys = jax.random.split(jax.random.key(0), 20_000)
    after = jax.jit(jax.vmap(lambda k: world.env.step(inner, jnp.asarray(action), k)[0]))(keys)
    share = np.bincount(np.asarray(after), minlength=716) / len(keys)
    wanted = tables.model.transition[state, action]
    assert np.abs(share - wanted).max() < 0.02
    assert not share[wanted == 0].any()


def test_only_survival_pays_and_both_ends_terminate(tables):
    world = make("icu-sepsis", max_episode_steps=200)
    policy = jnp.log(jnp.asarray(tables.expert))

    def stay(key):
        def one(at, key):
            state, over = at
            act, move = jax.random.split(key)
            after, step = world.env.step(state, jax.random.categorical(act, policy[state]), move)
            after = jnp.where(over, state, after)
            return (after, over | step.terminated), jnp.where(over, 0.0, step.reward)

        (last, over), paid = jax.lax.scan(one, (world.env.reset(key)[0], False), jax.random.split(key, 200))
        return last, over, paid.sum()

    last, over, paid = jax.jit(jax.vmap(stay))(jax.random.split(jax.random.key(1), 4000))
    assert over.all() and set(np.unique(last)) == {DEATH, SURVIVAL}
    np.testing.assert_array_equal(paid, last == SURVIVAL)
    assert float(paid.mean()) == pytest.approx(0.7818, abs=0.025)


def test_measurements_are_the_standardised_centres_and_noise(tables):
    world = make("icu-sepsis", observe="measurements", noise=0.0)
    state, obs = world.reset(jax.random.key(2))
    np.testing.assert_allclose(obs, tables.centres[int(state.state)], rtol=1e-5, atol=1e-6)
    noisy = make("icu-sepsis", observe="measurements", noise=0.1)
    shown = jax.vmap(lambda k: noisy.env._show(state.state, k))(jax.random.split(jax.random.key(3), 2000))
    assert float(shown.std(0).mean()) == pytest.approx(0.1, rel=0.05)
    assert obs.shape == world.observation_space.shape == (47,)


def test_bad_parameters_are_named(tables):
    with pytest.raises(ConfigError, match="noise"):
        make("icu-sepsis", noise=-0.1)
    with pytest.raises(ConfigError, match="did you mean noise"):
        make("icu-sepsis", nois=0.1)


def test_it_is_a_world_to_learn_in(tables):
    world = make("icu-sepsis", observe="measurements", max_episode_steps=20)
    run = learn(
        "dqn", env=world, steps=300, source_options={"warmup": 100, "capacity": 400}, hidden=(8,), evaluations=1
    )
    assert 0 <= run.returns.mean() <= 1


def test_reading_the_tables_imports_neither_the_package_nor_gym(tables):
    code = "import sys; from habitus.envs.registry import make; make('icu-sepsis'); "
    code += "assert not {'gym', 'icu_sepsis'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


class TestTabular:
    """A chain of two states: action 0 ends it with 1, action 1 goes on, unpaid."""

    def chain(self):
        transition = np.zeros((3, 2, 3))
        transition[0, 0, 2] = transition[0, 1, 1] = transition[1, :, 2] = transition[2, :, 2] = 1
        reward = np.array([[1.0, 0.0], [3.0, 0.0], [9.0, 9.0]])
        return Tabular(transition, reward, np.array([1.0, 0, 0]), np.array([False, False, True]))

    def test_the_discount_decides_between_soon_and_more(self):
        for discount, first in ((0.5, 1), (0.2, 0)):
            policy, values = self.chain().solve(discount)
            assert policy[0, first] == 1 and values[0] == max(1.0, 3 * discount)
            assert values[2] == 0

    def test_a_policy_that_never_ends_has_no_undiscounted_value(self):
        world = self.chain()
        world.transition[1, 1] = [0, 1, 0]
        stay = np.array([[0, 1.0], [0, 1.0], [1, 0]])
        with pytest.raises(ConfigError, match="never ends"):
            world.values(stay)
        assert world.mean_return(stay, 0.9) == 0.0

    def test_rows_that_are_no_distributions_are_refused(self):
        good = self.chain()
        with pytest.raises(ConfigError, match="sum to 1"):
            Tabular(2 * good.transition, good.reward, good.start, good.terminal)
