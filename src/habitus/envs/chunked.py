"""A world in which one step executes a whole chunk of actions."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, PRNGKeyArray

from habitus.core.experience import Step
from habitus.core.protocols import Env, EnvState
from habitus.core.spec import Spec
from habitus.core.trees import select
from habitus.envs.wrappers import Canonical
from habitus.generative.chunks import Chunking


class Seen(eqx.Module):
    """A state of the world inside, and the last observations."""

    inner: Any
    window: Float[Array, "observed *obs"]


class ChunkedWorld(Canonical):
    """A world in canonical form whose observations are the last ones [observed, ...], and whose actions are chains.

    A chain [links, predicted, actions] is how a chunk came to be, the chunk itself last; its rows `chunking.now` are
    executed. Rewards are summed; where the episode ends within a chunk, the rest of it is not executed. `spec` is
    that of the world inside, as the policies that come of it act step by step.
    """

    chunking: Chunking
    links: int = eqx.field(static=True)

    @property
    def observation_space(self) -> gymnasium.Space:
        one: Any = Canonical(self.env).observation_space
        low, high = (np.repeat(bound[None], self.chunking.observed, axis=0) for bound in (one.low, one.high))
        return spaces.Box(low, high)

    @property
    def action_space(self) -> gymnasium.Space:
        shape = self.links, self.chunking.predicted, *self.env.spec.action_shape
        return spaces.Box(-np.inf, np.inf, shape)

    @property
    def spec(self) -> Spec:
        return self.env.spec

    def inner(self, state: Seen) -> EnvState:
        return state.inner

    def reset(self, key: PRNGKeyArray) -> tuple[Seen, Array]:
        state, obs = Canonical(self.env).reset(key)
        window = jnp.broadcast_to(obs, (self.chunking.observed, *obs.shape))
        return Seen(state, window), window

    def step(self, state: Seen, action: Array, key: PRNGKeyArray) -> tuple[Seen, Step]:
        one = Canonical(self.env).step

        def go_on(at: tuple[Seen, Step], row: tuple[Array, PRNGKeyArray]) -> tuple[tuple[Seen, Step], None]:
            seen, last = at
            inner, step = one(seen.inner, *row)
            window = jnp.concatenate([seen.window[1:], step.obs[None]])
            step = eqx.tree_at(lambda s: (s.obs, s.reward), step, (window, last.reward + step.reward))
            return select(last.terminated | last.truncated, (seen, last), (Seen(inner, window), step)), None

        rows = action[-1][self.chunking.now]
        inner, first = one(state.inner, rows[0], jax.random.fold_in(key, 0))
        window = jnp.concatenate([state.window[1:], first.obs[None]])
        begun = Seen(inner, window), eqx.tree_at(lambda s: s.obs, first, window)
        keys = jax.random.split(jax.random.fold_in(key, 1), len(rows))
        return jax.lax.scan(go_on, begun, (rows[1:], keys[1:]))[0]


def chunked(env: Env, chunking: Chunking, links: int) -> ChunkedWorld:
    """The world of chains of `links` chunks."""
    return ChunkedWorld(env, chunking, links)
