"""A source that acts and remembers: a replay buffer, optionally mixed with a log."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from habitus.core.errors import ConfigError
from habitus.core.experience import Sides, Transition, flatten_time
from habitus.core.protocols import Env, Explorer, HostEnv, Policy, Source, require
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, select, take
from habitus.data.dataset import Dataset
from habitus.envs.host import HostCanonical
from habitus.envs.registry import canonical
from habitus.envs.wrappers import Canonical
from habitus.train.buffer import Buffer
from habitus.train.collect import Collection, HostCollector, collect, start
from habitus.train.host import Actor, HostBuffer


class Uniform(Policy):
    """Uniformly random canonical actions, for warming up; keeps another policy's carry untouched."""

    shape: tuple[int, ...] = eqx.field(static=True)
    sizes: tuple[int, ...] = eqx.field(static=True)
    like: Explorer

    @classmethod
    def over(cls, spec: Spec, like: Explorer) -> Uniform:
        """For the actions of `spec`, with the carry of `like`."""
        if spec.discrete:
            return cls((), (spec.num_actions,), like)
        sizes = tuple(int(n) for n in spec.action_space.nvec.ravel()) if spec.multi_discrete else ()  # type: ignore[attr-defined]
        return cls(spec.action_shape, sizes, like)

    def init(self) -> Any:
        return self.like.init()

    def __call__(self, obs: Any, carry: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        if self.sizes:
            highs = jnp.asarray(self.sizes).reshape(self.shape)
            return jax.random.randint(key, self.shape, 0, highs).astype(jnp.int32), carry
        return jax.random.uniform(key, self.shape, minval=-1.0, maxval=1.0), carry


PROPORTIONAL = "proportional"


class ReplayState(eqx.Module):
    """What a compiled `Replay` remembers."""

    collection: Collection
    buffer: Buffer


class Replay(Source):
    """A uniform ring buffer fed by the explorer, optionally mixed with a log.

    A batch is a `Transition` of `batch_size` rows. `updates_per_step` counts updates for each
    environment step, whatever the number of copies.
    """

    env: Canonical | HostCanonical
    prefill: Dataset | None
    logged: Transition | None
    batch_size: int
    capacity: int
    num_envs: int
    warmup: int
    updates_per_step: float
    mix: float | str
    explore: str
    apart: bool

    def __init__(
        self,
        env: Env | HostEnv,
        batch_size: int = 256,
        capacity: int = 1_000_000,
        num_envs: int = 1,
        warmup: int = 1_000,
        updates_per_step: float = 1.0,
        prefill: Dataset | None = None,
        mix: float | Literal["proportional"] = 0.5,
        explore: Literal["uniform", "policy"] = "uniform",
        apart: bool = False,
    ):
        """Args:
            env: a world in the user's spaces.
            batch_size: rows in a batch.
            capacity: rows kept; rounded down to a multiple of the steps in one draw.
            num_envs: copies stepped together; a host world says so itself.
            warmup: environment steps before the first update; rounded up likewise.
            updates_per_step: updates for each environment step.
            prefill: a log to mix in.
            mix: share of each batch that comes from `prefill`; or 'proportional', as if log and
                buffer were one.
            apart: hand out `Sides`, which keep the rows of the log apart.
            explore: what acts while it warms up: uniformly random actions, or the explorer.

        Raises:
            ConfigError: if a number is out of its domain.
            SpaceMismatch: if the log and the world differ in their spaces.
        """
        self.env = canonical(env)
        self.num_envs = self.env.num_envs if isinstance(self.env, HostEnv) else num_envs
        self.batch_size, self.updates_per_step = batch_size, updates_per_step
        self.mix = mix if prefill is not None else 0.0
        require(batch_size > 0 and self.num_envs > 0, "Replay needs batch_size and num_envs above 0.")
        require(updates_per_step > 0, "updates_per_step must be above 0.")
        shares = mix == PROPORTIONAL if isinstance(mix, str) else 0 <= mix <= 1
        require(shares, f"mix is a share of the batch, in [0, 1], or 'proportional', but is {mix!r}.")
        require(explore in ("uniform", "policy"), f"explore must be 'uniform' or 'policy', but is {explore!r}.")
        self.explore, self.apart = explore, apart
        split = prefill is not None and not isinstance(mix, str) and 0 < mix < 1
        require(not apart or split, "to keep a log apart there must be one, and mix a share between 0 and 1.")
        # whole draws, so that no block of rows is ever split where the ring begins anew
        block = self._ratio()[0] * self.num_envs
        self.capacity, self.warmup = capacity // block * block, -(-max(warmup, 1) // block) * block
        require(self.capacity >= self.warmup, f"capacity {capacity} is below warmup {self.warmup}; raise it.")
        self.prefill = self.logged = None
        if prefill is not None:
            self.env.env.spec.check_same(prefill.spec, "the log")
            self.prefill = prefill.canonical()
            if prefill.costs != self.env.env.costs:
                self.prefill = dataclasses.replace(self.prefill, cost=None)
            self.logged = jax.tree.map(jnp.asarray, self.prefill.transitions(slice(None)))

    def _ratio(self) -> tuple[int, int]:
        """Vectorised environment steps, and updates, in one draw."""
        updates = self.updates_per_step * self.num_envs
        steps, repeats = (1, round(updates)) if updates >= 1 else (round(1 / updates), 1)
        if abs(repeats / steps - updates) > 1e-6:
            raise ConfigError(
                f"updates_per_step * num_envs = {updates:g} must be a whole number or one over a whole number."
            )
        return steps, repeats

    @property
    def pure(self) -> bool:
        return self.env.pure

    @property
    def acts(self) -> bool:
        return True

    @property
    def spec(self) -> Spec:
        own = self.env.env.spec
        return Spec(
            own.observation_space, own.action_space, own.horizon, self.prefill, costs=self.costs, switches=own.switches
        )

    @property
    def costs(self) -> tuple[str, ...]:
        """The costs of the rows: those of the world, unless a log that is mixed in lacks them."""
        own = self.env.env.costs
        return own if self.prefill is None or self.prefill.costs == own else ()

    @property
    def updates_per_draw(self) -> int:
        return self._ratio()[1]

    def draws(self, steps: int) -> int:
        per_draw = self._ratio()[0] * self.num_envs
        if steps <= self.warmup:
            raise ConfigError(
                f"steps={steps} ends before the {self.warmup} warm-up steps do; raise steps or lower warmup."
            )
        return -(-(steps - self.warmup) // per_draw)

    def steps(self, draws: int) -> int:
        return self.warmup + draws * self._ratio()[0] * self.num_envs

    def init(self, explorer: Explorer, key: PRNGKeyArray) -> Any:
        first = Uniform.over(self.spec, explorer) if self.explore == "uniform" else explorer
        blocks = -(-self.warmup // self.num_envs)
        if isinstance(self.env, HostEnv):
            state = HostReplayState(
                HostCollector(self.env, explorer, seed_of(key)), HostBuffer(self.spec, self.capacity)
            )
            actor = Actor.of(first) if self.explore == "uniform" else explorer
            for _ in range(blocks):
                state.buffer.add(state.collector.step(actor))
            return state
        start_key, warm_key = jax.random.split(key)
        collection = start(self.env, self.num_envs, explorer, start_key)
        collection, rows = collect(self.env, collection, first, warm_key, blocks)
        buffer = Buffer.empty(self.spec, self.capacity)
        return ReplayState(collection, buffer.add(jax.tree.map(lambda x: x[: self.capacity], flatten_time(rows))))

    def draw(self, state: Any, explorer: Explorer, key: PRNGKeyArray) -> tuple[Any, Transition | Sides]:
        steps, repeats = self._ratio()
        if isinstance(state, HostReplayState):
            for _ in range(steps):
                state.buffer.add(state.collector.step(explorer))
            state.collector.plan(explorer)
            return state, self._host_batch(state.buffer, key, repeats)
        assert isinstance(self.env, Canonical)
        act_key, sample_key = jax.random.split(key)
        collection, rows = collect(self.env, state.collection, explorer, act_key, steps)
        buffer = state.buffer.add(flatten_time(rows))
        return ReplayState(collection, buffer), self._batch(buffer, sample_key, repeats)

    def _batch(self, buffer: Buffer, key: PRNGKeyArray, repeats: int) -> Transition | Sides:
        """`repeats` batches, each mixed from the buffer and the log."""
        own_key, log_key = jax.random.split(key)
        if self.logged is not None and self.mix == PROPORTIONAL:
            return _stacked(self._proportional(buffer, self.logged, key, repeats * self.batch_size), repeats)
        batch = buffer.sample(own_key, repeats * (self.batch_size - self.logged_rows))
        if self.logged is None or not self.logged_rows:
            return _stacked(batch, repeats)
        rows = jax.random.randint(log_key, (repeats * self.logged_rows,), 0, self.logged.size)
        parts = _stacked(batch, repeats), _stacked(take(self.logged, rows), repeats)
        if self.apart:
            return Sides(*parts)
        return jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=0 if repeats == 1 else 1), *parts)

    def _proportional(self, buffer: Buffer, log: Transition, key: PRNGKeyArray, n: int) -> Transition:
        """`n` rows of buffer and log as if they were one."""
        rows = jax.random.randint(key, (n,), 0, log.size + buffer.size)
        own, logged = take(buffer.data, jnp.maximum(rows - log.size, 0)), take(log, jnp.minimum(rows, log.size - 1))
        return jax.vmap(select)(rows >= log.size, own, logged)

    def _host_batch(self, buffer: HostBuffer, key: PRNGKeyArray, repeats: int) -> Transition | Sides:
        """As `_batch`, in NumPy."""
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        if self.prefill is not None and self.mix == PROPORTIONAL:
            size, n = len(self.prefill), repeats * self.batch_size
            ours = rng.binomial(n, buffer.size / (buffer.size + size))
            parts = buffer.sample(rng, ours), self.prefill.transitions(np.sort(rng.integers(0, size, n - ours)))
            order = rng.permutation(n)
            return _stacked(jax.tree.map(lambda *xs: np.concatenate(xs)[order], *parts), repeats)
        batch = buffer.sample(rng, repeats * (self.batch_size - self.logged_rows))
        if self.prefill is None or not self.logged_rows:
            return _stacked(batch, repeats)
        logged = self.prefill.transitions(rng.integers(0, len(self.prefill), repeats * self.logged_rows))
        parts = _stacked(batch, repeats), _stacked(logged, repeats)
        if self.apart:
            return Sides(*parts)
        return jax.tree.map(lambda *xs: np.concatenate(xs, axis=0 if repeats == 1 else 1), *parts)

    @property
    def logged_rows(self) -> int:
        """Rows of each batch that come from the log."""
        return 0 if isinstance(self.mix, str) else round(self.mix * self.batch_size)

    def report(self, state: Any) -> tuple[Any, Metrics]:
        if isinstance(state, HostReplayState):
            return state, state.collector.report()
        tally, metrics = state.collection.tally.report()
        return eqx.tree_at(lambda s: s.collection.tally, state, tally), metrics

    def snapshot(self, state: Any) -> Any:
        if isinstance(state, HostReplayState):
            return {"tick": np.asarray(state.collector.tick), "buffer": state.buffer.arrays()}
        return state

    def restore(self, state: Any, saved: Any) -> Any:
        if isinstance(state, HostReplayState):
            state.collector.tick = int(saved["tick"])
            state.buffer.load(saved["buffer"])
            return state
        return saved


class HostReplayState:
    """What a `Replay` of a host world remembers; changes in place."""

    def __init__(self, collector: HostCollector, buffer: HostBuffer):
        self.collector, self.buffer = collector, buffer


def _stacked(batch: Transition, repeats: int) -> Transition:
    """One batch, or several along a new leading axis."""
    if repeats == 1:
        return batch
    return jax.tree.map(lambda x: x.reshape(repeats, -1, *x.shape[1:]), batch)


def seed_of(key: PRNGKeyArray) -> int:
    """A seed for a world that runs in Python."""
    return int(jax.random.randint(key, (), 0, 2**31 - 1))
