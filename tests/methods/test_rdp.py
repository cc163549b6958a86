"""RDP: what the tokenizer and its decoder may depend on, what each stage changes, and how plans are executed."""

from __future__ import annotations

import dataclasses
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.errors import ConfigError
from habitus.core.policy import Deployed
from habitus.data.dataset import Dataset
from habitus.data.source import DatasetSource
from habitus.execution.planner import Plan, Planner
from habitus.execution.two_rate import TwoRate
from habitus.generative.frames import Frame
from habitus.methods.generative._rdp import Reactive, Tokenizer
from habitus.methods.generative.rdp import RDP
from habitus.nets.distributions import Normal
from habitus.nets.normalise import Standardiser
from habitus.nets.vae import standard_kl

KEY = jax.random.key(0)
SMALL = dict(predicted=8, executed=4, latency=1, channels=2, latent_size=3, units=8, width=16, blocks=1,
             levels=4, sampling_steps=2, batch_size=16, warmup_updates=1, tokenizer_warmup=1)  # fmt: skip
TOKENIZER = Tokenizer(8, 2, 1, 2, 3, 8, KEY)


def log(rows=60):
    """Positions that are targets of the first action, in its units of [-4, 4]; a signal that the second repeats."""
    rng = np.random.default_rng(0)
    place = rng.uniform(-3, 3, rows).astype(np.float32)
    signal = rng.normal(size=rows).astype(np.float32)
    obs = np.stack([place, rng.normal(size=rows), signal], 1).astype(np.float32)
    return Dataset.from_arrays(
        obs=obs,
        next_obs=obs,
        action=np.stack([place + 0.5, np.tanh(signal)], 1).astype(np.float32),
        reward=np.zeros(rows),
        terminated=np.arange(1, rows + 1) % 20 == 0,
        truncated=np.zeros(rows, bool),
        action_space=spaces.Box(np.array([-4, -1], np.float32), np.array([4, 1], np.float32)),
        validate=False,
    )


LOG = log()


def begun(updates=100, **changes):
    learner = RDP(**SMALL | changes)
    return learner, learner.init(dataclasses.replace(LOG.spec, updates=updates), KEY)


@cache
def plain():
    return begun()


@eqx.filter_jit
def loss_of(learner, tokenizer, state, batch):
    return learner.tokenizer_loss(tokenizer, state, learner.shown(state, batch), KEY)


@pytest.fixture(scope="module")
def batch():
    return DatasetSource(LOG, 16, window=8, before=1).draw((), None, KEY)[1]


@pytest.fixture(scope="module")
def stages(batch):
    """A learner and its states after 0, 3, 4 and 7 of 10 updates, of which 3 are the tokenizer's."""
    learner, state = begun(10, tokenizer_share=0.3)
    update, states = eqx.filter_jit(learner.update), [state]
    for n in range(7):
        state, _ = update(state, batch, jax.random.key(n))
        if n in (2, 3, 6):
            states.append(state)
    return learner, states


# --- the tokenizer


def test_a_chunk_of_32_rows_becomes_8_latent_rows_of_16():
    tokenizer = Tokenizer(32, 3, 6, 4, 16, 32, KEY)
    first = tokenizer.first(jnp.ones((32, 3)))
    posterior = tokenizer.encode(jnp.ones((32, 3)))
    assert first.shape == (16, 32) and posterior.mean.shape == posterior.log_std.shape == (8, 16)
    assert tokenizer.plan(posterior.mean).shape == (32,)
    assert tokenizer.decode(posterior.mean, jnp.zeros((32, 6))).shape == (32, 3)
    rows = tokenizer.widen(posterior.mean)
    np.testing.assert_array_equal(tokenizer.plan(posterior.mean), jnp.concatenate(list(rows)))
    with pytest.raises(ValueError, match="multiple of 4"):
        RDP(predicted=14)


def test_the_decoder_hears_the_signal_up_to_now_and_no_further():
    latent, signal = jax.random.normal(KEY, (2, 3)), jax.random.normal(jax.random.key(1), (8, 1))
    decode = eqx.filter_jit(TOKENIZER.decode)
    whole = decode(latent, signal)
    for i in range(8):
        later = decode(latent, signal.at[i + 1 :].add(5.0))
        np.testing.assert_array_equal(later[: i + 1], whole[: i + 1])
        if i < 7:
            assert (later[i + 1 :] != whole[i + 1 :]).all()
    alone = TOKENIZER.out(TOKENIZER.heard(TOKENIZER.start(), TOKENIZER.plan(latent), signal[0]))
    np.testing.assert_allclose(whole[0], alone, atol=1e-6)


