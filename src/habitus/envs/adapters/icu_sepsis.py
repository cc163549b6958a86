"""Treating sepsis in intensive care: the ICU-Sepsis benchmark's tables, as a world that compiles.

716 states, clustered from the records of MIMIC-III, and 25 actions, five levels each of fluids and
vasopressors. The tables are read from the files of the package `icu-sepsis`, which is never imported:
it would import the long retired `gym`.

K. Choudhary, D. Gupta and P. S. Thomas, "ICU-Sepsis: A Benchmark MDP Built from Real Medical Data",
Reinforcement Learning Conference 2024.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.errors import DataError, MissingExtra
from habitus.core.experience import Action, Step
from habitus.core.protocols import Env, require
from habitus.envs.actions import fit_action
from habitus.envs.tabular import Tabular

LIMIT = 500  # steps; the benchmark's
DEATH, SURVIVAL, NOWHERE = 713, 714, 715
_STATES, _ACTIONS = 716, 25


@dataclasses.dataclass(frozen=True, eq=False)
class SepsisTables:
    """What the benchmark knows.

    Attributes:
        model: dynamics and rewards. An action that is not admissible acts like the mean of those that are.
        admissible: the actions that clinicians took often enough in a state, [states, actions].
        expert: what clinicians did, as probabilities, rare actions included, [states, actions].
        sofa: organ failure score of each state, [states].
        centres: the 47 measurements of each state, standardised over the states of patients in
            treatment; 0 in the other three, [states, 47].
    """

    model: Tabular
    admissible: Bool[np.ndarray, "states actions"]
    expert: Float[np.ndarray, "states actions"]
    sofa: Float[np.ndarray, "states"]
    centres: Float[np.ndarray, "states features"]


@cache
def sepsis_tables() -> SepsisTables:
    """Reads the tables, once.

    Raises:
        MissingExtra: if the package is not installed.
        DataError: if its files are not those of version 2.0.
    """
    spec = find_spec("icu_sepsis")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("icu-sepsis", "sepsis")
    folder = Path(spec.submodule_search_locations[0], "envs", "assets")
    try:
        with np.load(folder / "dynamics.npz", allow_pickle=False) as data:
            found = {name: np.asarray(data[name], np.float64) for name in data.files}
        rows = (folder / "admissible_actions.txt").read_text(encoding="utf-8").splitlines()[1:]
        return _tables(found, [[int(action) for action in row.split()] for row in rows[:_STATES]])
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise DataError(f"{folder} does not hold the tables of icu-sepsis 2.0 ({error}); reinstall it.") from error


def _tables(found: dict[str, np.ndarray], rows: list[list[int]]) -> SepsisTables:
    transition, admissible = found["tx_mat"], np.zeros((_STATES, _ACTIONS), bool)
    for state, row in enumerate(rows):
        admissible[state, row] = True
    terminal = np.arange(_STATES) >= DEATH
    centres = found["state_cluster_centers"]
    treated = centres[~terminal]
    scaled = (centres - treated.mean(0)) / np.maximum(treated.std(0), 1e-6)
    return SepsisTables(
        model=Tabular(transition, (transition * found["r_mat"]).sum(-1), found["d_0"], terminal),
        admissible=admissible,
        expert=found["expert_policy"],
        sofa=found["sofa_scores"],
        centres=np.where(terminal[:, None], 0.0, scaled),
    )


class ICUSepsis(Env):
    """One stay in intensive care. Pays 1 for survival, on the step that ends in it, and 0 otherwise.

    Observation: the state's number; or, with `observe="measurements"`, the 47 standardised
    measurements of its cluster with Gaussian noise, fresh at every step. Action: 5 · fluids + vasopressor.
    State: the number.
    """

    observe: Literal["state", "measurements"] = eqx.field(static=True)
    noise: float
    cumulative: Float[Array, "states actions states"]  # of P(s' | s, a); 51 MB, too many for a constant of programs

    def __init__(self, observe: Literal["state", "measurements"] = "state", noise: float = 0.1):
        """Args:
            observe: what is shown.
            noise: standard deviation of the measurements' noise, in those of the clusters.

        Raises:
            MissingExtra, DataError: as `sepsis_tables`.
            ConfigError: if an argument is out of its domain.
        """
        known = observe in ("state", "measurements")
        require(known, f"observe must be 'state' or 'measurements', but is {observe!r}.")
        require(noise >= 0, f"noise must be 0 or more, but is {noise}.")
        self.observe, self.noise, self.cumulative = observe, noise, _cumulative()

    @property
    def observation_space(self) -> spaces.Space:
        if self.observe == "state":
            return spaces.Discrete(_STATES)
        return spaces.Box(-np.inf, np.inf, (sepsis_tables().centres.shape[1],))

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(_ACTIONS)

    def reset(self, key: PRNGKeyArray) -> tuple[Int[Array, ""], Array]:
        start_key, noise_key = jax.random.split(key)
        first = jnp.log(jnp.asarray(sepsis_tables().model.start, jnp.float32))
        state = jax.random.categorical(start_key, first).astype(jnp.int32)
        return state, self._show(state, noise_key)

    def step(self, state: Int[Array, ""], action: Action, key: PRNGKeyArray) -> tuple[Int[Array, ""], Step]:
        move_key, noise_key = jax.random.split(key)
        action = fit_action(self.action_space, action)
        # by the cumulative distribution: one random number a step, where a categorical draw takes 716
        below = self.cumulative[state, action] <= jax.random.uniform(move_key)
        after = jnp.minimum(below.sum(), NOWHERE).astype(jnp.int32)
        lives = (after == SURVIVAL) & (state < DEATH)
        step = Step(self._show(after, noise_key), lives.astype(jnp.float32), after >= DEATH, jnp.array(False))
        return after, eqx.tree_at(lambda s: s.info, step, {"success": lives})

    def _show(self, state: Int[Array, ""], key: PRNGKeyArray) -> Array:
        if self.observe == "state":
            return state
        centre = jnp.asarray(sepsis_tables().centres, jnp.float32)[state]
        return centre + self.noise * jax.random.normal(key, centre.shape)


@cache
def _cumulative() -> Float[Array, "states actions states"]:
    """Exactly 1 from the last state that can follow on, so that none that cannot is drawn."""
    total = np.cumsum(sepsis_tables().model.transition, -1)
    return jnp.asarray(np.where(total > 1 - 1e-9, 1.0, total), jnp.float32)
