"""Action distributions for one observation: `sample`, `log_prob`, `entropy`, `mode`, closed-form KLs."""

from __future__ import annotations

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int, PRNGKeyArray

LOG_2PI = 1.8378770664093453
LOG_2 = 0.6931471805599453


class Distribution(eqx.Module):
    """A distribution over one action."""

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray) -> Array:
        """One draw; differentiable in the parameters where the action is real."""

    @abc.abstractmethod
    def log_prob(self, action: Array) -> Float[Array, ""]:
        """Log density, or log probability, of an action."""

    @abc.abstractmethod
    def mode(self) -> Array:
        """The most likely action (for `TanhNormal`, the squashed mean)."""

    @abc.abstractmethod
    def entropy(self) -> Float[Array, ""]:
        """Entropy in nats; raises `TypeError` where no closed form exists."""


class Normal(Distribution):
    """Independent Gaussians, one for each dimension; with leading axes, several of them side by side."""

    mean: Float[Array, "*several actions"]
    log_std: Float[Array, "*several actions"]

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*several actions"]:
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def log_prob_each(self, action: Float[Array, "actions"]) -> Float[Array, "actions"]:
        """Log density of each dimension."""
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return -(0.5 * z**2 + self.log_std + 0.5 * LOG_2PI)

    def log_prob(self, action: Float[Array, "actions"]) -> Float[Array, ""]:
        return self.log_prob_each(action).sum()

    def mode(self) -> Float[Array, "actions"]:
        return self.mean

    def entropy(self) -> Float[Array, ""]:
        return (self.log_std + 0.5 * (LOG_2PI + 1)).sum()

    def kl(self, other: Normal) -> Float[Array, ""]:
        """KL(self || other), summed over dimensions."""
        ratio = jnp.exp(2 * (self.log_std - other.log_std))
        shift = ((self.mean - other.mean) * jnp.exp(-other.log_std)) ** 2
        return (other.log_std - self.log_std + 0.5 * (ratio + shift - 1)).sum()


class TanhNormal(Distribution):
    """`tanh(u)` with `u` from independent Gaussians: actions in (-1, 1).

    Losses keep the pre-squash value `u` instead of inverting tanh, which is NaN at the bounds.
    """

    base: Normal

    def sample_pre(self, key: PRNGKeyArray) -> Float[Array, "actions"]:
        """One draw of `u`, before squashing."""
        return self.base.sample(key)

    def log_prob_pre_each(self, pre: Float[Array, "actions"]) -> Float[Array, "actions"]:
        """Log density of each dimension of the action `tanh(pre)`."""
        # log(1 - tanh(u)^2), in the form that neither overflows nor cancels
        return self.base.log_prob_each(pre) - 2 * (LOG_2 - pre - jax.nn.softplus(-2 * pre))

    def log_prob_pre(self, pre: Float[Array, "actions"]) -> Float[Array, ""]:
        """Log density of the action `tanh(pre)`."""
        return self.log_prob_pre_each(pre).sum()

    def sample(self, key: PRNGKeyArray) -> Float[Array, "actions"]:
        return jnp.tanh(self.sample_pre(key))

    def sample_and_log_prob(self, key: PRNGKeyArray) -> tuple[Float[Array, "actions"], Float[Array, ""]]:
        """One draw and its log density."""
        pre = self.sample_pre(key)
        return jnp.tanh(pre), self.log_prob_pre(pre)

    def log_prob(self, action: Float[Array, "actions"]) -> Float[Array, ""]:
        return self.log_prob_pre(jnp.arctanh(jnp.clip(action, -1 + 1e-6, 1 - 1e-6)))

    def mode(self) -> Float[Array, "actions"]:
        return jnp.tanh(self.base.mean)

    def entropy(self) -> Float[Array, ""]:
        raise TypeError("a squashed Gaussian has no closed-form entropy; average -log_prob over samples.")

    def kl(self, other: TanhNormal) -> Float[Array, ""]:
        """KL(self || other): squashing is a bijection, so that of the Gaussians before it."""
        return self.base.kl(other.base)


class Categorical(Distribution):
    """One of n actions, from unnormalised logits."""

    logits: Float[Array, "n"]

    @property
    def log_probs(self) -> Float[Array, "n"]:
        """Normalised log probabilities."""
        return jax.nn.log_softmax(self.logits)

    @property
    def probs(self) -> Float[Array, "n"]:
        """Probabilities."""
        return jax.nn.softmax(self.logits)

    def sample(self, key: PRNGKeyArray) -> Int[Array, ""]:
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def log_prob(self, action: Int[Array, ""]) -> Float[Array, ""]:
        # a masked sum, as a gather has a scatter for its gradient, which is slow on a CPU
        return jnp.sum(jnp.where(jnp.arange(self.logits.shape[0]) == action, self.log_probs, 0.0))

    def mode(self) -> Int[Array, ""]:
        return jnp.argmax(self.logits).astype(jnp.int32)

    def entropy(self) -> Float[Array, ""]:
        return -(self.probs * self.log_probs).sum()

    def kl(self, other: Categorical) -> Float[Array, ""]:
        """KL(self || other)."""
        return (self.probs * (self.log_probs - other.log_probs)).sum()


class MultiCategorical(Distribution):
    """Independent categoricals, their logits side by side."""

    logits: Float[Array, "total"]
    sizes: tuple[int, ...] = eqx.field(static=True)

    @property
    def parts(self) -> list[Categorical]:
        """One distribution for each dimension."""
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes))]
        return [Categorical(self.logits[end - n : end]) for n, end in zip(self.sizes, ends, strict=True)]

    def sample(self, key: PRNGKeyArray) -> Int[Array, "dims"]:
        keys = jax.random.split(key, len(self.sizes))
        return jnp.stack([part.sample(k) for part, k in zip(self.parts, keys, strict=True)])

    def log_prob(self, action: Int[Array, "dims"]) -> Float[Array, ""]:
        return sum((part.log_prob(a) for part, a in zip(self.parts, action, strict=True)), jnp.zeros(()))

    def mode(self) -> Int[Array, "dims"]:
        return jnp.stack([part.mode() for part in self.parts])

    def entropy(self) -> Float[Array, ""]:
        return sum((part.entropy() for part in self.parts), jnp.zeros(()))

    def kl(self, other: MultiCategorical) -> Float[Array, ""]:
        """KL(self || other)."""
        return sum((p.kl(q) for p, q in zip(self.parts, other.parts, strict=True)), jnp.zeros(()))


class Mixture(Distribution):
    """A mixture of Gaussians with diagonal covariances."""

    logits: Float[Array, "components"]
    components: Normal  # with a leading axis [components]

    def sample(self, key: PRNGKeyArray) -> Float[Array, "actions"]:
        which, inner = jax.random.split(key)
        index = jax.random.categorical(which, self.logits)
        return jax.tree.map(lambda x: x[index], self.components).sample(inner)

    def log_prob(self, action: Float[Array, "actions"]) -> Float[Array, ""]:
        inner = jax.vmap(lambda part: part.log_prob(action))(self.components)
        return logsumexp(jax.nn.log_softmax(self.logits) + inner)

    def mode(self) -> Float[Array, "actions"]:
        """The component mean of highest mixture density: exact when components do not overlap."""
        density = jax.vmap(self.log_prob)(self.components.mean)
        return self.components.mean[jnp.argmax(density)]

    def entropy(self) -> Float[Array, ""]:
        raise TypeError("a mixture has no closed-form entropy; average -log_prob over samples.")