def test_the_divergence_is_summed_over_a_latent_and_averaged_over_a_batch(batch):
    posterior = Normal(jnp.ones((8, 16)), jnp.zeros((8, 16)))
    assert float(standard_kl(posterior) * 128) == pytest.approx(64.0)
    learner, state = plain()
    mean = jax.random.normal(KEY, state.tokenizer.moments.bias.shape)
    tokenizer = eqx.tree_at(lambda t: (t.moments.weight, t.moments.bias), state.tokenizer,
                            (jnp.zeros_like(state.tokenizer.moments.weight), mean))  # fmt: skip
    mu, log_var = jnp.split(mean, 2)
    expected = 2 * 0.5 * (mu**2 + jnp.exp(log_var) - 1 - log_var).sum()  # two latent rows, alike in every chunk
    _, found = loss_of(learner, tokenizer, state, batch)
    np.testing.assert_allclose(found["kl"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["tokenizer_loss"], found["error"] + 1e-6 * expected, rtol=1e-6)


def test_without_noise_and_divergence_it_is_an_auto_encoder(batch):
    learner, state = plain()
    learner = dataclasses.replace(learner, kl_weight=0.0)
    bias = state.tokenizer.moments.bias.at[3:].set(-1e3)
    weight = state.tokenizer.moments.weight.at[:, 3:].set(0.0)
    tokenizer = eqx.tree_at(lambda t: (t.moments.weight, t.moments.bias), state.tokenizer, (weight, bias))
    shown = learner.shown(state, batch)
    loss, _ = loss_of(learner, tokenizer, state, batch)

    def rebuilt(chunk, signal):
        return tokenizer.decode(tokenizer.encode(chunk).mean, signal)

    again = jax.jit(jax.vmap(rebuilt))(shown.steps.action, shown.steps.obs[..., -1:])
    np.testing.assert_allclose(loss, jnp.abs(again - shown.steps.action).mean(), rtol=1e-4)


# --- stages


def test_each_stage_changes_its_own_network_and_no_other(stages):
    _, (first, tokenized, denoised, last) = stages

    def same(name, a, b):
        return bool(eqx.tree_equal(getattr(a, name), getattr(b, name)))

    assert int(first.first) == 3
    assert not same("tokenizer", first, tokenized) and not same("moments", first, tokenized)
    assert same("denoiser", first, tokenized) and same("average", first, tokenized)
    for after in (denoised, last):
        assert same("tokenizer", tokenized, after) and same("moments", tokenized, after)
        assert not same("denoiser", tokenized, after)
    assert bool(eqx.tree_equal(denoised.denoiser, denoised.average))  # the average begins with the first update


def test_moments_are_of_the_latents_that_were_drawn(batch):
    learner, state = plain()
    still = dataclasses.replace(learner, tokenizer_learning_rate=1e-9)
    update = eqx.filter_jit(lambda state, key: still._tokenize(state, learner.shown(state, batch), key)[0])
    for n in range(40):
        state = dataclasses.replace(update(state, jax.random.key(n)), done=jnp.asarray(n + 1))
    draw = jax.vmap(lambda chunk, key: state.tokenizer.encode(chunk).sample(key))
    keys = jax.random.split(KEY, 16 * 50).reshape(50, 16)
    latent = jax.jit(jax.vmap(lambda k: draw(batch.steps.action, k)))(keys).reshape(-1, 3)
    np.testing.assert_allclose(state.latents.mean, latent.mean(0), atol=0.15)
    np.testing.assert_allclose(state.latents.std, latent.std(0), rtol=0.15)


def test_a_run_without_an_end_has_no_stages():
    with pytest.raises(ConfigError, match="planned number"):
        RDP(**SMALL).init(LOG.spec, KEY)


# --- frames


def test_relative_and_back_is_the_same_and_the_pose_is_that_of_the_action_space():
    normaliser = Standardiser.of(LOG.spec)
    frame = Frame.of(LOG.spec, normaliser, (0,))
    actions, obs = jax.random.uniform(KEY, (8, 2), minval=-1), jnp.asarray([2.0, 0.3, -1.0])
    base = normaliser(obs)
    relative = frame.relative(actions, base)
    np.testing.assert_allclose(frame.pose(base), [2.0 / 4], atol=1e-6)
    np.testing.assert_allclose(relative, actions - jnp.array([0.5, 0.0]), atol=1e-6)
    np.testing.assert_allclose(frame.relative(frame.absolute(relative, base), base), relative, atol=1e-6)
    window = frame.window(jax.random.normal(KEY, (3, 3)))
    assert window[-1, 0] == 0 and (window[-1, 1:] != 0).all()


def test_chunks_are_learned_relative_to_the_pose_of_now(batch):
    learner, state = begun(frame=(0,))
    relative = learner.chunks(state, learner.shown(state, batch))
    action, place = batch.steps.action, batch.steps.obs[:, 1, 0]
    np.testing.assert_allclose(relative[..., 0], action[..., 0] - place[:, None] / 4, atol=1e-5)
    np.testing.assert_array_equal(relative[..., 1], action[..., 1])
    np.testing.assert_allclose(relative[:, 1, 0], 0.5 / 4, atol=1e-5)  # wherever it is, the next place is as far


# --- acting


class Same(Planner):
    """The same latent, whatever it sees."""

    @property
    def shape(self):
        return 2, 3

    def blank(self):
        return jnp.zeros(3)

    def __call__(self, window, key, start=None):
        return Plan(jnp.linspace(-1, 1, 6).reshape(2, 3), jnp.ones((), jnp.int32))


LATENTS = Standardiser(jnp.array([0.1, 0.0, -0.2]), jnp.array([1.0, 2.0, 0.5]))


def acted(steps, signal=(2,), entries=(), latency=2, before=1, tokenizer=TOKENIZER, obs=None):
    """What is shown and done in each step, with a new plan every 4, and the carries."""
    frame = Frame.of(LOG.spec, Standardiser.identity(), entries)
    policy = TwoRate(Same(), Reactive(tokenizer, LATENTS, frame, signal, before, latency), 4, latency, before + 1)
    obs = 0.3 * jax.random.normal(jax.random.key(3), (steps, 3)) if obs is None else obs

    def one(carry, now):
        action, carry = policy(now, carry, KEY)
        return carry, (action, carry)

    actions, carries = jax.jit(lambda: jax.lax.scan(one, policy.init(), obs)[1])()
    return np.asarray(obs), np.asarray(actions), policy, carries


@pytest.mark.parametrize("latency", [0, 2])
def test_the_decoder_with_a_memory_does_what_decoding_all_of_the_history_would(latency):
    obs, actions, _, carries = acted(14, latency=latency)
    latent = LATENTS.undo(Same()(None, KEY).chunk)
    for t in range(14):
        asked = int(carries.active.asked[t])
        history = [obs[max(i, 0), 2:] for i in range(asked - 1, t + 1)]  # what lies before the episode is its first
        rows = TOKENIZER.decode(latent, jnp.asarray(history))
        assert t - asked <= 4 + latency - 1
        np.testing.assert_allclose(actions[t], jnp.clip(rows[-1], -1, 1), atol=1e-6)
    new = [t for t in range(4 + latency, 14, 4)]
    for t in new:  # the first row of a new chunk that is executed: before + latency
        assert t - int(carries.active.asked[t]) == latency


def test_where_the_latent_and_the_signal_stay_the_action_stays_but_for_the_row():
    obs = jnp.zeros((14, 3))
    _, actions, _, _ = acted(14, obs=obs)
    np.testing.assert_array_equal(actions[6:10], actions[10:14])  # rows 3 to 6 of two plans


def test_the_slow_part_is_asked_once_a_period_and_the_fast_part_asks_nothing_of_it():
    _, _, policy, carries = acted(14)
    last = jax.tree.map(lambda x: x[-1], carries)
    assert int(policy.report(last)["plans"]) == int(policy.report(last)["calls"]) == -(-14 // 4)


def test_without_a_signal_it_is_an_open_loop():
    deaf = Tokenizer(8, 2, 0, 2, 3, 8, KEY)
    obs = jax.random.normal(KEY, (10, 3))
    both = [acted(10, signal=(), tokenizer=deaf, obs=o)[1] for o in (obs, obs.at[:, 2].add(3.0))]
    np.testing.assert_array_equal(*both)
    assert (acted(10, obs=obs)[1] != acted(10, obs=obs.at[:, 2].add(3.0))[1]).any()


def test_the_base_stays_while_a_plan_is_in_use():
    obs, actions, _, carries = acted(14, entries=(0,), latency=1)
    _, relative, _, _ = acted(14, latency=1)
    asked = np.asarray(carries.active.asked)
    assert asked.tolist() == [0] * 5 + [4] * 4 + [8] * 4 + [12]
    inside = (np.abs(actions) < 1).all(1) & (np.abs(relative) < 1).all(1)
    assert inside.sum() > 8
    np.testing.assert_allclose((actions - relative)[inside, 0], obs[asked, 0][inside] / 4, atol=1e-6)


def test_a_policy_acts_holds_while_a_reading_fails_and_is_saved(stages, tmp_path):
    learner, states = stages
    policy = Deployed.of(learner.policy(states[-1]), LOG.spec)
    policy.save(tmp_path)
    session, again = policy.session(), Deployed.load(tmp_path).session()
    rows = [LOG.obs[0], LOG.obs[1], np.array([0.0, 0.0, np.nan], np.float32), LOG.obs[3]]
    actions = [session.act(row) for row in rows]
    for row, action in zip(rows, actions, strict=True):
        np.testing.assert_array_equal(again.act(row), action)
    assert np.isfinite(actions).all() and (actions[2] == actions[1]).all() and (actions[3] != actions[2]).any()
    report = policy.report(session.carry)
    assert int(report["held"]) == 1 and int(report["plans"]) == 1 and int(report["calls"]) == 2


# --- bad input


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (dict(latency=5), "latency must be from 0 to the 4"),
        (dict(predicted=8, executed=7), "up to its row 9"),
        (dict(tokenizer_share=1.0), "tokenizer_share"),
        (dict(kl_weight=-1.0), "kl_weight"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, why):
    with pytest.raises(ConfigError, match=why):
        RDP(**SMALL | changes)


@pytest.mark.parametrize("changes", [dict(signal=(3,)), dict(signal=(0, 0)), dict(frame=(-4,)), dict(frame=(0, 1, 2))])
def test_entries_that_an_observation_lacks_are_refused(changes):
    with pytest.raises(ConfigError, match="signal names|frame names|a pose of 3 numbers"):
        begun(**changes)
