"""A judge of actions: which of two is better justified, given some features of the state.

Learned from a log: what was done is preferred to a random other action, with a random handful of
features shown (Sukovic and Radanovic 2024, section 3.2; Bradley and Terry 1952).
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.errors import SpaceMismatch
from habitus.core.experience import Transition
from habitus.core.protocols import Learner, Policy, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, descend, trainable
from habitus.envs.worlds.debate import other_action
from habitus.nets.batchnorm import BatchNormMLP, Moments
from habitus.nets.policies import Greedy


class Judge(eqx.Module):
    """`J(a, e)`: a score of an action, from revealed features, which features these are, and the action."""

    net: BatchNormMLP
    moments: tuple[Moments, ...]
    num_actions: int = eqx.field(static=True)

    def __call__(
        self, features: Float[Array, "n"], revealed: Float[Array, "n"], action: Int[Array, ""]
    ) -> Float[Array, ""]:
        return self.net(seen(features, revealed, action, self.num_actions), self.moments)[0]


class Scores(eqx.Module):
    """The judge's score of every action, with all features revealed."""

    judge: Judge

    def __call__(self, features: Float[Array, "n"]) -> Float[Array, "actions"]:
        everything = jnp.ones_like(features)
        return jax.vmap(lambda a: self.judge(features, everything, a))(jnp.arange(self.judge.num_actions))


def seen(features: Array, revealed: Array, action: Array, num_actions: int) -> Float[Array, "inputs"]:
    """`[s * m; m; onehot(a)]`: the mask tells a feature of 0 from one not revealed."""
    return jnp.concatenate([features * revealed, revealed, jax.nn.one_hot(action, num_actions)])


def handful(key: PRNGKeyArray, n: int, size: int) -> Float[Array, "n"]:
    """1 for exactly `size` of `n` features, each choice as likely as any other."""
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(key, (n,))))
    return (rank < size).astype(jnp.float32)


def preference_loss(better: Float[Array, "batch"], worse: Float[Array, "batch"]) -> Float[Array, ""]:
    """`-mean log softmax(J(better), J(worse))` of the preferred one (Bradley and Terry)."""
    return jax.nn.softplus(worse - better).mean()


class JudgeState(eqx.Module):
    """The network, its running statistics, its optimiser."""

    net: BatchNormMLP
    moments: tuple[Moments, ...]
    net_opt: optax.OptState
    num_actions: int = eqx.field(static=True)


class BradleyTerry(Learner):
    """Learns the judge from a log. Discrete actions, observations as vectors."""

    evidence: int = 6  # features shown of each state
    learning_rate: float = 5e-4  # authors' code
    batch_size: int = 256
    hidden: tuple[int, ...] = (256, 256)  # authors' code

    trains: ClassVar = {"net": ("preference_loss",)}

    def init(self, spec: Spec, key: PRNGKeyArray) -> JudgeState:
        spec.require("discrete", "a judge")
        if spec.image or spec.tabular:
            raise SpaceMismatch("a judge is shown features, but the observations are not vectors.")
        n = spec.obs_size
        require(1 <= self.evidence <= n, f"evidence must be from 1 to the {n} features, but is {self.evidence}.")
        net = BatchNormMLP(2 * n + spec.num_actions, self.hidden, 1, key)
        return JudgeState(net, net.start(), optax.adam(self.learning_rate).init(trainable(net)), spec.num_actions)

    def preference_loss(
        self, net: BatchNormMLP, state: JudgeState, batch: Transition, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Any]:
        """Of the logged action against a random other one, on fresh evidence that both share."""
        other_key, mask_key = jax.random.split(key)
        rows, n = batch.obs.shape
        other = other_action(other_key, batch.action, state.num_actions)
        shown = jax.vmap(lambda k: handful(k, n, self.evidence))(jax.random.split(mask_key, rows))
        both = jax.vmap(lambda o, m, a: seen(o, m, a, state.num_actions))
        inputs = jnp.concatenate([both(batch.obs, shown, batch.action), both(batch.obs, shown, other)])
        scores, moments = net.train(inputs, state.moments)
        better, worse = jnp.split(scores[:, 0], 2)
        loss = preference_loss(better, worse)
        return loss, ({"preference_loss": loss, "accuracy": (better > worse).mean()}, moments)

    def update(self, state: JudgeState, batch: Transition, key: PRNGKeyArray) -> tuple[JudgeState, Metrics]:
        adam = optax.adam(self.learning_rate)
        found: Any
        net, opt, found = descend(adam, self.preference_loss, state.net, state.net_opt, state, batch, key)
        metrics, moments = found
        return JudgeState(net, moments, opt, state.num_actions), metrics

    def judge(self, state: JudgeState) -> Judge:
        """The judge in use: with running statistics."""
        net, moments = jax.tree.map(jnp.asarray, (state.net, state.moments))
        return Judge(net, moments, state.num_actions)

    def policy(self, state: JudgeState) -> Policy:
        """Does what the judge, seeing everything, finds best justified."""
        return Greedy(Scores(self.judge(state)))
