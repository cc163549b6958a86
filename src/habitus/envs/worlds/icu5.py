"""Treating shock in intensive care, in six standardised numbers: doses help, and too much of them harms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.experience import Action, Step
from habitus.core.protocols import Env
from habitus.envs.actions import fit_action

FEATURES = ("MAP", "SpO2", "urine", "lactate", "severity", "overload")
_MEAN = np.array([-0.5, 0.0, 0.0, 0.5, 1.0], np.float32)
_SPREAD = 0.5


class ICU5(Env):
    """A stay in intensive care with known dynamics and two costs, for methods that must be safe.

    State and observation: blood pressure (MAP), oxygen saturation (SpO2), urine, lactate and severity,
    scaled to about N(0, 1), and the fluid overload. Action: doses of fluid and of vasopressor in [0, 1] for the next
    four hours. Both raise the pressure, which clears lactate and so lowers severity; fluid that piles
    up lowers the saturation, and a strong vasopressor the urine.

    Pays `-severity - .2 |MAP|` of the state acted in. Costs 1 for each of SpO2 and urine that falls below -1.
    """

    noise: float = 0.05
    """standard deviation of the pressure's noise"""

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (len(FEATURES),))

    @property
    def action_space(self) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (2,))

    @property
    def costs(self) -> tuple[str, ...]:
        return ("SpO2", "urine")

    def reset(self, key: PRNGKeyArray) -> tuple[Float[Array, "6"], Float[Array, "6"]]:
        patient = _MEAN + _SPREAD * jax.random.normal(key, _MEAN.shape)
        state = jnp.append(patient, 0.0)
        return state, state

    def step(self, state: Float[Array, "6"], action: Action, key: PRNGKeyArray) -> tuple[Float[Array, "6"], Step]:
        pressure, oxygen, urine, lactate, severity, overload = state
        fluid, vasopressor = jnp.clip(fit_action(self.action_space, action), 0.0, 1.0)
        overload = 0.9 * overload + fluid
        after = jnp.stack([
            pressure + 0.15 * (-severity - pressure) + 0.6 * vasopressor + 0.3 * fluid
            + self.noise * jax.random.normal(key),
            oxygen + 0.2 * (-0.3 * severity - oxygen) - 0.5 * jnp.maximum(overload - 1, 0),
            urine + 0.2 * (pressure - urine) - 0.5 * jnp.maximum(vasopressor - 0.7, 0),
            lactate + 0.3 * (-pressure - lactate),
            0.95 * severity + 0.1 * jnp.maximum(lactate, 0) - 0.05,
            overload,
        ])  # fmt: skip
        cost = (after[1:3] < -1).astype(jnp.float32)
        no = jnp.array(False)
        return after, Step(after, -severity - 0.2 * jnp.abs(pressure), no, no, {"cost": cost})
