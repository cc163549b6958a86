"""Wipe an uneven board whose height is seen only roughly and changes without warning: force must lead the hand.

After H. Xue et al., "Reactive Diffusion Policy: Slow-Fast Visual-Tactile Policy Learning for Contact-Rich
Manipulation", RSS 2025, whose robot wipes a vase.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from habitus.core.experience import Action, Step
from habitus.core.protocols import Env, require
from habitus.envs.actions import fit_action

EDGE = 0.4  # the board reaches from -EDGE to EDGE
CELLS = 80
TOOL = 0.0075  # half the width of the tool
SPEED, SERVO = 0.02, 0.8  # greatest move that is asked for in a step, and the share of it that is made
STIFFNESS, DRAG = 50.0, 0.3
LOW, HIGH = 0.3, 1.0  # the forces that wipe
PERIOD = 40  # steps of the slow drift
AHEAD = (-0.1, 0.2)  # where the picture begins and ends, from the tool on
PIXELS = 16
FORCE = 2 + PIXELS  # where the force stands in an observation


class WipeState(eqx.Module):
    """The tool and the board.

    Attributes:
        position: of the tool, along and above the board.
        force: of the board on it.
        wave: amplitude, wave number and phase of the board's height.
        offset: by which the whole board has jumped.
        phase: of its drift.
        touched: whether the tool has been on it.
        wiped: which cells are.
        time: steps so far.
    """

    position: Float[Array, "2"]
    force: Float[Array, ""]
    wave: Float[Array, "3"]
    offset: Float[Array, ""]
    phase: Float[Array, ""]
    touched: Bool[Array, ""]
    wiped: Bool[Array, "80"]
    time: Int[Array, ""]


class PlanarWipe(Env):
    """A tool (x, z) is pressed on a board of height `A sin(k x + phi) + b(t)` and drawn across it.

    Action `(x, z)` in [-1, 1]^2: the tool makes four fifths of the move `0.02 (x, z)`; along the board that is divided
    by `1 + 0.3 f`. The force is `f = 50 max(0, height - z)`. A cell of the 80 is wiped while the tool is on it and f is
    in [0.3, 1]; each pays 1/80, so that a return is the share that was wiped. The episode ends at the far edge;
    `info["success"]` says whether nine tenths are wiped. Once it was touched the board jumps by `jump` up or down, or
    back, with probability `chance` a step, and all the time it drifts as a sine of 40 steps.

    Observation, 19 numbers: position (2); a picture (16), which is the height of the board above the tool at evenly
    spaced places from 0.1 behind to 0.2 ahead of it, each with noise; and the force, with noise of 1 %. With `told` one
    more: the slope of the board under the tool, for an expert that knows more than a learner.
    """

    jump: float = 0.04
    """height of a jump"""
    chance: float = 1 / 30
    """probability of a jump in a step"""
    drift: float = 0.02
    """amplitude of the drift"""
    noise: float = 0.01
    """standard deviation of the noise on each height of the picture"""
    told: bool = eqx.field(static=True, default=False)
    limit: int = eqx.field(static=True, default=120)
    """steps of an episode in `make`"""

    def __check_init__(self) -> None:
        for name in ("jump", "drift", "noise"):
            require(getattr(self, name) >= 0, f"{name} must be 0 or more, but is {getattr(self, name)}.")
        require((0 <= self.chance) & (self.chance <= 1), f"chance must be in [0, 1], but is {self.chance}.")
        require(self.limit >= 1, f"limit must be 1 or more, but is {self.limit}.")

    @property
    def observation_space(self) -> spaces.Box:
        high = np.array([0.5, 0.3] + [1.0] * PIXELS + [100.0] + [1.0] * self.told, np.float32)
        low = -high
        low[FORCE] = 0.0
        return spaces.Box(low, high)

    @property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (2,))

    def reset(self, key: PRNGKeyArray) -> tuple[WipeState, Float[Array, "obs"]]:
        draw = jax.random.uniform(key, (6,))
        low = jnp.array([-EDGE - 0.02, 0.14, 0.0, 5.0, 0.0, 0.0])
        high = jnp.array([-EDGE, 0.18, 0.04, 15.0, 2 * jnp.pi, 2 * jnp.pi])
        x, z, *wave, phase = low + (high - low) * draw
        zero, no = jnp.zeros(()), jnp.zeros((), bool)
        time = jnp.zeros((), jnp.int32)
        state = WipeState(jnp.stack([x, z]), zero, jnp.stack(wave), zero, phase, no, jnp.zeros(CELLS, bool), time)
        return state, self.observe(state, jax.random.fold_in(key, 1))

    def height(self, state: WipeState, x: Float[Array, "*places"]) -> Float[Array, "*places"]:
        """Of the board now, at places along it."""
        amplitude, number, phase = state.wave
        return amplitude * jnp.sin(number * x + phase) + state.offset + drift_of(self.drift, state.time, state.phase)

    def observe(self, state: WipeState, key: PRNGKeyArray) -> Float[Array, "obs"]:
        """What a state looks like."""
        noise = jax.random.normal(key, (PIXELS + 1,))
        places = state.position[0] + jnp.linspace(*AHEAD, PIXELS)
        picture = self.height(state, places) - state.position[1] + self.noise * noise[:PIXELS]
        force = jnp.maximum(state.force * (1 + 0.01 * noise[PIXELS]), 0.0)
        told = []
        if self.told:
            amplitude, number, phase = state.wave
            told = [(amplitude * number * jnp.cos(number * state.position[0] + phase))[None]]
        return jnp.concatenate([state.position, jnp.clip(picture, -1.0, 1.0), force[None], *told])

    def step(self, state: WipeState, action: Action, key: PRNGKeyArray) -> tuple[WipeState, Step]:
        jump_key, sign_key, obs_key = jax.random.split(key, 3)
        action = jnp.clip(fit_action(self.action_space, action), -1.0, 1.0)
        move = SERVO * SPEED * action / jnp.stack([1 + DRAG * state.force, jnp.ones(())])
        position = jnp.clip(state.position + move, jnp.array([-0.5, -0.3]), jnp.array([0.5, 0.3]))

        jumps = state.touched & jax.random.bernoulli(jump_key, self.chance)
        elsewhere = jnp.where(state.offset == 0, self.jump * jax.random.rademacher(sign_key, dtype=jnp.float32), 0.0)
        offset = jnp.where(jumps, elsewhere, state.offset)
        state = eqx.tree_at(lambda s: (s.position, s.offset, s.time), state, (position, offset, state.time + 1))

        force = STIFFNESS * jnp.maximum(self.height(state, position[0]) - position[1], 0.0)
        centres = (jnp.arange(CELLS) + 0.5) * 2 * EDGE / CELLS - EDGE
        wipes = (jnp.abs(centres - position[0]) <= TOOL) & (force >= LOW) & (force <= HIGH)
        wiped = state.wiped | wipes
        reward = (wiped.mean() - state.wiped.mean()).astype(jnp.float32)
        touched = state.touched | (force > 0)
        state = eqx.tree_at(lambda s: (s.force, s.touched, s.wiped), state, (force, touched, wiped))
        over = position[0] >= EDGE
        info = {"success": wiped.mean() >= 0.9}
        return state, Step(self.observe(state, obs_key), reward, over, jnp.array(False), info)


def drift_of(amplitude: float | Array, time: float | Array, phase: float | Array) -> Array:
    """How far the board has drifted up, `amplitude sin(2 pi t / 40 + phase)`."""
    return amplitude * jnp.sin(2 * jnp.pi * time / PERIOD + phase)
