"""Small specs, batches and networks of known values, for the tests of methods."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from habitus.core.experience import Transition
from habitus.core.spec import Spec
from habitus.data.dataset import Dataset
from habitus.nets.heads import Ensemble

KEY = jax.random.key(0)
HIDDEN = (16, 16)


def box_spec(obs=3, actions=2):
    """Real observations and actions in [-1, 1]."""
    return Spec(spaces.Box(-np.inf, np.inf, (obs,)), spaces.Box(-1, 1, (actions,)))


def discrete_spec(obs=3, n=3):
    """Real observations and `n` actions."""
    return Spec(spaces.Box(-np.inf, np.inf, (obs,)), spaces.Discrete(n))


SPECS = {"real": box_spec(), "discrete": discrete_spec()}
every_kind = pytest.mark.parametrize("kind", SPECS)


def tabular_spec(states=4, n=3):
    """Integer observations and `n` actions: networks without hidden layers are tables."""
    return Spec(spaces.Discrete(states), spaces.Discrete(n))


def batch_for(spec, rows=32, seed=0, terminated=0.25):
    """Random transitions in canonical form."""
    rng = np.random.default_rng(seed)

    def observations():
        if spec.tabular:
            return jnp.asarray(rng.integers(0, spec.obs_size, rows), jnp.int32)
        return jnp.asarray(rng.normal(size=(rows, spec.obs_size)), jnp.float32)

    if spec.discrete:
        action = jnp.asarray(rng.integers(0, spec.num_actions, rows), jnp.int32)
    else:
        action = jnp.asarray(rng.uniform(-1, 1, (rows, spec.action_size)), jnp.float32)
    ends = rng.random(rows)
    return Transition(
        obs=observations(),
        action=action,
        reward=jnp.asarray(rng.normal(size=rows), jnp.float32),
        terminated=jnp.asarray(ends < terminated),
        truncated=jnp.asarray(ends > 0.9),
        next_obs=observations(),
    )


def log_of(batch, spec):
    """The same transitions as a log, one episode each."""
    columns = {name: np.asarray(column) for name, column in batch.columns.items()}
    columns["truncated"] = ~columns["terminated"]
    return Dataset.from_arrays(
        **columns, observation_space=spec.observation_space, action_space=spec.action_space, validate=False
    )


def gradient(loss, network, *args):
    """The gradient of `loss(network, *args) -> (loss, metrics)` in the network."""
    return eqx.filter_grad(lambda n: loss(n, *args)[0])(network)


def with_table(net, values):
    """A network of one linear layer on one-hot codes, so that it answers `values` [states, outputs]."""
    (layer,) = net.mlp.layers
    values = jnp.asarray(values, jnp.float32)
    assert layer.weight.shape == values.shape
    return eqx.tree_at(
        lambda n: (n.mlp.layers[0].weight, n.mlp.layers[0].bias), net, (values, jnp.zeros_like(layer.bias))
    )


class Linear(eqx.Module):
    """Q(s, a) = offset + slope . a, whatever the state."""

    slope: jax.Array
    offset: jax.Array

    def __call__(self, obs, action):
        return self.offset + self.slope @ action


def linear_critics(*slopes_and_offsets):
    """An ensemble of `Linear` critics, one for each (slope, offset)."""
    members = iter([Linear(jnp.asarray(s, jnp.float32), jnp.float32(o)) for s, o in slopes_and_offsets])
    return Ensemble(lambda _: next(members), len(slopes_and_offsets), KEY)


def close(a, b, **tolerance):
    """Asserts that two trees hold nearly the same numbers."""
    pairs = zip(jax.tree.leaves(eqx.filter(a, eqx.is_array)), jax.tree.leaves(eqx.filter(b, eqx.is_array)), strict=True)
    for x, y in pairs:
        np.testing.assert_allclose(x, y, **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


def same(a, b):
    """Whether two trees hold the same numbers, bit for bit."""
    pairs = zip(jax.tree.leaves(eqx.filter(a, eqx.is_array)), jax.tree.leaves(eqx.filter(b, eqx.is_array)), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def flat(tree):
    """All numbers of a tree in one vector."""
    return jnp.concatenate([x.ravel() for x in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))])
