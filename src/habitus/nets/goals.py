"""Observations with goals in them, as the rows that networks of sequences read."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from habitus.core.errors import SpaceMismatch
from habitus.core.spec import Spec
from habitus.nets.normalise import Standardiser


class GoalRows(eqx.Module):
    """Canonical observations as rows of states and rows of goals, which have the same columns.

    A state is the observation without the desired goal, standardised, with the achieved goal last. A goal has what is
    desired in these last columns, on the same scale, and 0 elsewhere. So one layer can read both, and a goal of zeros
    says nothing. Without `Spec.goals` there are no rows of goals.

    Attributes:
        scale: of a state's columns.
        columns: which of the observation's columns make up a state.
        achieved: how many of them, the last, are the achieved goal.
        desired: where the desired goal begins and ends in an observation.
    """

    scale: Standardiser
    columns: tuple[int, ...] = eqx.field(static=True)
    achieved: int = eqx.field(static=True)
    desired: tuple[int, int] = eqx.field(static=True)

    @classmethod
    def of(cls, spec: Spec, eps: float = 1e-3) -> GoalRows:
        """For a spec with a log, from which the scale is.

        Raises:
            SpaceMismatch: if observations are integers or images.
        """
        if spec.tabular or spec.image:
            raise SpaceMismatch(f"observations must be vectors to hold states and goals, not {spec.observation_space}.")
        found = spec.goals
        achieved, desired = (slice(0, 0), slice(0, 0)) if found is None else found
        every = np.arange(spec.obs_size)
        rest = np.setdiff1d(every, np.concatenate([every[achieved], every[desired]]))
        columns = np.concatenate([rest, every[achieved]])
        whole = Standardiser.of(spec, eps)
        scale = Standardiser(whole.mean[columns], whole.std[columns])
        return cls(scale, tuple(columns.tolist()), achieved.stop - achieved.start, (desired.start, desired.stop))

    @property
    def width(self) -> int:
        """Columns of a row."""
        return len(self.columns)

    @property
    def goals(self) -> int:
        """Rows of goals."""
        return (self.desired[1] - self.desired[0]) // max(self.achieved, 1)

    def states(self, obs: Float[Array, "*rows obs"]) -> Float[Array, "*rows width"]:
        """Observations as states."""
        return self.scale(obs[..., np.asarray(self.columns)])

    def goal(self, obs: Float[Array, "*rows obs"]) -> Float[Array, "*rows goals width"]:
        """The goals that observations hold."""
        desired = obs[..., slice(*self.desired)].reshape(*obs.shape[:-1], self.goals, self.achieved)
        rows = jnp.zeros((*desired.shape[:-1], self.width))
        start = self.width - self.achieved
        scaled = (desired - self.scale.mean[start:]) / self.scale.std[start:]
        return rows.at[..., start:].set(scaled)
