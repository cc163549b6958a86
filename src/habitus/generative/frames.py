"""Chunks of absolute targets, told relative to the pose in which they were planned."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from habitus.core.domains import require
from habitus.core.spec import Spec
from habitus.nets.normalise import Standardiser


class Frame(eqx.Module):
    """Where a hand is, in the units of its canonical actions, as read off standardised observations.

    The first entries of an action are targets for a pose that an observation holds: `relative` subtracts the pose of a
    base observation from them and `absolute` adds it again. Of no entries it changes nothing. Translations only: an
    entry that is an angle is subtracted as it is.

    Attributes:
        scale, offset: `pose = offset + scale * obs[entries]`; None of no entries, as checkpoints hold no empty arrays.
        entries: where the pose stands in an observation, in the order of the actions.
    """

    scale: Float[Array, "pose"] | None
    offset: Float[Array, "pose"] | None
    entries: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def of(cls, spec: Spec, normaliser: Standardiser, entries: tuple[int, ...]) -> Frame:
        """For the actions of `spec` and observations as `normaliser` shows them.

        Raises:
            ConfigError: if there are fewer actions than entries, or an observation lacks one of them.
        """
        k, size = len(entries), spec.action_size
        require(k <= size, f"frame is a pose of {k} numbers, but an action has {size}.")
        check_entries("frame", entries, spec)
        if k == 0:
            return cls(None, None, ())
        zero, one = (spec.encode_action(jnp.full(spec.action_space.shape, x))[:k] for x in (0.0, 1.0))
        mean, std = (
            jnp.broadcast_to(x, (spec.obs_size,))[jnp.asarray(entries)] for x in (normaliser.mean, normaliser.std)
        )
        return cls((one - zero) * std, zero + (one - zero) * mean, entries)

    def pose(self, obs: Float[Array, "*several obs"]) -> Float[Array, "*several pose"]:
        """The pose as a canonical action; 0 of no entries."""
        if self.scale is None or self.offset is None:
            return jnp.zeros((*obs.shape[:-1], 0))
        return self.offset + self.scale * obs[..., jnp.asarray(self.entries)]

    def relative(
        self, actions: Float[Array, "*rows actions"], base: Float[Array, "obs"]
    ) -> Float[Array, "*rows actions"]:
        """Targets as seen from the pose of `base`."""
        return actions.at[..., : len(self.entries)].add(-self.pose(base))

    def absolute(
        self, actions: Float[Array, "*rows actions"], base: Float[Array, "obs"]
    ) -> Float[Array, "*rows actions"]:
        """The inverse of `relative`."""
        return actions.at[..., : len(self.entries)].add(self.pose(base))

    def window(self, window: Float[Array, "observed obs"]) -> Float[Array, "observed obs"]:
        """Observations with their poses as seen from that of the newest."""
        at = jnp.asarray(self.entries, jnp.int32)
        return window.at[:, at].add(-window[-1, at])


def check_entries(name: str, entries: tuple[int, ...], spec: Spec) -> None:
    """Raises `ConfigError` unless an observation has these entries, once each; they may count from its end."""
    fits = len({i % spec.obs_size for i in entries}) == len(entries)
    require(
        fits and all(-spec.obs_size <= i < spec.obs_size for i in entries),
        f"{name} names the entries {entries}, but an observation has {spec.obs_size} numbers.",
    )
