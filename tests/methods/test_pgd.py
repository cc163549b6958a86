"""Policy-guided diffusion: what the push does, on data whose denoiser is known, and what a set holds."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError, DataError, SpaceMismatch
from habitus.core.protocols import Policy
from habitus.core.trees import seldom
from habitus.data.dataset import Dataset
from habitus.data.windows import window_starts
from habitus.generative.columns import Columns
from habitus.generative.edm import Denoiser
from habitus.methods.offline.pgd import PolicyGuidedDiffusion, action_push
from habitus.nets.distributions import Normal
from habitus.nets.normalise import Standardiser
from habitus.nets.policies import Deterministic, Noisy, Normalised, Sampling, likelihood
from habitus.train.loop import learn
from habitus.train.trajectory_model import TrajectoryModel

KEY = jax.random.key(0)


class Constant(Policy):
    """Always the same action."""

    action: jax.Array

    def __call__(self, obs, carry, key):
        return self.action, carry


def log_of(lengths=(5, 9, 3), terminated=(True, False, True), obs=2, actions=1, seed=0, **spaces_given):
    """Episodes of given lengths whose observations count the rows."""
    rows, rng = sum(lengths), np.random.default_rng(seed)
    ends = np.cumsum(lengths) - 1
    flags = np.zeros((2, rows), bool)
    flags[0, ends], flags[1, ends] = terminated, ~np.array(terminated)
    column = np.arange(rows, dtype=np.float32)[:, None] + np.arange(obs, dtype=np.float32)
    return Dataset.from_arrays(
        obs=column, next_obs=column + 1, action=rng.uniform(-1, 1, (rows, actions)).astype(np.float32),
        reward=rng.normal(size=rows).astype(np.float32), terminated=flags[0], truncated=flags[1],
        action_space=spaces.Box(-1, 1, (actions,)), observation_space=spaces.Box(-np.inf, np.inf, (obs,)),
    )  # fmt: skip


LOG = log_of()


class Zero(eqx.Module):
    """F = 0, so that D(x; sigma) = x / (1 + sigma^2), which is exact for data from N(0, I)."""

    def __call__(self, x, level):
        return jnp.zeros_like(x)


def gaussian(length=16, obs=2):
    """The exact model of trajectories whose columns are independent standard Gaussians."""
    columns = Columns(Standardiser(jnp.zeros(obs + 3), jnp.ones(obs + 3)), jnp.float32(-9), jnp.float32(9), obs, 1)
    return TrajectoryModel(Denoiser(Zero()), columns, length)


def source(**changes):
    given = dict(model=gaussian(), windows=256) | changes
    return PolicyGuidedDiffusion(LOG, **given)


@eqx.filter_jit
def drawn(made, guidance, target=0.5):
    return made.generate(KEY, Constant(jnp.array([target])), guidance)


# --- guidance


def test_the_states_are_those_of_the_unguided_whatever_the_guidance():
    made = source()
    plain = eqx.filter_jit(lambda s: s.generate(KEY))(made)
    for strength in (0.0, 0.5, 2.0):
        found = drawn(made, jnp.asarray(strength))
        assert (found[..., :2] == plain[..., :2]).all() and (found[..., 3:] == plain[..., 3:]).all()
        assert (found == plain).all() == (strength == 0)
    assert float(plain[..., :2].std()) == pytest.approx(1.04, abs=0.02)


def test_more_guidance_makes_actions_likelier_and_their_spread_smaller():
    made, density, spread = source(), [], []
    for strength in (0.0, 0.5, 1.0, 2.0):
        action = drawn(made, jnp.asarray(strength))[..., 2]
        density.append(-float(((jnp.tanh(action) - 0.5) ** 2).mean()))
        spread.append(float(action.std()))
    assert density == sorted(density) and spread == sorted(spread, reverse=True)
    assert float(action.mean()) == pytest.approx(0.573, abs=0.03) and spread[-1] == pytest.approx(0.304, abs=0.03)


def test_what_counts_is_guidance_times_levels():
    few, many = (drawn(source(levels=n), jnp.asarray(2.0))[..., 2] for n in (32, 256))
    assert float(few.mean()) == pytest.approx(float(many.mean()), abs=0.03)
    assert float(few.std()) == pytest.approx(float(many.std()), abs=0.03)


def test_the_push_has_norm_one_and_is_zero_where_there_is_no_gradient():
    columns = gaussian().columns
    x = jax.random.normal(KEY, (6, 5))
    policy = Constant(jnp.array([0.3]))
    assert float(jnp.linalg.norm(action_push(policy, columns, x))) == pytest.approx(1.0, abs=1e-5)
    known = (0.3 - jnp.tanh(x[:, 2:3])) * (1 - jnp.tanh(x[:, 2:3]) ** 2)
    np.testing.assert_allclose(action_push(policy, columns, x, normalise=False), known, rtol=1e-4, atol=1e-6)
    still = x.at[:, 2].set(jnp.arctanh(0.3))
    assert float(jnp.abs(action_push(policy, columns, still, False)).max()) < 1e-6
    flat = x.at[:, 2].set(50.0)  # tanh has no slope left
    assert (action_push(policy, columns, flat) == 0).all()


def test_the_likelihood_is_the_policys_own_or_a_unit_gaussian():
    obs, own = jnp.array([1.0, 2.0]), Normal(jnp.array([0.2]), jnp.array([-1.0]))
    scale = Standardiser(jnp.ones(2), jnp.ones(2))
    fixed = Normalised(Noisy(Deterministic(lambda o: o[:1]), 0.1), scale)
    assert likelihood(fixed, obs).mean == 0.0 and likelihood(fixed, obs).log_std == 0.0
    assert likelihood(Noisy(Sampling(lambda o: own), 0.1), obs) is own
    assert likelihood(Constant(jnp.array([0.7])), obs).mean == np.float32(0.7)


# --- rows and windows


def test_windows_stay_in_an_episode_and_end_where_it_terminates():
    starts = window_starts(LOG, 3, stride=4)
    valid = [0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 14]
    assert starts.tolist() == sorted({*valid[::4], 0, 5, 14, 2})
    for start in window_starts(LOG, 3):
        assert not np.asarray(LOG.terminated | LOG.truncated)[start : start + 2].any()
    with pytest.raises(DataError, match="longest has 9"):
        window_starts(LOG, 10)


def test_rows_become_transitions_again():
    rows = LOG.canonical().transitions(slice(0, 5))
    columns = Columns.of(LOG.canonical().transitions(slice(None)))
    packed = columns.pack(rows)
    back, whole = columns.unpack(packed)
    for name in ("obs", "action", "reward"):
        np.testing.assert_allclose(getattr(back, name), getattr(rows, name), atol=1e-4)
    assert (back.terminated == rows.terminated).all() and whole.all() and not back.truncated.any()
    np.testing.assert_allclose(back.next_obs[:-1], rows.next_obs[:-1], atol=1e-4)
    _, whole = columns.unpack(packed[:4])  # nothing shows what follows the last
    assert whole.tolist() == [True, True, True, False]
    _, whole = columns.unpack(packed[jnp.array([0, 4, 1])])  # nothing follows a termination
    assert whole.tolist() == [True, True, False]
    _, whole = columns.unpack(packed.at[1, 0].set(jnp.nan))
    assert not whole.any()


def test_a_time_out_is_no_termination():
    cut = log_of(lengths=(8, 8), terminated=(False, False))
    columns = Columns.of(cut.canonical().transitions(slice(None)))
    back, _ = columns.unpack(columns.pack(cut.canonical().transitions(slice(0, 8))))
    assert not back.terminated.any()


# --- the source


def test_a_set_is_made_anew_after_its_lifetime_and_the_first_is_unguided():
    made = source(windows=8, lifetime=3, guidance=4.0, batch_size=8)
    policy = Constant(jnp.array([0.5]))
    state, seen = made.init(policy, KEY), []
    first = state.rows
    unguided, _ = jax.vmap(made.model.columns.unpack)(made.generate(KEY))
    np.testing.assert_allclose(np.sort(first.action.ravel()), np.sort(unguided.action.ravel()), atol=1e-5)
    draw = eqx.filter_jit(made.draw)
    for key in jax.random.split(KEY, 7):
        state, _ = draw(state, policy, key)
        seen.append((int(state.age), bool((state.rows.action == first.action).all())))
    assert seen == [(1, True), (2, True), (3, True), (1, False), (2, False), (3, False), (1, False)]


def test_what_is_not_finite_is_dropped_and_counted_and_the_set_before_stays():
    made = source(windows=8, lifetime=1, batch_size=8)
    state = made.init(Constant(jnp.array([0.5])), KEY)
    bad = Constant(jnp.array([jnp.nan]))
    draw = eqx.filter_jit(made.draw)
    before, _ = draw(state, bad, KEY)
    after, batch = draw(before, bad, KEY)
    assert int(after.dropped) == 8 and (after.rows.action == state.rows.action).all()
    assert all(np.isfinite(np.asarray(x, float)).all() for x in jax.tree.leaves(batch))
    assert made.report(after)[1]["synthetic/dropped"] == 8


def test_the_share_of_real_rows_is_that_asked_for():
    made = source(windows=8, batch_size=64, share=0.75)
    _, batch = made.draw(made.init(Constant(jnp.array([0.5])), KEY), Constant(jnp.array([0.5])), KEY)
    real = np.isin(np.asarray(batch.obs)[:, 0], np.asarray(LOG.obs)[:, 0])
    assert real.sum() == 16 and real[48:].all()


def test_learners_of_every_kind_learn_from_it():
    made = source(windows=8, lifetime=2, batch_size=8)
    for slug in ("iql", "prdc"):
        run = learn(slug, made, 5, hidden=(8, 8), points=1)
        assert np.isfinite(run.history["synthetic/whole"]).all()


def test_what_is_due_for_all_or_none_stays_a_branch_when_mapped():
    def act(state, by):
        return state + by

    def one(due, state):
        return seldom(due, act, state, jnp.ones(()))

    states = jnp.arange(3.0)
    for due in (jnp.array([True] * 3), jnp.array([False] * 3), jnp.array([True, False, True])):
        assert (jax.vmap(one)(due, states) == states + due).all()
    text = str(jax.make_jaxpr(jax.vmap(one))(jnp.array([True] * 3), states))
    assert "cond" in text
    assert (jax.vmap(lambda s: one(jnp.array(True), s))(states) == states + 1).all()


# --- bad input


@pytest.mark.parametrize(
    "bad", [{"guidance": -1.0}, {"share": 0.0}, {"lifetime": 0}, {"windows": 0}, {"levels": 1}, {"churn": -1.0}]
)
def test_what_makes_no_sense_is_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        source(**bad)


def test_logs_that_do_not_fit_are_refused():
    tiny = dict(fit_steps=1, features=8, blocks=1)
    with pytest.raises(DataError, match="no episode of 16 steps"):
        PolicyGuidedDiffusion(LOG, **tiny)
    wild = dataclasses.replace(LOG, action=3 * np.ones_like(LOG.action))
    with pytest.raises(DataError, match="outside the bounds"):
        PolicyGuidedDiffusion(wild, **tiny)
    with pytest.raises(SpaceMismatch, match="fit one to this log"):
        PolicyGuidedDiffusion(log_of(obs=3), gaussian())
    with pytest.raises(SpaceMismatch, match="the policy's actions have shape"):
        source().init(Constant(jnp.zeros(2)), KEY)
    with pytest.raises(ConfigError, match="multiple of 8"):
        PolicyGuidedDiffusion(LOG, length=3, features=12)
