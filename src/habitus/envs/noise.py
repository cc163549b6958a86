"""Noise on what a world executes, so that who records it sees mistakes and the clean actions that answer them.

M. Laskey, J. Lee, R. Fox, A. Dragan and K. Goldberg, "DART: Noise Injection for Robust Imitation Learning", CoRL 2017.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.experience import Action, Step
from habitus.core.protocols import Env, EnvState, require
from habitus.envs.actions import fit_action
from habitus.envs.wrappers import Wrapper


class NoisyActions(Wrapper):
    """A world that executes something else than it is told; a log of it holds what it was told.

    So `record_log(expert, NoisyActions(world, ...), episodes)` is DART: the states are those that noise leads to, the
    actions are the expert's own. Real actions get Gaussian noise and are clipped to their bounds.

    Attributes:
        std: of the noise on real actions: one number, one for each dimension, or a matrix [actions, actions] whose
            product with its transpose is the covariance (`np.linalg.cholesky(dart_covariance(...))`).
        random_share: probability of a uniformly random action instead.

    Raises:
        ConfigError: if a number is out of its domain, or `std` is given for integers.
    """

    env: Env
    std: float | Float[Array, "..."] = 0.0
    random_share: float = 0.0

    def __check_init__(self) -> None:
        require(0 <= self.random_share <= 1, f"random_share must be in [0, 1], but is {self.random_share}.")
        real = isinstance(self.action_space, spaces.Box)
        require(real or jnp.all(jnp.asarray(self.std) == 0), "std is for real actions; give random_share for integers.")
        require(jnp.ndim(self.std) == 2 or jnp.all(jnp.asarray(self.std) >= 0), "std must be 0 or more.")
        size, shape = self.action_space.shape, jnp.shape(self.std)
        fits = shape in ((), size) or shape == 2 * (int(np.prod(size or ())),)
        require(fits, f"std has shape {shape}, but one action has {size}.")
        bounded = not real or self.action_space.is_bounded("both")  # type: ignore[attr-defined]
        require(bounded or self.random_share == 0, "random actions need bounds, which this action space lacks.")

    def step(self, state: EnvState, action: Action, key: PRNGKeyArray) -> tuple[EnvState, Step]:
        step_key, noise_key, random_key, share_key = jax.random.split(key, 4)
        executed = self._disturbed(fit_action(self.action_space, action), noise_key)
        if not isinstance(self.random_share, float) or self.random_share > 0:
            random = self._random(random_key).astype(executed.dtype)
            executed = jnp.where(jax.random.bernoulli(share_key, self.random_share), random, executed)
        return self.env.step(state, executed, step_key)

    def _disturbed(self, action: Array, key: PRNGKeyArray) -> Array:
        space = self.action_space
        if not isinstance(space, spaces.Box):
            return action
        noise, std = jax.random.normal(key, action.shape), jnp.asarray(self.std)
        noise = (std @ noise.ravel()).reshape(action.shape) if std.ndim == 2 else std * noise
        return jnp.clip(action + noise, space.low, space.high)

    def _random(self, key: PRNGKeyArray) -> Array:
        space = self.action_space
        if isinstance(space, spaces.Box):
            return jax.random.uniform(key, space.shape, minval=space.low, maxval=space.high)
        count = jnp.asarray(space.n if isinstance(space, spaces.Discrete) else space.nvec)  # type: ignore[attr-defined]
        return jax.random.randint(key, count.shape, 0, count) + jnp.asarray(space.start)  # type: ignore[attr-defined]


def dart_covariance(
    error: Float[np.ndarray, "rows actions"], total: float | None = None, horizon: int = 1
) -> Float[np.ndarray, "actions actions"]:
    """The covariance of the noise under which the recorded actions would look most like a learner's.

    `mean_t e_t e_t'` over the errors e of a learner's actions on states of the expert; with `total`, scaled so that
    the expected squared error of an episode, `horizon * trace`, is `total`: a guess at that of the learner when it is
    trained, as a first learner errs by more or, on its own training data, by less.

    Raises:
        ConfigError: if `total` is not above 0, or the errors are all 0 and can be scaled to nothing else.
    """
    found = np.asarray(error.T @ error / len(error))
    if total is None:
        return found
    trace = float(np.trace(found))
    require(total > 0 and horizon >= 1, f"total is {total} and horizon {horizon}; both must be above 0.")
    require(trace > 0, "the learner makes no errors, which no factor scales to a total above 0; give std yourself.")
    return found * np.asarray(total / (horizon * trace), found.dtype)
