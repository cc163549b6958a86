"""Stretches of episodes as sequences of three tokens a step, and the memory of a policy that reads them."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.errors import ConfigError
from habitus.core.experience import Trajectory
from habitus.core.spec import Spec
from habitus.nets.distributions import Categorical, Distribution, MultiCategorical
from habitus.nets.encoder import ActionEncoder, Encoder, make_encoder
from habitus.nets.mlp import MLP, Linear, dense
from habitus.nets.transformer import Transformer

NUMBER, OBS, ACTION = 0, 1, 2  # the tokens of a step, in order


class Steps(eqx.Module):
    """What a sequence model sees of successive steps; leading axis [time] on every field.

    Attributes:
        number: one figure a step, such as the return to go, scaled to about 1.
        obs, action: in canonical form.
        time: the place of the step in its episode.
        valid: False where the row is padding.
    """

    number: Float[Array, "*time"]
    obs: Array
    action: Array
    time: Int[Array, "*time"]
    valid: Bool[Array, "*time"]

    @classmethod
    def of(cls, windows: Trajectory, number: Float[Array, "*batch time"]) -> Steps:
        """The steps of windows, with a figure for each."""
        return cls(number, windows.steps.obs, windows.steps.action, windows.time, windows.valid)

    @classmethod
    def blank(cls, spec: Spec, length: int) -> Steps:
        """A memory of `length` steps, none of them taken yet."""
        obs = jnp.zeros((length, *spec.obs_shape), spec.obs_dtype)
        action = jnp.zeros((length, *spec.action_shape), spec.action_dtype)
        return cls(jnp.zeros(length), obs, action, jnp.zeros(length, jnp.int32), jnp.zeros(length, bool))

    def then(self, number: Float[Array, ""], obs: Array) -> Steps:
        """The memory once a step begins whose action is not known yet; it forgets the oldest."""
        time = jnp.where(self.valid[-1], self.time[-1] + 1, 0)
        new = Steps(number, obs, jnp.zeros_like(self.action[0]), time, jnp.array(True))
        return jax.tree.map(lambda old, x: jnp.concatenate([old[1:], x[None].astype(old.dtype)]), self, new)

    def in_front(self) -> Steps:
        """The same with the steps that were taken first, and the padding after them."""
        missing = (~self.valid).sum()
        return jax.tree.map(lambda x: jnp.roll(x, -missing, 0), self)

    def acted(self, action: Array) -> Steps:
        """The memory once the action of the last step is known."""
        return eqx.tree_at(lambda s: s.action, self, self.action.at[-1].set(action))


class SequenceEncoder(eqx.Module):
    """A causal transformer over `(number, obs, action)` of each step, with a learned code of the time added."""

    encoder: Encoder
    actions: ActionEncoder
    embed: tuple[Linear, Linear, Linear]
    clock: Float[Array, "times width"]
    norm: eqx.nn.LayerNorm
    trunk: Transformer

    def __init__(self, spec: Spec, width: int, layers: int, heads: int, key: PRNGKeyArray):
        """Args:
        spec: with the log, whose longest episode says how many times need a code.
        """
        longest = max(spec.horizon or 1, int(spec.dataset.lengths.max()) if spec.dataset is not None else 1)
        e_key, c_key, t_key, *keys = jax.random.split(key, 6)
        self.encoder, self.actions = make_encoder(spec, e_key), ActionEncoder.of(spec)
        sizes = 1, self.encoder.size, self.actions.size
        self.embed = dense([(n, width) for n in sizes], jnp.stack(keys))  # type: ignore[assignment]
        self.clock = 0.02 * jax.random.normal(c_key, (longest, width))
        self.norm, self.trunk = eqx.nn.LayerNorm(width), Transformer(width, layers, heads, t_key)

    def __call__(
        self, steps: Steps, key: PRNGKeyArray | None = None, rate: float | Array = 0.0
    ) -> Float[Array, "time 3 width"]:
        """What is known after each token of each step. Args: as of `Transformer`."""
        features = steps.number[:, None], jax.vmap(self.encoder)(steps.obs), jax.vmap(self.actions)(steps.action)
        tokens = jnp.stack([jax.vmap(net)(x) for net, x in zip(self.embed, features, strict=True)], 1)
        tokens = tokens + self.clock[jnp.minimum(steps.time, len(self.clock) - 1)][:, None]
        flat = jax.vmap(self.norm)(tokens.reshape(-1, tokens.shape[-1]))
        return self.trunk(flat, jnp.repeat(steps.valid, 3), key, rate).reshape(tokens.shape)


class ActionHead(eqx.Module):
    """Features to an action: squashed real ones, or a distribution over discrete ones."""

    mlp: MLP
    real: bool = eqx.field(static=True)
    sizes: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, spec: Spec, inputs: int, hidden: tuple[int, ...], key: PRNGKeyArray):
        if spec.continuous:
            spec.require("bounded", "a sequence policy")
        self.mlp, self.real = MLP(inputs, hidden, spec.action_size, key), spec.continuous
        self.sizes = tuple(int(n) for n in spec.action_space.nvec.ravel()) if spec.multi_discrete else ()  # type: ignore[attr-defined]

    def distribution(self, features: Float[Array, "inputs"]) -> Distribution:
        """Over discrete actions."""
        logits = self.mlp(features)
        return MultiCategorical(logits, self.sizes) if self.sizes else Categorical(logits)

    def error(self, features: Float[Array, "inputs"], action: Array) -> Float[Array, ""]:
        """`mean (a' - a)^2` of real actions, `-log pi(a)` of discrete ones."""
        if self.real:
            return jnp.mean((jnp.tanh(self.mlp(features)) - action) ** 2)
        return -self.distribution(features).log_prob(action)

    def act(self, features: Float[Array, "inputs"], key: PRNGKeyArray) -> Array:
        """The action; a discrete one is sampled."""
        return jnp.tanh(self.mlp(features)) if self.real else self.distribution(features).sample(key)


def masked_mean(x: Float[Array, "*shape"], valid: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Mean over the valid entries."""
    return jnp.where(valid, x, 0.0).sum() / jnp.maximum(valid.sum(), 1)


def return_target(log: Any, target: float | None, by: str) -> float:
    """The return to aim at: `target`, or the best of the log.

    Args:
        log: a `Dataset`, or None.
        by: the name of the learner, for messages.

    Raises:
        ConfigError: without a log, or without an episode recorded to its end; or for a target further outside the
            log's returns than these are apart.
    """
    if log is None:
        raise ConfigError(f"{by} aims at returns that a log shows to be possible, so it needs one: give data=...")
    returns = log.returns[log.complete]
    if len(returns) == 0:
        raise ConfigError(f"{by} learns from returns, but no episode of {log.name} was recorded to its end.")
    low, high = float(returns.min()), float(returns.max())
    if target is None:
        return high
    slack = max(high - low, abs(high), abs(low))
    if not low - slack <= target <= high + slack:
        raise ConfigError(
            f"target is {target:g}, but the returns of {log.name} lie between {low:g} and {high:g}; give one on their "
            "scale (undiscounted, in the rewards of the log)."
        )
    return float(target)
