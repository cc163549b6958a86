"""No episode leaks into the next: whoever runs them, each is as if it were the only one.

Every roll-out is repeated one episode and one copy at a time, from fresh carries and with the same keys. As the copies
are in different phases of their plans, this also shows that a batch does what each of its members would do alone.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from habitus.core.policy import Deployed
from habitus.envs.adapters.gymnasium import GymnasiumEnv
from habitus.execution.best_of_n import BestOfN
from habitus.execution.horizon import RecedingHorizon
from habitus.execution.planner import BestPlan
from habitus.execution.streaming import Streaming
from habitus.execution.two_rate import Follow, TwoRate
from habitus.execution.warm_start import WarmStart
from habitus.nets.policies import Noisy
from habitus.train.collect import HostCollector, collect, run_episodes, start
from habitus.train.host import Actor, listens

from .parts import HostUneven, Uneven, denoising

COPIES, STEPS = 3, 16


class High(eqx.Module):
    """Likes high actions."""

    def __call__(self, obs, action):
        return action.sum()


def planner(rows=6, levels=6, **settings):
    return denoising(rows, levels, 0.1, 0.3, 0.5, **settings)


POLICIES = {
    "receding horizon": lambda: RecedingHorizon(planner(steps=2), execute=3, observe=2),
    "streaming": lambda: Streaming(planner(7), execute=2, observe=2),
    "warm start": lambda: WarmStart(planner(), execute=2, observe=2, levels=(1, 0)),
    "two rates": lambda: TwoRate(planner(steps=2), Follow(), period=3, latency=2),
    "best of n": lambda: BestOfN(Streaming(planner(7), execute=2, observe=2), High(), 3),
    "nested": lambda: Noisy(
        BestOfN(TwoRate(BestPlan(planner(), High(), 2), Follow(1), period=3, latency=2, observe=2), High(), 2), 0.1
    ),
}


@pytest.fixture(params=POLICIES, ids=POLICIES)
def policy(request):
    return POLICIES[request.param]()


@eqx.filter_jit
def act(policy, obs, carry, key):
    return policy(obs, carry, key)


def alone(policy, obs, done, keys):
    """Actions [time, copy, ...] of the same observations with the same keys, one episode of one copy after another."""
    actions = [[None] * done.shape[1] for _ in done]
    for copy in range(done.shape[1]):
        carry = policy.init()
        for t in range(len(done)):
            actions[t][copy], carry = act(policy, jnp.asarray(obs[t, copy]), carry, keys[t, copy])
            carry = policy.init() if done[t, copy] else carry
    return np.asarray(actions)


def check(policy, rollout, keys):
    obs, done, actions = (np.asarray(x) for x in (rollout.obs, rollout.done, rollout.action))
    np.testing.assert_allclose(actions, alone(policy, obs, done, keys), atol=5e-5)
    assert done[:-1].sum() >= 2  # some episodes follow others
    leaking = alone(policy, obs, np.zeros_like(done), keys)
    assert np.abs(actions - leaking).max() > 1e-3  # and a leak would be seen


def test_compiled_worlds(policy):
    key = jax.random.key(7)
    _, rollout = jax.jit(lambda: collect(Uneven(), start(Uneven(), COPIES, policy, key), policy, key, STEPS))()
    check(policy, rollout, jax.random.split(key, (STEPS, 2, COPIES))[:, 0])


def test_worlds_on_the_host(policy):
    actor = Actor.of(policy)
    collector = HostCollector(GymnasiumEnv(HostUneven, COPIES), actor, 3)
    rows = [jax.tree.map(np.array, collector.step(actor)) for _ in range(STEPS)]
    keys = [jax.random.split(jax.random.fold_in(jax.random.key(3), np.uint32(t)), COPIES) for t in range(STEPS)]
    check(policy, jax.tree.map(lambda *xs: jnp.stack(xs), *rows), jnp.stack(keys))


def test_evaluation():
    """Actions are paid, so that returns tell them: the same episodes have the same, whichever came before."""
    policy, env = POLICIES["streaming"](), GymnasiumEnv(HostUneven, 1)
    found, later = (run_episodes(policy, Uneven(), 3, seed=seed).returns for seed in (5, 6))
    np.testing.assert_allclose(found[1:], later[:2], atol=1e-4)
    host = run_episodes(policy, env, 3, seed=5).returns
    np.testing.assert_allclose(host, [run_episodes(policy, env, 1, seed=5 + i).returns[0] for i in range(3)], atol=1e-4)


def test_no_wrapper_listens_unless_what_it_holds_does(policy):
    assert not listens(policy)


def test_a_carry_keeps_its_types(policy):
    """So that a compiled loop holds it and a host loop compiles once."""
    before = policy.init()
    _, after = jax.eval_shape(policy, jnp.zeros(2), before, jax.random.key(0))
    types = [[(x.shape, x.dtype, getattr(x, "weak_type", False)) for x in jax.tree.leaves(c)] for c in (before, after)]
    assert types[0] == types[1] and jax.tree.structure(before) == jax.tree.structure(after)


@pytest.mark.parametrize("name", ["streaming", "warm start", "two rates"])
def test_a_session_begins_anew(name):
    session = Deployed.of(POLICIES[name](), Uneven().spec).session()
    first = [session.act(np.asarray([t, 1], np.float32)) for t in range(3)]
    session.reset()
    session.tick = 0
    np.testing.assert_array_equal(first, [session.act(np.asarray([t, 1], np.float32)) for t in range(3)])
