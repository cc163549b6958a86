"""Chunks of actions: which steps of a log's windows are seen, predicted and executed.

C. Chi et al., "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion", RSS 2023, section 2.3.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from habitus.core.domains import require
from habitus.core.experience import Trajectory
from habitus.core.trees import take


class Chunking(eqx.Module):
    """How far back a policy sees, how far it predicts, and how much of that it executes.

    At step s it sees the observations of steps `s - To + 1 .. s` and predicts the actions of
    `s - To + 1 .. s - To + Tp`, those of the past included; it executes the `Ta` from step s on, and then plans anew.
    Steps outside the episode stand for its nearest one.

    Attributes:
        predicted: `Tp`.
        observed: `To`.
        executed: `Ta`.

    Raises:
        ConfigError: if a number is below 1, or `Tp` below `To - 1 + Ta`.
    """

    predicted: int = eqx.field(static=True)
    observed: int = eqx.field(static=True, default=2)
    executed: int = eqx.field(static=True, default=8)

    def __check_init__(self) -> None:
        for name in ("predicted", "observed", "executed"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more, but is {getattr(self, name)}.")
        least = self.before + self.executed
        require(
            self.predicted >= least,
            f"{self.predicted} predicted steps do not hold {self.before} of the past and the {self.executed} that are "
            f"executed; predict {least} or more.",
        )

    @property
    def before(self) -> int:
        """Steps of a window that lie before the row it belongs to: of `Dataset.windows(Tp, rows, before)`."""
        return self.observed - 1

    @property
    def now(self) -> slice:
        """Which of the predicted actions are executed."""
        return slice(self.before, self.before + self.executed)

    def seen(self, windows: Trajectory) -> Any:
        """The observations [*batch, To, ...] of windows [*batch, Tp]."""
        return self._first(windows, windows.steps.obs, self.observed)

    def actions(self, windows: Trajectory) -> Float[Array, "*batch predicted actions"]:
        """The actions of windows [*batch, Tp], what is to be predicted."""
        return self._first(windows, windows.steps.action, self.predicted)

    @staticmethod
    def _first(windows: Trajectory, column: Any, steps: int) -> Any:
        """The first rows in time; windows may be longer, and may have any axes before that of time."""
        axes = (slice(None),) * (windows.valid.ndim - 1)
        return take(column, (*axes, slice(steps)))
