"""What off-policy estimators fit to a log: values of a policy, and the policy that was logged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.experience import Transition
from habitus.core.protocols import Policy
from habitus.core.returns import td_target
from habitus.core.trees import copy, descend, polyak, take, trainable
from habitus.data.dataset import Dataset
from habitus.nets.distributions import Distribution
from habitus.nets.heads import ActionValue, BoundedGaussianActor, Critic, DiscreteCritic, StochasticActor
from habitus.nets.normalise import Standardiser

Behaviour = Callable[[Array], Distribution]
RESAMPLES = 8  # of the episodes, each with values of its own
DRAWS = 8  # actions that stand for a stochastic policy
BATCH = 256


class FittedQ(eqx.Module):
    """Values of one policy, fitted to several bootstrap resamples of a log's episodes."""

    nets: Any
    policy: Policy
    normaliser: Standardiser
    starts: Float[np.ndarray, "resamples"]

    def values(self, log: Dataset) -> tuple[Float[np.ndarray, "rows"], Float[np.ndarray, "rows"]]:
        """`Q(s, a)` and `E Q(s, pi(s))` of every row, means over the resamples."""
        data = log.canonical()
        obs, action = (jnp.asarray(np.asarray(x)) for x in (data.obs, data.action))
        pair, state = _values(self, obs, action)
        return np.asarray(pair, np.float64), np.asarray(state, np.float64)


def state_value(net: Any, policy: Policy, normaliser: Standardiser, obs: Array, key: PRNGKeyArray) -> Array:
    """`E Q(s, pi(s))` of one observation, over a few draws."""
    action, _ = jax.vmap(lambda k: policy(obs, policy.init(), k))(jax.random.split(key, DRAWS))
    return jax.vmap(lambda a: net(normaliser(obs), a))(action).mean()


@eqx.filter_jit
def _values(fitted: FittedQ, obs: Array, action: Array) -> tuple[Array, Array]:
    keys = jax.random.split(jax.random.key(0), len(obs))

    def member(net: Any) -> tuple[Array, Array]:
        pair = jax.vmap(lambda o, a: net(fitted.normaliser(o), a))(obs, action)
        return pair, jax.vmap(lambda o, k: state_value(net, fitted.policy, fitted.normaliser, o, k))(obs, keys)

    return jax.tree.map(lambda x: x.mean(0), eqx.filter_vmap(member)(fitted.nets))


def fit_q(
    policy: Policy, log: Dataset, discount: float, updates: int, hidden: tuple[int, ...], key: PRNGKeyArray
) -> FittedQ:
    """Fitted Q evaluation of a policy in canonical spaces, once for each resample of the episodes."""
    spec, normaliser = log.spec, Standardiser.of(log.spec)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    drawn = [rng.integers(0, len(log.starts), len(log.starts)) for _ in range(RESAMPLES)]
    rows = [np.concatenate([np.arange(log.starts[e], log.ends[e] + 1) for e in chosen]) for chosen in drawn]
    counts = jnp.asarray([len(r) for r in rows])
    padded = jnp.asarray(np.stack([np.resize(r, max(map(len, rows))) for r in rows]))
    net_key, fit_key = jax.random.split(key)

    def make(k: PRNGKeyArray) -> Critic | ActionValue:
        return Critic(spec, hidden, k) if spec.continuous else ActionValue(DiscreteCritic(spec, hidden, k))

    nets = eqx.filter_vmap(make)(jax.random.split(net_key, RESAMPLES))
    data = jax.tree.map(jnp.asarray, log.canonical().transitions(slice(None)))
    nets = _fit_q(nets, policy, normaliser, data, padded, counts, jnp.float32(discount), updates, fit_key)
    first = jnp.asarray(np.asarray(log.canonical().obs)[log.starts])
    keys = jax.random.split(fit_key, len(first))
    by_start = eqx.filter_jit(
        eqx.filter_vmap(lambda net: jax.vmap(lambda o, k: state_value(net, policy, normaliser, o, k))(first, keys))
    )(nets)
    starts = np.array([np.asarray(by_start)[i][chosen].mean() for i, chosen in enumerate(drawn)])
    return FittedQ(nets, policy, normaliser, starts)


