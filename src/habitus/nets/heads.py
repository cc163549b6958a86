"""The networks that methods are made of: actors, critics and values over any canonical space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from habitus.core.protocols import require
from habitus.core.spec import Spec
from habitus.nets.distributions import Categorical, Distribution, MultiCategorical, Normal, TanhNormal
from habitus.nets.encoder import Encoder, make_encoder
from habitus.nets.losses import pick
from habitus.nets.mlp import MLP, Linear, dense

Net = TypeVar("Net")
NEVER = -1e9  # logit of an action that is not allowed: probability 0, and still finite in an entropy


class ObsNet(eqx.Module):
    """An encoder and dense layers: one observation to `outputs` numbers."""

    encoder: Encoder
    mlp: MLP

    def __init__(
        self,
        spec: Spec,
        hidden: Sequence[int],
        outputs: int,
        key: PRNGKeyArray,
        activation: str = "relu",
        final_gain: float | None = None,
    ):
        e_key, m_key = jax.random.split(key)
        self.encoder = make_encoder(spec, e_key)
        self.mlp = MLP(self.encoder.size, hidden, outputs, m_key, activation, final_gain)

    def __call__(self, obs: Array) -> Float[Array, "outputs"]:
        return self.mlp(self.encoder(obs))


class Value(eqx.Module):
    """V(s): one observation to a number."""

    net: ObsNet

    def __init__(
        self,
        spec: Spec,
        hidden: Sequence[int],
        key: PRNGKeyArray,
        activation: str = "relu",
        final_gain: float | None = None,
    ):
        self.net = ObsNet(spec, hidden, 1, key, activation, final_gain)

    def __call__(self, obs: Array) -> Float[Array, ""]:
        return self.net(obs)[0]


class Critic(eqx.Module):
    """Q(s, a) for real actions: one observation and one action to a number."""

    encoder: Encoder
    mlp: MLP

    def __init__(self, spec: Spec, hidden: Sequence[int], key: PRNGKeyArray, activation: str = "relu"):
        spec.require("continuous", "a critic over real actions")
        e_key, m_key = jax.random.split(key)
        self.encoder = make_encoder(spec, e_key)
        self.mlp = MLP(self.encoder.size + spec.action_size, hidden, 1, m_key, activation)

    def __call__(self, obs: Array, action: Float[Array, "actions"]) -> Float[Array, ""]:
        return self.mlp(jnp.concatenate([self.encoder(obs), action]))[0]


def shrink_head(net: Net, factor: float, mlp: Callable[[Net], MLP]) -> Net:
    """The network with the last weights of one of its dense parts multiplied by `factor`, and no bias there."""
    last = mlp(net).layers[-1]
    quiet = eqx.tree_at(lambda x: (x.weight, x.bias), last, (factor * last.weight, jnp.zeros_like(last.bias)))
    return eqx.tree_at(lambda n: mlp(n).layers[-1], net, quiet)


class DiscreteCritic(eqx.Module):
    """Q(s, .) for discrete actions: one observation to a value for each action."""

    net: ObsNet

    def __init__(self, spec: Spec, hidden: Sequence[int], key: PRNGKeyArray, activation: str = "relu"):
        spec.require("discrete", "a critic over discrete actions")
        self.net = ObsNet(spec, hidden, spec.num_actions, key, activation)

    def __call__(self, obs: Array) -> Float[Array, "n"]:
        return self.net(obs)


class ActionValue(eqx.Module):
    """Q(s, a) for one discrete action: a `DiscreteCritic` asked about one of its actions."""

    critic: DiscreteCritic

    def __call__(self, obs: Array, action: Int[Array, ""]) -> Float[Array, ""]:
        return pick(self.critic(obs)[None], action[None])[0]


class Ensemble(eqx.Module):
    """Several networks of one kind, each with its own initialisation; answers with a leading axis.

    Members are kept side by side instead of stacked: for the small ensembles of actor-critics this
    is a tenth faster on a CPU than one `vmap`.
    """

    members: tuple[Callable[..., Array], ...]

    def __init__(self, make: Callable[[PRNGKeyArray], Callable[..., Array]], size: int, key: PRNGKeyArray):
        """Args:
        make: builds one member from a key.
        """
        self.members = tuple(make(k) for k in jax.random.split(key, size))

    def __call__(self, *args: Array) -> Float[Array, "members *out"]:
        return jnp.stack([member(*args) for member in self.members])


def twin_critic(spec: Spec, hidden: Sequence[int], key: PRNGKeyArray) -> Ensemble:
    """Two independent Q(s, a), of real or of discrete actions."""
    if spec.continuous:
        return Ensemble(lambda k: Critic(spec, hidden, k), 2, key)
    return Ensemble(lambda k: ActionValue(DiscreteCritic(spec, hidden, k)), 2, key)


class DeterministicActor(eqx.Module):
    """One observation to one action in [-1, 1]^A, by tanh."""

    net: ObsNet

    def __init__(self, spec: Spec, hidden: Sequence[int], key: PRNGKeyArray):
        spec.require("bounded", "a deterministic actor")
        self.net = ObsNet(spec, hidden, spec.action_size, key)

    def __call__(self, obs: Array) -> Float[Array, "actions"]:
        return jnp.tanh(self.net(obs))


class TanhGaussianActor(eqx.Module):
    """One observation to a squashed Gaussian whose spread depends on the state."""

    net: ObsNet
    size: int = eqx.field(static=True)
    log_std_range: tuple[float, float] = eqx.field(static=True)

    def __init__(
        self, spec: Spec, hidden: Sequence[int], key: PRNGKeyArray, log_std_range: tuple[float, float] = (-20.0, 2.0)
    ):
        spec.require("bounded", "a squashed Gaussian actor")
        self.net = ObsNet(spec, hidden, 2 * spec.action_size, key)
        self.size, self.log_std_range = spec.action_size, log_std_range

    def __call__(self, obs: Array) -> TanhNormal:
        mean, log_std = jnp.split(self.net(obs), 2)
        return TanhNormal(Normal(mean, jnp.clip(log_std, *self.log_std_range)))


class StochasticActor(eqx.Module):
    """One observation to a distribution that fits the action space, as on-policy methods use it.

    A Gaussian with a state-independent spread for real actions, categorical ones for discrete. Where the
    observation says which actions are allowed (`Spec.mask`), the others have probability 0.
    """

    net: ObsNet
    log_std: Float[Array, "actions"] | None
    sizes: tuple[int, ...] = eqx.field(static=True)
    mask: tuple[int, int] | None = eqx.field(static=True)

    def __init__(
        self,
        spec: Spec,
        hidden: Sequence[int],
        key: PRNGKeyArray,
        activation: str = "tanh",
        final_gain: float | None = 0.01,
    ):
        self.net = ObsNet(spec, hidden, spec.action_size, key, activation, final_gain)
        self.log_std = jnp.zeros(spec.action_size) if spec.continuous else None
        self.sizes = tuple(int(n) for n in spec.action_space.nvec.ravel()) if spec.multi_discrete else ()  # type: ignore[attr-defined]
        self.mask = None if spec.mask is None else (spec.mask.start, spec.mask.stop)

    def __call__(self, obs: Array) -> Distribution:
        out = self.net(obs)
        if self.mask is not None:
            return Categorical(jnp.where(obs[slice(*self.mask)] > 0, out, NEVER))
        if self.log_std is not None:
            return Normal(out, self.log_std)
        return MultiCategorical(out, self.sizes) if self.sizes else Categorical(out)


class BoundedGaussianActor(eqx.Module):
    """One observation to a Gaussian whose mean is squashed into [-1, 1] and whose spread is the same everywhere.

    Unlike a squashed Gaussian, it gives logged actions at the bounds a finite likelihood.
    """

    net: ObsNet
    log_std: Float[Array, "actions"]

    def __init__(self, spec: Spec, hidden: Sequence[int], key: PRNGKeyArray):
        spec.require("bounded", "a Gaussian actor with a squashed mean")
        self.net = ObsNet(spec, hidden, spec.action_size, key)
        self.log_std = jnp.zeros(spec.action_size)

    def __call__(self, obs: Array) -> Normal:
        return Normal(jnp.tanh(self.net(obs)), jnp.clip(self.log_std, -5.0, 2.0))


class SquashedHead(eqx.Module):
    """A Gaussian whose mean and log standard deviation both come out of a tanh: in [-1, 1] and in [-5, 0]."""

    net: ObsNet

    def __init__(self, spec: Spec, hidden: Sequence[int], key: PRNGKeyArray):
        spec.require("bounded", "a Gaussian actor with a squashed mean")
        self.net = ObsNet(spec, hidden, 2 * spec.action_size, key, final_gain=0.01)

    def __call__(self, obs: Array) -> Normal:
        mean, spread = jnp.split(jnp.tanh(self.net(obs)), 2)
        return Normal(mean, 2.5 * (spread + 1) - 5)


class DuelingCritic(eqx.Module):
    """`Q(s, a) = V(s) + A(s, a) - mean_a' A(s, a')` (Wang et al. 2016, eq. 9).

    A trunk of dense layers, each normalised (`LayerNorm`) before a leaky ReLU, and one narrower layer
    for either part.
    """

    encoder: Encoder
    trunk: tuple[tuple[Linear, eqx.nn.LayerNorm], ...]
    value: MLP
    advantage: MLP

    def __init__(self, spec: Spec, hidden: Sequence[int], key: PRNGKeyArray):
        spec.require("discrete", "a critic over discrete actions")
        require(all(width >= 1 for width in hidden), f"widths of hidden layers must be 1 or more, but are {hidden}.")
        e_key, v_key, a_key, t_key = jax.random.split(key, 4)
        self.encoder = make_encoder(spec, e_key)
        sizes = [self.encoder.size, *hidden]
        keys = jax.random.split(t_key, len(hidden) + 1)
        self.trunk = tuple(
            (layer, eqx.nn.LayerNorm(o))
            for layer, o in zip(dense(list(pairwise(sizes)), keys[1:]), hidden, strict=True)
        )
        half = max(sizes[-1] // 2, 1)
        self.value = MLP(sizes[-1], (half,), 1, v_key, "leaky_relu")
        self.advantage = MLP(sizes[-1], (half,), spec.num_actions, a_key, "leaky_relu")

    def __call__(self, obs: Array) -> Float[Array, "n"]:
        x = self.encoder(obs)
        for layer, norm in self.trunk:
            x = jax.nn.leaky_relu(norm(layer(x)))
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean()
