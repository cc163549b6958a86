"""Off-policy estimators, where the truth is known."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import habitus
from habitus.core.errors import ConfigError, SpaceMismatch
from habitus.core.policy import Deployed
from habitus.core.spec import Spec
from habitus.data.dataset import Dataset
from habitus.measure.ope import (
    Episodes,
    distribution_of,
    doubly_robust,
    evaluate_offline,
    logged_return,
    weighted_importance_sampling,
)
from habitus.nets.distributions import Categorical, Normal
from habitus.nets.policies import Deterministic, Greedy, Mode, Sampling

STATES, ACTIONS, DISCOUNT, ENDS = 5, 3, 0.9, 0.15


class Rows(eqx.Module):
    """Logits looked up."""

    logits: jax.Array

    def __call__(self, obs):
        return Categorical(self.logits[obs])


def random_world(seed=0):
    """Successors P [s, a, s'], rewards R [s, a], and the logits of two policies."""
    rng = np.random.default_rng(seed)
    P = rng.dirichlet(np.full(STATES, 0.5), (STATES, ACTIONS))
    return P, rng.random((STATES, ACTIONS)), 0.5 * rng.normal(size=(2, STATES, ACTIONS))


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def true_value(policy, P, R):
    """Discounted return from state 0; a step ends the episode with probability `ENDS`."""
    p, r = np.einsum("sa,sat->st", policy, P), (policy * R).sum(1)
    return float(np.linalg.solve(np.eye(STATES) - DISCOUNT * (1 - ENDS) * p, r)[0])


def log_of(policy, P, R, episodes=2_000, seed=1):
    rng, rows = np.random.default_rng(seed), []
    for _ in range(episodes):
        s, over = 0, False
        while not over:
            a = rng.choice(ACTIONS, p=policy[s])
            after, over = rng.choice(STATES, p=P[s, a]), rng.random() < ENDS
            rows.append((s, a, R[s, a], over, after))
            s = after
    s, a, r, over, after = map(np.array, zip(*rows, strict=True))
    return Dataset.from_arrays(
        obs=s, next_obs=after, action=a, reward=r.astype(np.float32), terminated=over, truncated=np.zeros(len(s), bool),
        observation_space=spaces.Discrete(STATES), action_space=spaces.Discrete(ACTIONS), validate=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def known():
    P, R, (behaviour, target) = random_world()
    log = log_of(softmax(behaviour), P, R)
    return log, Sampling(Rows(jnp.asarray(target))), Rows(jnp.asarray(behaviour)), true_value(softmax(target), P, R)


def test_every_estimate_holds_the_truth(known):
    log, target, _, truth = known
    found = evaluate_offline(target, log, discount=DISCOUNT, updates=5_000, hidden=(), level=0.99)
    assert isinstance(found["model"], str) and "Gaussian model" in found["model"]  # no such model of integers
    for name in ("fqe", "wis", "doubly robust"):
        estimate = found[name]
        assert truth in estimate.value, (name, estimate, truth)
        assert estimate.value.estimate == pytest.approx(truth, abs=0.2) and estimate.value.high < truth + 0.6
    assert 50 < found["wis"].effective < 2_000


def test_for_the_logged_policy_itself_importance_sampling_is_the_mean_return(known):
    log, _, behaviour, _ = known
    episodes = Episodes.of(log, DISCOUNT).weighted(log, behaviour, behaviour)
    found = weighted_importance_sampling(episodes)
    assert found.value.estimate == pytest.approx(logged_return(episodes), rel=1e-9)
    assert found.effective == pytest.approx(2_000)


def test_weights_stay_within_their_bounds(known):
    log, target, behaviour, _ = known
    episodes = Episodes.of(log, DISCOUNT).weighted(log, distribution_of(target), behaviour)
    returns = (episodes.reward * episodes.powers).sum(1)
    weight = np.clip(np.exp(episodes.log_ratio.sum(1)), 0.5, 2.0)
    found = weighted_importance_sampling(episodes, bounds=(0.5, 2.0))
    assert found.value.estimate == pytest.approx(weight @ returns / weight.sum(), rel=1e-9)
    assert found.effective == pytest.approx(weight.sum() ** 2 / (weight**2).sum(), rel=1e-9)
    free = weighted_importance_sampling(episodes)
    assert free.effective < found.effective and free.value.estimate != found.value.estimate
    with pytest.raises(ConfigError, match="in order"):
        weighted_importance_sampling(episodes, bounds=(2.0, 0.5))


def test_padding_has_no_effect(known):
    log, target, behaviour, _ = known
    episodes = Episodes.of(log, DISCOUNT).weighted(log, distribution_of(target), behaviour)
    rng = np.random.default_rng(0)
    values = {k: np.where(episodes.valid, rng.random(episodes.valid.shape), 0.0) for k in ("q", "v")}
    episodes = dataclasses.replace(episodes, **values)

    def wider(x):
        return np.pad(x, ((0, 0), (0, 7))) if isinstance(x, np.ndarray) else x

    longer = Episodes(**{f.name: wider(getattr(episodes, f.name)) for f in dataclasses.fields(episodes)})
    for estimator in (weighted_importance_sampling, doubly_robust):
        assert estimator(longer).value.estimate == pytest.approx(estimator(episodes).value.estimate, rel=1e-9)


def test_the_doubly_robust_estimate_is_right_if_either_part_is(known):
    log, target, behaviour, truth = known
    P, R, (_, logits) = random_world()
    policy = softmax(logits)
    p, r = np.einsum("sa,sat->st", policy, P), (policy * R).sum(1)
    V = np.linalg.solve(np.eye(STATES) - DISCOUNT * (1 - ENDS) * p, r)
    Q = R + DISCOUNT * (1 - ENDS) * P @ V
    s, a = np.asarray(log.obs), np.asarray(log.action)
    right = Episodes.of(log, DISCOUNT).weighted(log, distribution_of(target), behaviour)
    wrong = Episodes.of(log, DISCOUNT).weighted(log, behaviour, behaviour)

    def valued(episodes, q, v):
        rows = episodes.rows
        return dataclasses.replace(
            episodes, q=np.where(episodes.valid, q[rows], 0.0), v=np.where(episodes.valid, v[rows], 0.0)
        )

    true_values = doubly_robust(valued(wrong, Q[s, a], V[s])).value.estimate
    true_ratios = doubly_robust(valued(right, 0 * V[s], 0 * V[s])).value.estimate
    assert true_values == pytest.approx(truth, abs=0.15) and true_ratios == pytest.approx(truth, abs=0.25)


def test_a_learned_world_tells_a_good_controller_from_a_bad_one():
    log = habitus.make_offline("pendulum", "medium")

    class Push(habitus.Policy):
        gain: float

        def __call__(self, obs, carry, key):
            swing = jnp.where(obs[0] > 0.8, -(15 * jnp.arctan2(obs[1], obs[0]) + 3 * obs[2]) / 2, jnp.sign(obs[2]))
            return jnp.clip(self.gain * swing, -1, 1)[None], carry

    good, bad = (
        evaluate_offline(Push(g), log, discount=0.97, updates=1_500, hidden=(8,))["model"].value for g in (1.0, -1.0)
    )
    assert good.estimate > bad.estimate + 20


def test_what_has_no_probabilities_cannot_be_weighted():
    with pytest.raises(ConfigError, match="probabilities"):
        distribution_of(Deterministic(lambda obs: obs))
    with pytest.raises(ConfigError, match="density"):
        distribution_of(Mode(lambda obs: Normal(jnp.zeros(1), jnp.zeros(1))))(jnp.zeros(1))
    greedy = distribution_of(Greedy(lambda obs: jnp.array([0.0, 2.0, 1.0]), 0.3))(jnp.zeros(1))
    np.testing.assert_allclose(greedy.probs, [0.1, 0.8, 0.1], atol=1e-5)


def test_other_spaces_are_refused(known):
    log, target, _, _ = known
    other = Spec(spaces.Discrete(STATES + 1), spaces.Discrete(ACTIONS))
    with pytest.raises(SpaceMismatch):
        evaluate_offline(Deployed.of(target, other), log)
    with pytest.raises(ConfigError, match="discount"):
        evaluate_offline(target, log, discount=1.5)
