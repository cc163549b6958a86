"""Fresh experience of the current policy, with a log beside it if the learner reads one too."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from habitus.core.errors import ConfigError
from habitus.core.experience import Sides, Transition
from habitus.core.protocols import Env, Explorer, HostEnv, Source, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics
from habitus.data.dataset import Dataset
from habitus.envs.host import HostCanonical
from habitus.envs.registry import canonical
from habitus.envs.wrappers import Canonical
from habitus.train.collect import Collection, HostCollector, collect, start
from habitus.train.sources import seed_of


@dataclasses.dataclass(frozen=True)
class Aside:
    """A log that goes with a source but that no draw reads: with another one the program is the same."""

    log: Dataset | None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Aside)

    def __hash__(self) -> int:
        return hash(Aside)


class Both(eqx.Module):
    """What `Rollouts` remembers of the world, and what the source beside it remembers."""

    own: Any
    beside: Any


class Rollouts(Source):
    """Fresh on-policy experience: each draw is `length` steps of `num_envs` copies of a world.

    A batch is a `Transition` with leading axes [length, num_envs]; with another source beside, `Sides`
    of that roll-out and of the other's batch.
    """

    env: Canonical | HostCanonical
    num_envs: int
    length: int
    fresh: bool
    beside: Source | None
    aside: Aside

    def __init__(
        self,
        env: Env | HostEnv,
        num_envs: int = 8,
        length: int = 128,
        fresh: bool = False,
        beside: Source | None = None,
        log: Dataset | None = None,
    ):
        """Args:
            env: a world in the user's spaces; it is put into canonical form here.
            num_envs: copies stepped together; a host world says so itself.
            length: steps of each copy in one draw.
            fresh: begin each draw with fresh episodes, so that the first row of every copy is a first step.
            beside: what else a batch holds, such as a `DatasetSource`.
            log: for learners that find one in `Spec.dataset`; no batch holds rows of it.

        Raises:
            ConfigError: if a count is not positive, or the log beside a compiled world is read from disk.
            SpaceMismatch: if the spaces of both differ.
        """
        require(num_envs > 0 and length > 0, "Rollouts needs num_envs and length above 0.")
        self.env = canonical(env)
        self.num_envs = self.env.num_envs if isinstance(self.env, HostEnv) else num_envs
        self.length, self.fresh, self.beside = length, fresh, beside
        if log is not None:
            self.env.env.spec.check_same(log.spec, "the log")
        self.aside = Aside(None if log is None else log.canonical())
        if beside is not None:
            self.env.env.spec.check_same(beside.spec, "the log")
            if self.env.pure and not beside.pure:
                raise ConfigError("a log beside a compiled world must fit on the device; raise `resident`.")

    @property
    def pure(self) -> bool:
        return self.env.pure

    @property
    def acts(self) -> bool:
        return True

    @property
    def apart(self) -> bool:
        """Whether batches are `Sides`."""
        return self.beside is not None

    @property
    def spec(self) -> Spec:
        own = self.env.env.spec
        return dataclasses.replace(own, dataset=self.aside.log if self.beside is None else self.beside.spec.dataset)

    def init(self, explorer: Explorer, key: PRNGKeyArray) -> Any:
        own: Any
        if isinstance(self.env, HostEnv):
            own = HostCollector(self.env, explorer, seed_of(key))
        else:
            own = start(self.env, self.num_envs, explorer, key)
        return own if self.beside is None else Both(own, self.beside.init(explorer, jax.random.fold_in(key, 1)))

    def draw(self, state: Any, explorer: Explorer, key: PRNGKeyArray) -> tuple[Any, Transition | Sides]:
        if self.beside is None:
            return self._act(state, explorer, key)
        own_key, beside_key = jax.random.split(key)
        own, rollout = self._act(state.own, explorer, own_key)
        beside, batch = self.beside.draw(state.beside, explorer, beside_key)
        return Both(own, beside), Sides(rollout, batch)

    def _act(self, state: Any, explorer: Explorer, key: PRNGKeyArray) -> tuple[Any, Transition]:
        """The roll-out."""
        if isinstance(state, HostCollector):
            if self.fresh:
                state.restart(seed_of(key))
            rows = [state.step(explorer) for _ in range(self.length)]
            return state, jax.tree.map(lambda *xs: np.stack(xs), *rows)
        assert isinstance(self.env, Canonical)
        if self.fresh:
            key, start_key = jax.random.split(key)
            anew = start(self.env, self.num_envs, explorer, start_key)
            state = Collection(anew.env_state, anew.obs, anew.carry, state.tally.forget())
        return collect(self.env, state, explorer, key, self.length, once=self.fresh)

    def draws(self, steps: int) -> int:
        return -(-steps // (self.num_envs * self.length))

    def steps(self, draws: int) -> int:
        return draws * self.num_envs * self.length

    def report(self, state: Any) -> tuple[Any, Metrics]:
        own = state.own if isinstance(state, Both) else state
        if isinstance(own, HostCollector):
            return state, own.report()
        tally, metrics = own.tally.report()
        own = Collection(own.env_state, own.obs, own.carry, tally)
        return (Both(own, state.beside) if isinstance(state, Both) else own), metrics

    def snapshot(self, state: Any) -> Any:
        own = state.own if isinstance(state, Both) else state
        if not isinstance(own, HostCollector):
            return state
        tick = {"tick": np.asarray(own.tick)}
        return tick | {"beside": self.beside.snapshot(state.beside)} if self.beside is not None else tick

    def restore(self, state: Any, saved: Any) -> Any:
        own = state.own if isinstance(state, Both) else state
        if not isinstance(own, HostCollector):
            return saved
        own.tick = int(saved["tick"])
        return Both(own, self.beside.restore(state.beside, saved["beside"])) if self.beside is not None else own
