"""A combination lock behind rich observations: `length` right decisions in a row, and a reward only at the end."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, Int, PRNGKeyArray
from scipy.linalg import hadamard

from habitus.core.experience import Action, Step
from habitus.core.protocols import Env, require
from habitus.envs.actions import fit_action
from habitus.envs.tabular import Tabular

ARMS = 10
BAD = 2
SHARPNESS = 10.0  # 1 / temperature of the softmax that turns a real action into an arm
NOISE = 0.1
CONSOLATION, CHANCE = 0.1, 0.5  # what a failed last step pays, and how often


class CombinationLock(Env):
    """The continuous lock of Zhou et al. (2024, "Offline Data Enhanced On-Policy Policy Gradient").

    State: (latent, step). Latents 0 and 1 are good and hide which of two combinations holds; 2 is bad and
    for ever. The ten numbers of an action are the logits, times ten, of which arm is pulled; the right arm
    leads to latent 0 or 1 with equal chance, every other one to 2. The last step pays 1 if its arm is right
    and .1 half of the time if not; all other steps pay 0, so the way to fail looks better until the end.
    Observation: one-hot codes of latent and step with noise, turned by a Hadamard matrix. `make` ends
    episodes after `length` steps; never sooner.
    """

    length: int = eqx.field(default=5, static=True)
    """steps of an episode; the last of them pays"""
    combination: int = eqx.field(default=0, static=True)
    """seed of the right arms"""
    bounded: bool = eqx.field(default=False, static=True)
    """whether actions lie in [0, 1], for policies that need bounds; a pull is then right with .9996 at most"""

    def __check_init__(self) -> None:
        require(self.length > 0, f"length must be above 0, but is {self.length}.")

    @property
    def size(self) -> int:
        """Dimensions of an observation: the next power of two that latent, step and the end fit into."""
        return 2 ** (self.length + 3).bit_length()

    @property
    def right_arms(self) -> Int[np.ndarray, "steps 2"]:
        """The right arm of each step in latents 0 and 1."""
        return np.random.default_rng(self.combination).integers(0, ARMS, (self.length, 2))

    @property
    def rotation(self) -> Float[np.ndarray, "size size"]:
        """The Hadamard matrix: its rows are orthogonal and of square length `size`."""
        return hadamard(self.size).astype(np.float32)

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (self.size,), np.float32)

    @property
    def action_space(self) -> spaces.Box:
        low, high = (0.0, 1.0) if self.bounded else (-np.inf, np.inf)
        return spaces.Box(low, high, (ARMS,), np.float32)

    def observe(self, state: Int[Array, "2"], key: PRNGKeyArray) -> Float[Array, "size"]:
        """What a state looks like."""
        places = jnp.arange(self.size)
        code = (places == state[0]).astype(jnp.float32) + (places == 3 + state[1])
        noise = NOISE * jax.random.normal(key, (self.size,))
        return jnp.asarray(self.rotation) @ (code + jnp.where(places < self.length + 3, noise, 0.0))

    def reset(self, key: PRNGKeyArray) -> tuple[Int[Array, "2"], Float[Array, "size"]]:
        latent_key, obs_key = jax.random.split(key)
        state = jnp.stack([jax.random.bernoulli(latent_key).astype(jnp.int32), jnp.zeros((), jnp.int32)])
        return state, self.observe(state, obs_key)

    def step(self, state: Int[Array, "2"], action: Action, key: PRNGKeyArray) -> tuple[Int[Array, "2"], Step]:
        arm_key, latent_key, luck_key, obs_key = jax.random.split(key, 4)
        logits = fit_action(self.action_space, action)
        logits = jnp.clip(logits, 0.0, 1.0) if self.bounded else logits
        arm = jax.random.categorical(arm_key, SHARPNESS * logits)
        time = state[1]
        wanted = jnp.asarray(self.right_arms, jnp.int32)[jnp.minimum(time, self.length - 1), jnp.minimum(state[0], 1)]
        right = (state[0] != BAD) & (arm == wanted)
        latent = jnp.where(right, jax.random.bernoulli(latent_key).astype(jnp.int32), BAD)
        after, last = jnp.stack([latent, time + 1]), time + 1 == self.length
        luck = CONSOLATION * jax.random.bernoulli(luck_key, CHANCE)
        reward = jnp.where(last, jnp.where(right, 1.0, luck), 0.0).astype(jnp.float32)
        return after, Step(
            self.observe(after, obs_key), reward, jnp.array(False), jnp.array(False), {"success": last & right}
        )

    def tabular(self) -> Tabular:
        """The lock with its latents and arms laid open: state `3 step + latent`, and one terminal state at the end."""
        steps, states = self.length, 3 * self.length + 1
        transition, reward = np.zeros((states, ARMS, states)), np.zeros((states, ARMS))
        for time in range(steps):
            last = time == steps - 1
            for latent in (0, 1, BAD):
                here = 3 * time + latent
                for arm in range(ARMS):
                    right = latent != BAD and arm == self.right_arms[time, latent]
                    if last:
                        transition[here, arm, -1] = 1.0
                        reward[here, arm] = 1.0 if right else CONSOLATION * CHANCE
                    elif right:
                        transition[here, arm, 3 * time + 3 : 3 * time + 5] = 0.5
                    else:
                        transition[here, arm, 3 * time + 3 + BAD] = 1.0
        start, terminal = np.zeros(states), np.zeros(states, bool)
        start[:2], terminal[-1] = 0.5, True
        return Tabular(transition, reward, start, terminal)
