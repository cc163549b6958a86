"""The inner loop: draw, update, repeat. Compiled whole where the source is pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key, PRNGKeyArray, PyTree

from habitus.core.experience import PRIORITY
from habitus.core.protocols import Learner, Policy, Source
from habitus.core.spec import Spec
from habitus.core.trees import Metrics, copy, is_shared, take, to_numpy
from habitus.train.checkpoint import from_host, to_host
from habitus.train.host import Actor, act_on_batch, flatten, listens, unflatten

NEVER = np.iinfo(np.int32).max


class Summary(NamedTuple):
    """What a chunk of updates was like: for each metric, one mean a seed; and the first update that
    made it not finite, or `NEVER`."""

    metrics: dict[str, np.ndarray]
    first_bad: dict[str, np.ndarray]
    update: int


class LoopState(eqx.Module):
    """Everything that changes: one pytree."""

    learner: PyTree
    source: PyTree
    key: PRNGKeyArray
    update: Array


class Tally(eqx.Module):
    """Sums of metrics over a chunk, and where each first stopped being finite."""

    total: Metrics
    first_bad: dict[str, Array]

    @classmethod
    def empty(cls, names: Iterable[str]) -> Tally:
        """For metrics of these names."""
        names = list(names)
        return cls({k: jnp.zeros(()) for k in names}, {k: jnp.full((), NEVER) for k in names})

    def add(self, metrics: Metrics, update: Array) -> Tally:
        """One more update."""
        first = {
            k: jnp.minimum(self.first_bad[k], jnp.where(jnp.isfinite(v), NEVER, update)) for k, v in metrics.items()
        }
        return Tally({k: self.total[k] + v for k, v in metrics.items()}, first)


def _split_shared(tree: PyTree) -> tuple[PyTree, PyTree]:
    """(what belongs to a seed, what seeds share)."""
    mask = jax.tree.map(lambda x: jax.tree.map(lambda _: is_shared(x), x), tree, is_leaf=is_shared)
    shared, own = eqx.partition(tree, mask)
    return own, shared


def _many_updates(learner: Learner, state: PyTree, batches: Any, key: PRNGKeyArray, n: int) -> tuple[PyTree, Metrics]:
    """One update for each batch along the leading axis; the metrics are means."""

    def one(state: PyTree, inputs: tuple[Any, PRNGKeyArray]) -> tuple[PyTree, Metrics]:
        return learner.update(state, *inputs)

    arrays, static = eqx.partition(state, eqx.is_array)

    def body(arrays: PyTree, inputs: tuple[Any, PRNGKeyArray]) -> tuple[PyTree, Metrics]:
        state, metrics = one(eqx.combine(arrays, static), inputs)
        return eqx.filter(state, eqx.is_array), metrics

    arrays, metrics = jax.lax.scan(body, arrays, (batches, jax.random.split(key, n)))
    return eqx.combine(arrays, static), jax.tree.map(lambda m: m.mean(0), metrics)


def _one_draw(learner: Learner, source: Source, state: LoopState) -> tuple[LoopState, Metrics]:
    """Collect, then improve."""
    key, draw_key, update_key = jax.random.split(state.key, 3)
    source_state, batch = source.draw(state.source, learner.explorer(state.learner), draw_key)
    if (n := source.updates_per_draw) > 1:
        learner_state, metrics = _many_updates(learner, state.learner, batch, update_key, n)
    else:
        learner_state, metrics = learner.update(state.learner, batch, update_key)
    if source.prioritised:
        source_state = source.reprioritise(source_state, metrics.pop(PRIORITY))
    return LoopState(learner_state, source_state, key, state.update + n), metrics


def _chunk(learner: Learner, source: Source, state: LoopState, draws: Array) -> tuple[LoopState, Tally, Metrics]:
    """`draws` draws. Their number is traced, so every length is the same program and the same bits."""
    arrays, static = eqx.partition(state, eqx.is_array)

    def body(_: Any, carry: tuple[PyTree, Tally]) -> tuple[PyTree, Tally]:
        state = eqx.combine(carry[0], static)
        after, metrics = _one_draw(learner, source, state)
        return eqx.filter(after, eqx.is_array), carry[1].add(metrics, after.update)

    shapes = eqx.filter_eval_shape(lambda a: _one_draw(learner, source, eqx.combine(a, static))[1], arrays)
    arrays, tally = jax.lax.fori_loop(0, draws, body, (arrays, Tally.empty(shapes)))
    state = eqx.combine(arrays, static)
    reported, report = source.report(state.source)
    return LoopState(state.learner, reported, state.key, state.update), tally, report


def _traced(learner: Learner) -> Learner:
    """The learner with its real-valued hyperparameters as arrays, so that other values are the same program."""
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, float) else x, learner)


def _first_state(learner: Learner, spec: Spec, key: PRNGKeyArray, warm: PyTree | None) -> PyTree:
    """A fresh state, or what the learner makes of the last one of an earlier run (without its `Shared` parts)."""
    state = learner.init(spec, key)
    if warm is None:
        return state
    if type(warm) is type(state):
        warm = eqx.combine(warm, _split_shared(state)[1])
    return learner.adopt(state, warm)


def _init(
    learner: Learner, source: Source, keys: Key[Array, "seeds"], spec: Spec, warm: PyTree | None
) -> tuple[PyTree, PyTree]:
    """First states, one a key; the source is an argument, so that its data is no constant of the program."""

    def one(key: PRNGKeyArray, warm: PyTree | None) -> tuple[PyTree, PyTree]:
        learner_key, source_key, loop_key = jax.random.split(key, 3)
        state = _first_state(learner, spec, learner_key, warm)
        source_state = source.init(learner.explorer(state), source_key)
        return _split_shared(LoopState(state, source_state, loop_key, jnp.zeros((), jnp.int32)))

    return eqx.filter_vmap(one, out_axes=(eqx.if_array(0), None))(keys, warm)


# runs once, and the compiler takes long to optimise its many random numbers
_run_init: Callable[..., Any] = eqx.filter_jit(  # type: ignore[call-overload]
    _init, compiler_options={"xla_backend_optimization_level": 1}
)


def _seeds_chunk(fixed: Any, own: PyTree) -> tuple[PyTree, Tally, Metrics]:
    """A chunk of every seed: mapped over on each device of a CPU, one `vmap` on an accelerator."""
    *rest, draws, mesh = fixed
    arrays, static = eqx.partition(own, eqx.is_array)
    rest_arrays, rest_static = eqx.partition(rest, eqx.is_array)

    def block(arrays: PyTree, rest_arrays: PyTree, draws: Int[Array, "seeds"]) -> tuple[PyTree, Tally, Metrics]:
        learner, source, shared = eqx.combine(rest_arrays, rest_static)

        def one(arrays: PyTree, draws: Array) -> tuple[PyTree, Tally, Metrics]:
            after, tally, report = _chunk(learner, source, eqx.combine(arrays, static, shared), draws)
            return eqx.filter(_split_shared(after)[0], eqx.is_array), tally, report

        if jax.default_backend() == "cpu":
            return jax.lax.map(lambda at: one(*at), (arrays, draws))
        return jax.vmap(lambda arrays: one(arrays, draws.max()))(arrays)  # in step: a length of its own costs selects

    if mesh is not None:
        seed, every = PartitionSpec("seed"), PartitionSpec()
        block = jax.shard_map(block, mesh=mesh, in_specs=(seed, every, seed), out_specs=seed, check_vma=False)
    arrays, tally, report = block(arrays, rest_arrays, draws)
    return eqx.combine(arrays, static), tally, report


_run_chunk: Callable[..., Any] = eqx.filter_jit(_seeds_chunk, donate="all-except-first")


class PureEngine:
    """Runs every seed in one compiled program.

    On a CPU seeds are dealt out to its devices and mapped over on each; on an accelerator they are
    one `vmap`.
    """

    def __init__(
        self, learner: Learner, source: Source, spec: Spec, seeds: Sequence[int], warm: Sequence[PyTree] | None
    ):
        self.learner, self.source, self.seeds = _traced(learner), source, list(seeds)
        self.mesh = self._make_mesh(len(self.seeds))
        wanted = len(self.seeds) if self.mesh is None else -(-len(self.seeds) // self.mesh.size) * self.mesh.size
        padded = self.seeds + [self.seeds[-1]] * (wanted - len(self.seeds))
        keys = jax.vmap(jax.random.key)(jnp.asarray(padded, jnp.uint32))
        if warm is not None:
            states = [warm[min(i, len(self.seeds) - 1) % len(warm)] for i in range(len(padded))]
            stacked = jax.tree.map(lambda *xs: jnp.stack(xs) if eqx.is_array_like(xs[0]) else xs[0], *states)
            warm = _split_shared(stacked)[0]
        self._place(*_run_init(self.learner, source, keys, spec, warm))

    def _make_mesh(self, n: int) -> Mesh | None:
        devices = jax.devices()[: min(n, jax.device_count())]
        return Mesh(np.array(devices), ("seed",)) if len(devices) > 1 else None

    def _place(self, own: PyTree, shared: PyTree) -> None:
        rest = (self.learner, self.source, shared)
        if self.mesh is not None:
            own = eqx.filter_shard(own, NamedSharding(self.mesh, PartitionSpec("seed")))
            rest = eqx.filter_shard(rest, NamedSharding(self.mesh, PartitionSpec()))
        self.own, self.rest = own, rest

    def advance(self, draws: int) -> Summary:
        """Runs `draws` more draws of every seed."""
        n, padded = len(self.seeds), self.own.update.shape[0]
        # nothing for what fills up the last device, so that a last seed alone has every core
        each = np.where(np.arange(padded) < n, draws, 0).astype(np.int32)
        self.own, tally, report = _run_chunk((*self.rest, each, self.mesh), self.own)
        means = {k: np.asarray(v)[:n] / draws for k, v in tally.total.items()}
        means |= {k: np.asarray(v)[:n] for k, v in report.items()}
        return Summary(means, {k: np.asarray(v)[:n] for k, v in tally.first_bad.items()}, int(self.own.update[0]))

    def learner_state(self, i: int) -> PyTree:
        """The learner's state of the i-th seed, on the host."""
        own = take(to_numpy(self.own.learner), i)
        return eqx.combine(own, self.rest[2].learner)

    def policy(self, i: int) -> Policy:
        """The policy of the i-th seed, in canonical spaces."""
        return self.learner.policy(self.learner_state(i))

    def snapshot(self) -> list[np.ndarray]:
        """Every leaf a checkpoint needs."""
        return to_host(self.own)

    def restore(self, leaves: list[np.ndarray]) -> None:
        """Continues from a snapshot."""
        own = from_host(self.own, leaves)
        self._place(own, self.rest[2])

    def finite(self) -> bool:
        """Whether every parameter of every seed is finite."""
        return bool(_finite(self.own.learner))

    def close(self) -> None:
        """Nothing to release."""


