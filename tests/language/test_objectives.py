"""Objectives: exact values and identities, the same on arrays of NumPy, JAX and, where it is installed, PyTorch."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.language.objectives import (
    ADVANTAGES,
    AGGREGATIONS,
    ESTIMATORS,
    LOSSES,
    aggregate,
    covariance,
    kl,
    losses,
    metrics,
    shaping,
)
from habitus.language.objectives import advantages as adv

LIBRARIES = ["numpy", "jax"] + (["torch"] if importlib.util.find_spec("torch") else [])
B, R = 8, 5


def arrays(library: str, *values):
    """These as arrays of the library, in its single precision where they are real."""
    plain = [np.asarray(v, np.float32) if np.asarray(v).dtype.kind == "f" else np.asarray(v) for v in values]
    if library == "numpy":
        return plain
    if library == "jax":
        return [jnp.asarray(v) for v in plain]
    import torch

    return [torch.from_numpy(v.copy()) for v in plain]


@pytest.fixture(params=LIBRARIES)
def lib(request):
    return lambda *values: arrays(request.param, *values)


def data(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.0, (B, R))
    lengths = rng.integers(1, R + 1, B)
    reward = rng.integers(0, 2, B).astype(float)
    reward[0], reward[1] = 0.0, 1.0  # one group at least differs
    return {
        "logp": old + rng.normal(0, 0.5, (B, R)),
        "old": old,
        "ref": old + rng.normal(0, 0.3, (B, R)),
        "mask": (np.arange(R) < lengths[:, None]).astype(float),
        "reward": reward,
        "group": np.arange(B) // 4,
        "values": rng.normal(0, 1, (B, R)),
        "noise": rng.uniform(size=(B, R)),
    }


def token_losses(name: str, logp, d, to):
    """Every loss of tokens by one signature."""
    old, ref, mask, noise, reward, group = to(d["old"], d["ref"], d["mask"], d["noise"], d["reward"], d["group"])
    advantage = adv.per_token(adv.grpo(reward, group), mask)
    if name in LOSSES:
        return LOSSES[name](logp, old, advantage)
    if name in ESTIMATORS:
        return ESTIMATORS[name](logp, ref)
    if name == "nft":
        return losses.nft(logp, old, reward, adv.success_rate(reward, group), weight="sqrt")
    if name == "clip-cov":
        return covariance.clip_cov(logp, old, advantage, mask, noise, share=0.2, low=0.0, high=9.0)
    return covariance.kl_cov(logp, old, advantage, mask, share=0.2)


EVERY = [*LOSSES, *ESTIMATORS, "nft", "clip-cov", "kl-cov"]


@pytest.mark.parametrize("name", EVERY)
def test_every_loss_is_the_same_in_all_libraries_and_so_is_its_gradient(name):
    d = data()

    def whole(logp, to):
        return aggregate.token_mean(token_losses(name, logp, d, to), to(d["mask"])[0])

    def to_jax(*v):
        return arrays("jax", *v)

    (start,) = to_jax(d["logp"])
    value, gradient = jax.value_and_grad(lambda x: whole(x, to_jax))(start)
    plain = whole(*arrays("numpy", d["logp"]), lambda *v: arrays("numpy", *v))
    np.testing.assert_allclose(value, plain, rtol=1e-5, atol=1e-6)
    if "torch" in LIBRARIES:
        (x,) = arrays("torch", d["logp"])
        x.requires_grad_(True)
        there = whole(x, lambda *v: arrays("torch", *v))
        there.backward()
        np.testing.assert_allclose(there.detach().numpy(), value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(x.grad.numpy(), gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_every_advantage_is_the_same_in_all_libraries(name):
    d = data()
    found = [np.asarray(ADVANTAGES[name](*arrays(lib, d["reward"], d["group"]))) for lib in LIBRARIES]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5, atol=1e-6)


def test_they_are_traced_by_jit():
    d = data()
    reward, group, mask, values = arrays("jax", d["reward"], d["group"], d["mask"], d["values"])

    def everything(reward, values):
        tokens = adv.per_token(reward, mask)
        found = [f(reward, group) for f in ADVANTAGES.values()]
        return found, adv.gae(tokens, values, mask), adv.reinforce_pp(tokens, mask)

    for a, b in zip(
        jax.tree.leaves(jax.jit(everything)(reward, values)), jax.tree.leaves(everything(reward, values)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_odd_rewards_of_a_batch_of_even_groups(lib):
    reward = np.repeat(np.r_[np.ones(16), np.zeros(16)], 8)
    reward[0], reward[-1] = 0.0, 1.0
    r, g = lib(reward, np.arange(256) // 8)
    for found, size in (
        (adv.grpo(r, g), 2.4749),
        (adv.group_mean_batch_std(r, g), 1.7466),
        (adv.group_mean_batch_std(r, g, of_centred=True), 10.562),
    ):
        np.testing.assert_allclose([float(found[0]), float(found[-1])], [-size, size], rtol=1e-4)
    np.testing.assert_allclose(np.asarray(adv.rloo(r, g)), np.asarray(adv.dr_grpo(r, g)) * 8 / 7, rtol=1e-5)
    np.testing.assert_allclose(float(metrics.degenerate_fraction(r, g)), 30 / 32, rtol=1e-5)


def test_leave_one_out(lib):
    r, g = lib(np.array([1.0, 0, 0, 0, 0, 0]), np.zeros(6, int))
    np.testing.assert_allclose(np.asarray(adv.rloo(r, g)), [1, *[-0.2] * 5], rtol=1e-5)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_equal_rewards_have_no_advantage_and_groups_of_one_their_reward(lib, name):
    r, g = lib(np.array([0.1] * 6 + [0.7] * 6), np.arange(12) // 6)
    if name != "batch":
        assert not np.asarray(ADVANTAGES[name](r, g)).any()
        alone, own = lib(np.array([0.3, 0.9]), np.array([4, 7]))
        scale = np.std([0.3, 0.9], ddof=1) if name == "group-mean-batch-std" else 1
        np.testing.assert_allclose(np.asarray(ADVANTAGES[name](alone, own)), np.array([0.3, 0.9]) / scale, rtol=1e-4)
    everyone, g = lib(np.full(4, 0.1), np.zeros(4, int))
    assert not np.asarray(ADVANTAGES[name](everyone, g)).any()


@pytest.mark.parametrize("name", ADVANTAGES)
def test_shifts_and_scales(lib, name):
    rng = np.random.default_rng(1)
    reward, group = rng.normal(size=8), np.arange(8) // 4
    r, shifted, scaled, g = lib(reward, reward + np.where(group == 1, 5.0, 0.0), 3 * reward, group)
    plain = np.asarray(ADVANTAGES[name](r, g))
    if name not in ("batch", "group-mean-batch-std"):  # its deviation is of the rewards themselves
        np.testing.assert_allclose(np.asarray(ADVANTAGES[name](shifted, g)), plain, atol=1e-4)
    factor = 3 if name in ("dr-grpo", "rloo") else 1
    np.testing.assert_allclose(np.asarray(ADVANTAGES[name](scaled, g)), factor * plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_rewards_that_are_not_a_number_are_left_out(lib, name):
    with_nan, g = lib(np.array([1.0, 0, np.nan, 0, 1, 1, 0, np.nan]), np.arange(8) // 4)
    without, h = lib(np.array([1.0, 0, 0, 1, 1, 0]), np.array([0, 0, 0, 1, 1, 1]))
    found = np.asarray(ADVANTAGES[name](with_nan, g))
    assert found[2] == 0 and found[7] == 0
    np.testing.assert_allclose(np.delete(found, [2, 7]), np.asarray(ADVANTAGES[name](without, h)), rtol=1e-4)
    assert np.asarray(adv.scored(with_nan)).tolist() == [True, True, False, True, True, True, True, False]


def test_gae_without_values_is_reward_to_go_and_steps_over_other_tokens(lib):
    rewards, mask = np.array([[0.0, 0, 1, 0, 2]]), np.array([[1.0, 1, 1, 0, 1]])
    r, zeros, m = lib(rewards, np.zeros((1, 5)), mask)
    found, returns = adv.gae(r, zeros, m, gamma=1.0, lam=1.0, whitened=False)
    np.testing.assert_allclose(np.asarray(found), [[3, 3, 3, 0, 2]])
    np.testing.assert_allclose(np.asarray(returns), np.asarray(found))
    np.testing.assert_allclose(np.asarray(adv.rewards_to_go(r)), [[3, 3, 3, 2, 2]])
    # a stretch of the environment's tokens does not change what the policy's own ones get
    values = np.array([[0.5, -1.0, 0.3, 9.0, 2.0]])
    with_gap = adv.gae(*lib(rewards, values, mask), gamma=0.9, lam=0.8, whitened=False)[0]
    keep = [0, 1, 2, 4]
    without = adv.gae(*lib(rewards[:, keep], values[:, keep], np.ones((1, 4))), gamma=0.9, lam=0.8, whitened=False)[0]
    np.testing.assert_allclose(np.asarray(with_gap)[:, keep], np.asarray(without), rtol=1e-5)


def test_whitened_tokens_have_mean_0_and_deviation_1(lib):
    d = data()
    r, v, m, g = lib(d["reward"], d["values"], d["mask"], d["group"])
    inside = d["mask"] > 0
    for found in (
        adv.gae(adv.per_token(r, m), v, m)[0],
        adv.reinforce_pp(adv.per_token(r, m), m, gamma=0.9),
        adv.reinforce_pp_baseline(r, g, m),
    ):
        kept = np.asarray(found)[inside]
        np.testing.assert_allclose([kept.mean(), kept.std(ddof=1)], [0, 1], atol=1e-4)
        assert not np.asarray(found)[~inside].any()
    with pytest.raises(ConfigError, match="two tokens or more"):
        adv.reinforce_pp(*lib(np.ones((1, 3)), np.array([[1.0, 0, 0]])))


def test_remax_takes_the_greedy_reward_away(lib):
    r, m, greedy = lib(np.array([[0.0, 0, 1], [0, 0.5, 0]]), np.array([[1.0, 1, 1], [1, 1, 0]]), np.array([0.25, 1.0]))
    np.testing.assert_allclose(np.asarray(adv.remax(r, m, greedy)), [[0.75, 0.75, 0.75], [-0.5, -0.5, 0]])


def test_two_ways_to_weigh_a_short_and_a_long_response(lib):
    mask = (np.arange(8) < np.array([[2], [8]])).astype(float)
    x, m = lib(np.array([[1.0], [0.0]]) * mask, mask)
    found = {name: float(f(x, m)) for name, f in AGGREGATIONS.items()}
    assert found == pytest.approx(
        {"token-mean": 0.2, "seq-mean-token-sum": 1.0, "seq-mean-token-mean": 0.5, "seq-mean-token-sum-norm": 2 / 16}
    )


def test_equal_lengths_make_means_equal_and_empty_responses_do_not_count(lib):
    values = np.random.default_rng(0).normal(size=(4, 5))
    x, m = lib(values, np.ones((4, 5)))
    assert float(aggregate.token_mean(x, m)) == pytest.approx(float(aggregate.seq_mean_token_mean(x, m)), rel=1e-5)
    x, m = lib(np.vstack([values, np.full((1, 5), np.nan)]), np.vstack([np.ones((4, 5)), np.zeros((1, 5))]))
    assert float(aggregate.seq_mean_token_mean(x, m)) == pytest.approx(values.mean(), rel=1e-4)
    x, m = lib(values, np.zeros((4, 5)))
    assert all(float(f(x, m)) == 0 for f in AGGREGATIONS.values())


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_microbatches_add_up_to_the_batch(name):
    d = data()
    logp, old, mask = arrays("jax", d["logp"], d["old"], d["mask"])
    reward, group = arrays("jax", d["reward"], d["group"])
    advantage = adv.per_token(adv.grpo(reward, group), mask)
    f = AGGREGATIONS[name]
    count = {"tokens": mask.sum()} if name == "token-mean" else {"sequences": float(B)}

    def part(logp, rows):
        return f(losses.ppo_clip(logp[rows], old[rows], advantage[rows]), mask[rows], **count)

    whole = jax.grad(lambda x: f(losses.ppo_clip(x, old, advantage), mask))(logp)
    parts = sum(jax.grad(part)(logp, rows) for rows in (slice(0, 3), slice(3, 4), slice(4, 8)))
    np.testing.assert_allclose(parts, whole, atol=1e-6)


def test_clipping_at_its_edges(lib):
    old = np.zeros((2, 4))
    logp = np.log(np.array([[0.5, 1.0, 1.25, 5.0]] * 2))
    x, o, a = lib(logp, old, np.array([[1.0] * 4, [-1.0] * 4]))
    np.testing.assert_allclose(
        np.asarray(losses.ppo_clip(x, o, a, 0.2, 0.28)), [[-0.5, -1, -1.25, -1.28], [0.8, 1, 1.25, 5]], rtol=1e-5
    )
    np.testing.assert_allclose(np.asarray(losses.dual_clip(x, o, a))[1], [0.8, 1, 1.25, 3], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(losses.loop_clip(x, o, a, 0.1))[0], [-0.5, -1, -1.1, -1.1], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(losses.loop_clip(x, o, a, 0.1))[1, 0], 1 / 1.1, rtol=1e-5)
    m = lib(np.ones((2, 4)))[0]
    found = metrics.clip_fractions(x, o, a, m)
    assert {k: float(v) for k, v in found.items()} == pytest.approx({"clip_low": 1 / 8, "clip_high": 2 / 8})
    far = lib(np.full((2, 4), 1e4))[0]
    assert np.isfinite(np.asarray(losses.ppo_clip(far, o, a))).all()


def test_on_the_policy_itself_ppo_is_reinforce():
    d = data()
    logp, mask, reward, group = arrays("jax", d["logp"], d["mask"], d["reward"], d["group"])
    a = adv.per_token(adv.grpo(reward, group), mask)
    grads = [jax.grad(lambda x, f=f: f(x, logp, a).sum())(logp) for f in LOSSES.values()]
    for g in grads:
        np.testing.assert_allclose(g, -a, atol=1e-6)


def test_nft_on_and_off_the_policy():
    right = jnp.array([0.0])

    def loss(r, is_right=right, rate=0.4, **more):
        return losses.nft(jnp.log(jnp.full((1, 1), r)), jnp.zeros((1, 1)), is_right, jnp.array([rate]), **more).sum()

    for r, value, slope in ((0.5, -0.28768, 0.25), (1.5, 0, 1.0), (3.0, 0, 2.0)):
        found, gradient = jax.value_and_grad(loss)(r, weight="none")
        # the paper's loss is minus the logarithm of the negative policy; d / d logp = r d / d r
        np.testing.assert_allclose([found, r * gradient], [value, slope], atol=1e-4)
    d = data(3)
    logp, reward, group = arrays("jax", d["logp"], np.array([1.0, 0, 0, 1, 0, 0, 0, 1]), d["group"])
    rate = adv.success_rate(reward, group)

    def gradient(**more):
        return jax.grad(lambda x: losses.nft(x, logp, reward, rate, **more).sum())(logp)[:, 0]

    np.testing.assert_allclose(gradient(), -(reward - rate), atol=1e-6)
    population = jnp.sqrt(rate * (1 - rate))
    np.testing.assert_allclose(gradient(weight="sqrt"), -(reward - rate) / population, atol=1e-5)
    np.testing.assert_allclose(gradient(negative=0.0, weight="none"), -reward, atol=1e-6)
    for far in (-30.0, 30.0):
        x = jnp.full((8, 5), far)
        value, slope = jax.value_and_grad(lambda x: losses.nft(x, 0 * x, reward, rate).sum())(x)
        assert jnp.isfinite(value) and jnp.isfinite(slope).all() and (far < 0 or not slope.any())


def test_covariance_picks_the_tokens_it_should(lib):
    logp, a = np.array([[-3.0, -0.1, -2.0, -0.2]]), np.array([[1.0, 1.0, -1.0, -1.0]])
    x, o, a_, m = lib(logp, logp - 0.3, a, np.ones((1, 4)))
    found = np.asarray(covariance.covariance(x, a_, m))
    np.testing.assert_allclose(found, (logp - logp.mean()) * (a - a.mean()), rtol=1e-5)
    rho = np.exp(0.3)
    plain = -a * rho
    np.testing.assert_allclose(
        np.asarray(covariance.kl_cov(x, o, a_, m, share=0.25)), plain + 0.3 * (found == found.max()), rtol=1e-5
    )
    noise = lib(np.array([[0.9, 0.1, 0.2, 0.3]]))[0]
    spared = covariance.clip_cov(x, o, a_, m, noise, share=0.25, low=0.0, high=9.0)
    allowed = found > 0
    chosen = allowed & (np.asarray(noise) == np.where(allowed, np.asarray(noise), -1).max())
    np.testing.assert_allclose(np.asarray(spared), np.where(chosen, 0, plain), rtol=1e-5)


P, Q = np.array([0.3, 0.25, 0.2, 0.1, 0.1, 0.05]), np.array([0.1, 0.1, 0.3, 0.2, 0.2, 0.1])


def test_estimators_of_divergence_in_expectation():
    logits, ref = jnp.log(jnp.array(P)), jnp.log(jnp.array(Q))
    true = float((P * np.log(P / Q)).sum())
    for name in ("k1", "k3", "k3+"):
        np.testing.assert_allclose((jnp.array(P) * ESTIMATORS[name](logits, ref)).sum(), true, rtol=1e-5)
    assert (kl.k3(logits, ref) >= 0).all() and (kl.k1(logits, ref) < 0).any()

    def divergence(x, y):
        return (jnp.exp(x) * (x - y)).sum()

    def gradient(f):
        return jax.grad(lambda z: f(jax.nn.log_softmax(z)))(logits)

    def in_loss(name):
        return gradient(lambda logp: (jnp.array(P) * ESTIMATORS[name](logp, ref)).sum())

    forward = gradient(lambda logp: divergence(logp, ref))
    backward = gradient(lambda logp: divergence(ref, logp))
    in_reward = gradient(lambda logp: (jnp.array(P) * jax.lax.stop_gradient(kl.k1(logp, ref)) * logp).sum())
    for found, wanted in (
        (in_loss("k1"), jnp.zeros(6)),
        (in_loss("k2"), forward),
        (in_loss("k3"), backward),
        (in_loss("k3+"), forward),
        (in_reward, forward),
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_divergence_in_the_reward_and_its_controller(lib):
    r, x, ref, m = lib(np.zeros((1, 3)), np.zeros((1, 3)), np.full((1, 3), -0.5), np.array([[1.0, 1, 0]]))
    np.testing.assert_allclose(np.asarray(kl.in_reward(r, x, ref, 0.1, m)), [[-0.05, -0.05, 0]], rtol=1e-5)
    (measured,) = lib(np.array(0.3))
    assert float(kl.adapted(0.1, measured, 0.1, 256, 1000)) == pytest.approx(0.1 * (1 + 0.2 * 0.256))
    assert float(kl.adapted(0.1, 0 * measured, 0.1, 256, 1000)) == pytest.approx(0.1 * (1 - 0.2 * 0.256))


def test_shaping_by_length(lib):
    (m, cut) = lib(np.ones((2, 3)), np.array([True, False]))
    assert np.asarray(shaping.overlong_filter(m, cut)).tolist() == [[0, 0, 0], [1, 1, 1]]
    (length,) = lib(np.array([10.0, 16, 18, 20]))
    np.testing.assert_allclose(np.asarray(shaping.soft_punishment(length, 20, 4)), [0, 0, -0.5, -1])


def test_metrics_of_known_distributions(lib):
    logits, sharp = lib(np.zeros((2, 7)), np.array([[1e4, 0, 0], [0, 0, -1e4]]))
    np.testing.assert_allclose(np.asarray(metrics.entropy(logits)), np.log(7), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(metrics.entropy(sharp)), [0, np.log(2)], atol=1e-5)
    d = data()
    x, o, m = lib(d["logp"], d["old"], d["mask"])
    step = d["logp"] - d["old"]
    wanted = ((np.exp(step) - 1 - step) * d["mask"]).sum() / d["mask"].sum()
    np.testing.assert_allclose(float(metrics.approx_kl(x, o, m)), wanted, rtol=1e-4)


def test_settings_out_of_their_domain_are_refused():
    x = np.zeros((1, 1), np.float32)
    for bad in (
        lambda: losses.ppo_clip(x, x, x, eps_low=1.5),
        lambda: losses.dual_clip(x, x, x, c=1.0),
        lambda: losses.loop_clip(x, x, x, eps=-0.1),
        lambda: losses.nft(x, x, x[0], x[0], weight="best"),
        lambda: kl.adapted(0.1, x, 0.0, 1, 1),
        lambda: shaping.soft_punishment(x[0], 4, 5),
        lambda: aggregate.seq_mean_token_sum_norm(x, x, max_length=0),
    ):
        with pytest.raises(ConfigError):
            bad()