@eqx.filter_jit
def _fit_q(
    nets: Any, policy: Policy, normaliser: Standardiser, data: Transition, rows: Array, counts: Array,
    discount: Array, updates: int, key: PRNGKeyArray,
) -> Any:  # fmt: skip
    adam = optax.adam(1e-3)

    def loss(nets: Any, target: Any, batch: Transition, keys: Array) -> tuple[Array, dict[str, Array]]:
        def one(net: Any, frozen: Any, batch: Transition, keys: Array) -> Array:
            next_value = jax.vmap(lambda o, k: state_value(frozen, policy, normaliser, o, k))(batch.next_obs, keys)
            y = jax.lax.stop_gradient(td_target(batch.reward, batch.terminated, next_value, discount))
            q = jax.vmap(lambda o, a: net(normaliser(o), a))(batch.obs, batch.action)
            return ((q - y) ** 2).mean()

        return eqx.filter_vmap(one)(nets, target, batch, keys).sum(), {}

    arrays, static = eqx.partition(nets, eqx.is_array)

    def step(carry: Any, key: PRNGKeyArray) -> tuple[Any, None]:
        now, frozen, opt = carry
        row_key, act_key = jax.random.split(key)
        at = jax.random.randint(row_key, (RESAMPLES, BATCH), 0, counts[:, None])
        batch = take(data, jnp.take_along_axis(rows, at, axis=1))
        keys = jax.random.split(act_key, (RESAMPLES, BATCH))
        net, opt, _ = descend(adam, loss, eqx.combine(now, static), opt, eqx.combine(frozen, static), batch, keys)
        now = eqx.filter(net, eqx.is_array)
        return (now, polyak(frozen, now, 0.005), opt), None

    carry = (arrays, copy(arrays), adam.init(trainable(nets)))
    (arrays, _, _), _ = jax.lax.scan(step, carry, jax.random.split(key, updates))
    return eqx.combine(arrays, static)


def clone_behaviour(log: Dataset, updates: int, hidden: tuple[int, ...], key: PRNGKeyArray) -> Behaviour:
    """The logged policy as a distribution for one observation, by maximum likelihood."""
    spec, normaliser = log.spec, Standardiser.of(log.spec)
    net_key, fit_key = jax.random.split(key)
    actor: BoundedGaussianActor | StochasticActor
    if spec.continuous:
        actor = BoundedGaussianActor(spec, hidden, net_key)
    else:
        actor = StochasticActor(spec, hidden, net_key, "relu", final_gain=None)
    data = jax.tree.map(jnp.asarray, log.canonical().transitions(slice(None)))
    fitted = _fit_clone(actor, normaliser, data, updates, fit_key)
    return lambda obs: fitted(normaliser(obs))


@eqx.filter_jit
def _fit_clone(actor: Any, normaliser: Standardiser, data: Transition, updates: int, key: PRNGKeyArray) -> Any:
    adam = optax.adam(1e-3)

    def loss(actor: Any, batch: Transition) -> tuple[Array, dict[str, Array]]:
        return -jax.vmap(lambda o, a: actor(normaliser(o)).log_prob(a))(batch.obs, batch.action).mean(), {}

    arrays, static = eqx.partition(actor, eqx.is_array)

    def step(carry: Any, key: PRNGKeyArray) -> tuple[Any, None]:
        batch = take(data, jax.random.randint(key, (BATCH,), 0, data.size))
        net, opt, _ = descend(adam, loss, eqx.combine(carry[0], static), carry[1], batch)
        return (eqx.filter(net, eqx.is_array), opt), None

    (arrays, _), _ = jax.lax.scan(step, (arrays, adam.init(trainable(actor))), jax.random.split(key, updates))
    return eqx.combine(arrays, static)