@jax.jit
def _fold(key: PRNGKeyArray, data: Array) -> PRNGKeyArray:
    return jax.random.fold_in(key, data)


@eqx.filter_jit
def _finite(tree: PyTree) -> Array:
    leaves = [x for x in jax.tree.leaves(tree) if eqx.is_inexact_array(x)]
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in leaves])) if leaves else jnp.array(True)


class HostEngine:
    """Runs one seed; acting and updating are compiled, the loop and the world are Python."""

    def __init__(self, learner: Learner, source: Source, spec: Spec, seed: int, warm: Sequence[PyTree] | None):
        self.learner, self.source, self.seeds = _traced(learner), source, [seed]
        learner_key, source_key, loop_key = jax.random.split(jax.random.key(seed), 3)
        self.draw_key, self.update_key = jax.random.split(loop_key)
        first = None if warm is None else jax.tree.map(jnp.asarray, _split_shared(warm[0])[0])
        state = _init_learner(self.learner, spec, learner_key, first)
        self.fixed, fixed_rest = flatten(self.learner)
        self.arrays, self.rest = flatten(copy(state))
        self.update = np.zeros((), np.int32)
        self._act = _acting(fixed_rest, self.rest)
        self._hear = _hearing(fixed_rest, self.rest) if listens(self.learner.explorer(state)) else None
        self._improve = _improving(fixed_rest, self.rest, source.updates_per_draw)
        self._metrics: Sequence[str] = ()
        self.source_state = source.init(self._explorer(), source_key)  # type: ignore[arg-type]

    def _explorer(self) -> Actor:
        """The learner's explorer as it is now."""
        arrays = [*self.fixed, *self.arrays]
        return Actor(self._act, arrays, lambda: self.learner.explorer(self.state).init(), self._hear)

    @property
    def state(self) -> PyTree:
        """The learner's state."""
        return unflatten(self.arrays, self.rest)

    def advance(self, draws: int) -> Summary:
        """Runs `draws` more draws."""
        tally = None
        for _ in range(draws):
            key = _fold(self.draw_key, self.update)
            self.source_state, batch = self.source.draw(self.source_state, self._explorer(), key)  # type: ignore[arg-type]
            tally = Tally.empty(self._names(batch)) if tally is None else tally
            self.arrays, tally = self._improve(self.arrays, tally, self.fixed, batch, self.update_key, self.update)
            self.update = self.update + np.int32(self.source.updates_per_draw)
        assert tally is not None
        self.source_state, report = self.source.report(self.source_state)
        means = {k: np.asarray(v)[None] / draws for k, v in tally.total.items()}
        means |= {k: np.asarray(v)[None] for k, v in report.items()}
        return Summary(means, {k: np.asarray(v)[None] for k, v in tally.first_bad.items()}, int(self.update))

    def _names(self, batch: Any) -> Sequence[str]:
        """Of the metrics of an update."""
        if not self._metrics:
            n = self.source.updates_per_draw
            found = eqx.filter_eval_shape(_improve, self.learner, self.state, batch, self.update_key, n)[1]
            self._metrics = tuple(found)
        return self._metrics

    def learner_state(self, i: int) -> PyTree:
        """The learner's state, on the host."""
        return to_numpy(self.state)

    def policy(self, i: int) -> Policy:
        """The policy, in canonical spaces."""
        return self.learner.policy(self.learner_state(i))

    def _whole(self) -> PyTree:
        own, _ = _split_shared(self.state)
        return own, self.source.snapshot(self.source_state), np.asarray(self.update)

    def snapshot(self) -> list[np.ndarray]:
        """Every leaf a checkpoint needs; the simulator's own state is not among them."""
        return to_host(self._whole())

    def restore(self, leaves: list[np.ndarray]) -> None:
        """Continues from a snapshot, with fresh episodes."""
        own, source, self.update = from_host(self._whole(), leaves)
        self.arrays, _ = flatten(eqx.combine(own, _split_shared(self.state)[1]))
        self.source_state = self.source.restore(self.source_state, source)

    def finite(self) -> bool:
        """Whether every parameter is finite."""
        return bool(_finite(self.state))

    def close(self) -> None:
        """Releases the world."""
        env = getattr(self.source, "env", None)
        if env is not None and not env.pure:
            env.close()


