"""Conjugate gradient, Fisher-vector products, and steps that stay in the trust region."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.nets.distributions import Categorical, Normal
from habitus.nets.mlp import MLP
from habitus.nets.trust_region import (
    TrustRegion,
    as_vector,
    backtrack,
    conjugate_gradient,
    fisher_product,
    trust_region_step,
)

KEY = jax.random.key(0)
OBS = jax.random.normal(jax.random.key(1), (64, 3))


class Policy(eqx.Module):
    """A Gaussian with a free spread."""

    net: MLP
    log_std: jax.Array

    def __call__(self, obs):
        return Normal(self.net(obs), self.log_std)


def policy():
    return Policy(MLP(3, (8,), 2, KEY, "tanh"), jnp.array([-0.3, 0.4]))


def mean_kl(old, new, *args):
    return jax.vmap(lambda o: old(o).kl(new(o)))(OBS).mean()


def surrogate(scale):
    """Minus the mean of advantage times likelihood ratio, for a random advantage."""
    action = jax.vmap(lambda o, k: policy()(o).sample(k))(OBS, jax.random.split(KEY, 64))
    old = jax.vmap(lambda o, a: policy()(o).log_prob(a))(OBS, action)
    advantage = scale * jax.random.normal(jax.random.key(2), (64,))

    def loss(network, *args):
        ratio = jnp.exp(jax.vmap(lambda o, a: network(o).log_prob(a))(OBS, action) - old)
        return -(advantage * ratio).mean(), {"seen": advantage.mean()}

    return loss


# --- conjugate gradient


@pytest.mark.parametrize("seed", range(3))
def test_a_positive_definite_system_of_twenty_is_solved_in_twenty_iterations(seed):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(20, 20)))
    matrix = jnp.asarray(basis @ np.diag(np.geomspace(0.2, 2, 20)) @ basis.T, jnp.float32)
    wanted = jnp.asarray(rng.normal(size=20) / 20, jnp.float32)
    found = jax.jit(lambda b: conjugate_gradient(lambda v: matrix @ v, b, 20))(matrix @ wanted)
    assert float(jnp.linalg.norm(matrix @ found - matrix @ wanted)) < 1e-6
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    early = conjugate_gradient(lambda v: matrix @ v, matrix @ wanted, 3)
    assert float(jnp.abs(early - wanted).max()) > 1e-4


def test_tiny_and_vanishing_right_hand_sides_are_solved_too():
    matrix = jnp.diag(jnp.array([1.0, 2.0, 4.0]))
    for scale in (1e-8, 1.0, 1e8):
        found = conjugate_gradient(lambda v: matrix @ v, scale * jnp.ones(3), 10)
        np.testing.assert_allclose(found, scale * jnp.array([1.0, 0.5, 0.25]), rtol=1e-5)
    assert not conjugate_gradient(lambda v: matrix @ v, jnp.zeros(3), 10).any()


# --- Fisher-vector products


def test_the_product_is_with_the_expected_outer_product_of_scores():
    net = MLP(3, (), 2, KEY)
    at, rebuild = as_vector(net)

    def log_prob(v, obs, action):
        return Categorical(rebuild(v)(obs)).log_prob(action)

    scores = jax.vmap(lambda o: jax.vmap(lambda a: jax.grad(log_prob)(at, o, a))(jnp.arange(2)))(OBS)
    probs = jax.vmap(lambda o: Categorical(net(o)).probs)(OBS)
    fisher = jnp.einsum("sa,sai,saj->ij", probs, scores, scores) / len(OBS)

    def divergence(old, new):
        return jax.vmap(lambda o: Categorical(old(o)).kl(Categorical(new(o))))(OBS).mean()

    product = fisher_product(divergence, net)
    np.testing.assert_allclose(jax.vmap(product)(jnp.eye(len(at))), fisher, atol=1e-5)


# --- steps


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_step_improves_and_stays_within_the_region_whatever_the_scale_of_the_advantage(scale):
    loss, old = surrogate(scale), policy()
    region = TrustRegion(damping=1e-3)
    new, metrics = eqx.filter_jit(trust_region_step)(region, loss, old, mean_kl)
    assert float(metrics["rejected"]) == 0 and "seen" in metrics
    assert 0.5 * 0.01 < float(mean_kl(old, new)) <= 1.5 * 0.01 * (1 + 1e-5)
    np.testing.assert_allclose(metrics["kl"], mean_kl(old, new), rtol=1e-4)
    assert float(loss(new)[0]) < float(loss(old)[0])


def test_the_direction_is_the_natural_gradient():
    loss, old = surrogate(1.0), policy()
    here, rebuild = as_vector(old)
    new, _ = trust_region_step(TrustRegion(max_kl=1e-5, damping=0.05, cg_steps=60), loss, old, mean_kl)
    product = fisher_product(mean_kl, old)
    fisher = jax.vmap(product)(jnp.eye(len(here))) + 0.05 * jnp.eye(len(here))
    natural = jnp.linalg.solve(fisher, -jax.grad(lambda v: loss(rebuild(v))[0])(here))
    step = as_vector(new)[0] - here
    cosine = step @ natural / jnp.linalg.norm(step) / jnp.linalg.norm(natural)
    assert float(cosine) > 0.999


@pytest.mark.parametrize("bad", ["nowhere better", "not a number"])
def test_a_rejected_step_changes_no_bit(bad):
    old = policy()

    def loss(network, *args):
        value = surrogate(1.0)(network)[0]
        worse = jnp.abs(as_vector(network)[0] - as_vector(old)[0]).sum()
        return value + (1e6 * worse if bad == "nowhere better" else jnp.nan * worse), {}

    new, metrics = trust_region_step(TrustRegion(), loss, old, mean_kl)
    assert float(metrics["rejected"]) == 1 and float(metrics["kl"]) == 0
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))


def test_the_longest_accepted_step_is_taken():
    here, step = jnp.zeros(2), jnp.array([8.0, 0.0])
    after, share = backtrack(lambda v, share: v[0] <= 3, here, step, 10)
    assert after[0] == 2 and share == 0.25
    _, share = backtrack(lambda v, share: v[0] <= 3, here, step, 2)
    assert share == 0


def test_steps_map_over_networks():
    nets = [Policy(MLP(3, (8,), 2, jax.random.key(i), "tanh"), jnp.zeros(2)) for i in range(3)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs) if eqx.is_array(xs[0]) else xs[0], *nets)
    loss = surrogate(1.0)

    @eqx.filter_vmap
    def step(network):
        return trust_region_step(TrustRegion(), loss, network, mean_kl)

    together, _ = step(stacked)
    for i, net in enumerate(nets):
        alone, _ = trust_region_step(TrustRegion(), loss, net, mean_kl)
        np.testing.assert_allclose(together.net.layers[0].weight[i], alone.net.layers[0].weight, atol=1e-5)


@pytest.mark.parametrize(
    "bad", [{"max_kl": 0.0}, {"damping": -1.0}, {"slack": 0.0}, {"cg_steps": 0}, {"backtracks": 0}]
)
def test_what_makes_no_sense_is_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        TrustRegion(**bad)
