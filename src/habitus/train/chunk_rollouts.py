"""Fresh experience in which one action is a chain that ends in a chunk."""

from __future__ import annotations

from typing import Any

from habitus.core.errors import ConfigError
from habitus.core.protocols import Env, HostEnv
from habitus.envs.chunked import ChunkedWorld
from habitus.envs.registry import canonical
from habitus.generative.chunks import Chunking
from habitus.train.rollouts import Rollouts


class ChunkRollouts(Rollouts):
    """As `Rollouts`, where each step of a copy executes a whole chunk; observations are windows.

    A batch is a `Transition` [length, num_envs] whose `obs` are [observed, ...] and whose actions are chains [links,
    predicted, actions]. Steps of the world are counted as if every chunk were executed whole.
    """

    executed: int

    def __init__(self, env: Env | HostEnv, chunking: Chunking, links: int, **options: Any):
        """Args:
            env: a compiled world in the user's spaces.
            chunking: what is seen, predicted and executed.
            links: of a chain.
            options: those of `Rollouts`.

        Raises:
            ConfigError: for a world that runs in Python.
        """
        super().__init__(env, **options)
        if isinstance(self.env, HostEnv):
            raise ConfigError("chunks are executed by compiled worlds only, but this one runs in Python.")
        self.env = ChunkedWorld(canonical(env).env, chunking, links)  # type: ignore[arg-type]
        self.executed = chunking.executed

    def draws(self, steps: int) -> int:
        return super().draws(-(-steps // self.executed))

    def steps(self, draws: int) -> int:
        return super().steps(draws) * self.executed