def _improve(learner: Learner, state: PyTree, batch: Any, key: PRNGKeyArray, n: int) -> tuple[PyTree, Metrics]:
    if n > 1:
        return _many_updates(learner, state, batch, key, n)
    return learner.update(state, batch, key)


@eqx.filter_jit
def _init_learner(learner: Learner, spec: Spec, key: PRNGKeyArray, warm: PyTree | None) -> PyTree:
    return _first_state(learner, spec, key, warm)


@cache
def _acting(fixed_rest: Any, rest: Any) -> Callable[..., tuple[Array, Any]]:
    """The explorer of a learner's state, compiled; takes the learner's and the state's arrays together."""
    count = sum(fixed_rest[2])

    def act(arrays: list[Array], *inputs: Any) -> tuple[Array, Any]:
        learner, state = unflatten(arrays[:count], fixed_rest), unflatten(arrays[count:], rest)
        return act_on_batch(learner.explorer(state), *inputs)

    return jax.jit(act)


@cache
def _hearing(fixed_rest: Any, rest: Any) -> Callable[..., Any]:
    """The `rewarded` of that explorer for a batch, compiled."""
    count = sum(fixed_rest[2])

    def hear(arrays: list[Array], *inputs: Any) -> Any:
        learner, state = unflatten(arrays[:count], fixed_rest), unflatten(arrays[count:], rest)
        return jax.vmap(learner.explorer(state).rewarded)(*inputs)

    return jax.jit(hear)


@cache
def _improving(fixed_rest: Any, rest: Any, n: int) -> Callable[..., tuple[list[Array], Tally]]:
    """One draw's updates of a learner's state, compiled; the old state and tally are given up."""

    def improve(
        arrays: list[Array], tally: Tally, fixed: list[Array], batch: Any, key: PRNGKeyArray, update: Array
    ) -> tuple[list[Array], Tally]:
        learner, state = unflatten(fixed, fixed_rest), unflatten(arrays, rest)
        state, metrics = _improve(learner, state, batch, jax.random.fold_in(key, update), n)
        return flatten(state)[0], tally.add(metrics, update + n)

    return jax.jit(improve, donate_argnums=(0, 1))
