"""Probabilistic ensembles of dynamics: what follows a state and an action, and how sure that is.

K. Chua, R. Calandra, R. McAllister and S. Levine, "Deep Reinforcement Learning in a Handful of Trials
using Probabilistic Dynamics Models", NeurIPS 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.experience import Transition
from habitus.core.spec import Spec
from habitus.nets.distributions import Normal
from habitus.nets.mlp import MLP
from habitus.nets.normalise import Standardiser


class GaussianDynamics(eqx.Module):
    """`p(s' - s, r | s, a)` as independent Gaussians, with learned soft bounds on their spread.

    Changes of state are predicted in units of the log's standard deviation, so that one loss serves
    states of any scale.
    """

    mlp: MLP
    low: Float[Array, "outputs"]
    high: Float[Array, "outputs"]

    def __init__(self, spec: Spec, hidden: Sequence[int], key: PRNGKeyArray):
        outputs = spec.obs_size + 1
        self.mlp = MLP(spec.obs_size + spec.action_size, hidden, 2 * outputs, key, "silu")
        self.low, self.high = jnp.full(outputs, -10.0), jnp.full(outputs, 0.5)

    def __call__(self, obs: Float[Array, "obs"], action: Float[Array, "actions"]) -> Normal:
        mean, log_var = jnp.split(self.mlp(jnp.concatenate([obs, action])), 2)
        log_var = self.high - jax.nn.softplus(self.high - log_var)
        log_var = self.low + jax.nn.softplus(log_var - self.low)
        return Normal(mean, log_var / 2)


class DynamicsEnsemble(eqx.Module):
    """Several `GaussianDynamics`, stacked, and the scale of the states."""

    members: GaussianDynamics
    normaliser: Standardiser
    size: int = eqx.field(static=True)

    def __init__(self, spec: Spec, hidden: Sequence[int], size: int, key: PRNGKeyArray):
        """Args:
        spec: real observations and actions, and the log that gives the scale of the former.
        size: number of members.
        """
        spec.require("continuous", "a Gaussian model of the dynamics")
        keys = jax.random.split(key, size)
        self.members = eqx.filter_vmap(lambda k: GaussianDynamics(spec, hidden, k))(keys)
        self.normaliser, self.size = Standardiser.of(spec), size

    def each(self, obs: Array, action: Array) -> Normal:
        """What every member predicts for one pair: mean and log standard deviation [size, obs + 1], scaled."""
        seen = self.normaliser(obs)
        return eqx.filter_vmap(lambda member: member(seen, action))(self.members)

    def target(self, batch: Transition) -> Float[Array, "batch outputs"]:
        """What the members should predict, scaled."""
        change = (batch.next_obs - batch.obs) / jax.lax.stop_gradient(self.normaliser.std)
        return jnp.concatenate([change, batch.reward[:, None]], axis=1)

    def loss(self, batch: Transition, key: PRNGKeyArray) -> tuple[Float[Array, ""], Float[Array, "size"]]:
        """Negative log likelihood of a batch, a bootstrap resample for each member; and each one's squared error."""
        rows = jax.random.randint(key, (self.size, batch.size), 0, batch.size)
        seen, target = self.normaliser(batch.obs), self.target(batch)

        def one(member: GaussianDynamics, rows: Array) -> tuple[Array, Array]:
            found = jax.vmap(member)(seen[rows], batch.action[rows])
            square = (found.mean - target[rows]) ** 2
            nll = (square * jnp.exp(-2 * found.log_std) + 2 * found.log_std).sum(1).mean()
            return nll + 0.01 * (member.high.sum() - member.low.sum()), square.mean()

        nll, error = eqx.filter_vmap(one)(self.members, rows)
        return nll.sum(), error

    def sample(
        self, obs: Float[Array, "obs"], action: Float[Array, "actions"], member: Array, key: PRNGKeyArray
    ) -> tuple[Float[Array, "obs"], Float[Array, ""]]:
        """Successor and reward, drawn from one member's prediction."""
        arrays, static = eqx.partition(self.members, eqx.is_array)
        chosen: GaussianDynamics = eqx.combine(jax.tree.map(lambda x: x[member], arrays), static)
        drawn = chosen(self.normaliser(obs), action).sample(key)
        return obs + drawn[:-1] * self.normaliser.std, drawn[-1]


class ModelRollout(eqx.Module):
    """Roll-outs in an ensemble: each step is drawn from a random one of its `elites`."""

    model: DynamicsEnsemble
    elites: Int[Array, "elites"]
    termination: Callable[[Array, Array, Array], Bool[Array, ""]] = eqx.field(static=True)

    def run(
        self, starts: Float[Array, "n obs"], act: Callable[[Array], Array], length: int, key: PRNGKeyArray
    ) -> tuple[Float[Array, "length n obs"], Bool[Array, "length n"]]:
        """The states visited, and whether each roll-out was still on its way there.

        One that the task ends, or whose state is no longer finite, stays where it was.
        """

        def advance(at: tuple[Array, Array], key: PRNGKeyArray) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
            obs, alive = at
            which_key, draw_key = jax.random.split(key)
            action = jax.vmap(act)(obs)
            member = self.elites[jax.random.randint(which_key, (len(obs),), 0, len(self.elites))]
            after, _ = jax.vmap(self.model.sample)(obs, action, member, jax.random.split(draw_key, len(obs)))
            still = jnp.isfinite(after).all(-1) & ~jax.vmap(self.termination)(obs, action, after)
            return (jnp.where((alive & still)[:, None], after, obs), alive & still), (obs, alive)

        return jax.lax.scan(advance, (starts, jnp.ones(len(starts), bool)), jax.random.split(key, length))[1]
