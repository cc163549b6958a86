"""TRPO: its surrogate, and where a step ends."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.errors import ConfigError
from habitus.core.returns import standardise
from habitus.methods.online.trpo import TRPO
from habitus.nets.losses import prepare_round

from .cases import HIDDEN, KEY, SPECS, batch_for, close, every_kind, gradient, same


def start(kind, **settings):
    spec = SPECS[kind]
    learner = TRPO(**dict(hidden=HIDDEN, value_epochs=1) | settings)
    rows = jax.tree.map(lambda x: x.reshape(16, 4, *x.shape[1:]), batch_for(spec, 64))
    return learner, learner.init(spec, KEY), rows


@every_kind
def test_the_gradient_of_the_surrogate_is_that_of_the_policy(kind):
    learner, state, rows = start(kind)
    ready = prepare_round(state.actor, state.critic, rows, learner.discount, learner.gae_lambda)

    def likelihood(actor):
        log_prob = jax.vmap(lambda o, a: actor(o).log_prob(a))(ready.obs, ready.action)
        return -(log_prob * standardise(ready.advantage)).mean(), {}

    close(gradient(learner.actor_loss, state.actor, state, ready, KEY), gradient(likelihood, state.actor), atol=1e-5)


@every_kind
def test_a_round_moves_the_policy_by_no_more_than_its_bound_and_improves_the_surrogate(kind):
    learner, state, rows = start(kind, max_kl=0.02)
    after, metrics = eqx.filter_jit(learner.update)(state, rows, KEY)
    ready = prepare_round(state.actor, state.critic, rows, learner.discount, learner.gae_lambda)
    kl = learner.divergence(state.actor, after.actor, state, ready, KEY)
    assert 0.1 * 0.02 < float(kl) <= 1.5 * 0.02 * (1 + 1e-5)
    np.testing.assert_allclose(kl, metrics["kl"], rtol=1e-3)
    before, now = (learner.actor_loss(a, state, ready, KEY)[0] for a in (state.actor, after.actor))
    assert float(now) < float(before) and not same(after.critic, state.critic)
    assert float(jnp.abs(learner.divergence(state.actor, state.actor, state, ready, KEY))) < 1e-7


@pytest.mark.parametrize("bad", [{"max_kl": -1.0}, {"damping": -1.0}, {"cg_steps": 0}, {"gae_lambda": 2.0}])
def test_what_makes_no_sense_is_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        TRPO(**bad)
