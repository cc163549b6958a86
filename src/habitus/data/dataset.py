"""A log of decisions as columns, its episodes indexed; in memory, or on disk and read where it is needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float, Int

from habitus.core.errors import ConfigError, DataError, SpaceMismatch
from habitus.core.experience import Trajectory, Transition
from habitus.core.spec import Spec
from habitus.data import canonical, infer
from habitus.data.defects import column_leaves, raise_errors, structure
from habitus.data.summary import Summary, summarise

COLUMNS = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
Rows = Any


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Decisions and their consequences, episode after episode, in the user's own spaces.

    Columns are NumPy arrays, possibly memory-mapped; `obs` and `next_obs` are dicts or tuples of
    arrays where the observation space is Dict or Tuple.

    Attributes:
        obs: observations [rows, ...].
        action: actions [rows, ...].
        reward: float32 [rows].
        next_obs: the true successors of `obs`, [rows, ...].
        terminated: bool [rows], whether the future after this row is worth nothing.
        truncated: bool [rows], whether only the recording stopped after this row.
        starts: int64 [episodes], the first row of each episode.
        observation_space: of one observation.
        action_space: of one action.
        meta: what is known of the origin, as plain data: `task`, `split`, `seed`, `maker`,
            `horizon`, `random_return`, `expert_return`, and whatever else the file said.
        cost: float32 [rows, costs], what must be kept low whatever the reward, or None.

    Raises:
        DataError: if a column does not have the shape or type that its space or its length demands.
    """

    obs: Any
    action: Any
    reward: Any
    next_obs: Any
    terminated: Any
    truncated: Any
    starts: Any
    observation_space: spaces.Space
    action_space: spaces.Space
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    cost: Any = None

    def __post_init__(self) -> None:
        found = structure(self.columns | {"starts": self.starts}, self.observation_space, self.action_space)
        raise_errors(found, self.name)

    @classmethod
    def from_arrays(
        cls,
        obs: Any,
        action: Any,
        reward: Any,
        terminated: Any,
        truncated: Any = None,
        next_obs: Any = None,
        *,
        cost: Any = None,
        starts: Any = None,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
        meta: dict[str, Any] | None = None,
        validate: bool = True,
    ) -> Dataset:
        """A data set from columns of equal length; what is left out is inferred.

        Costs: [rows, costs], or [rows] for a single one; `meta["costs"]` may hold their names.
        Spaces: see `infer.observation_space_of` and `infer.action_space_of`.
        Episodes: end where `terminated` or `truncated` says so, or before each of `starts`. If
        neither `truncated` nor `starts` is given but `next_obs` is, an episode also ends where the
        successor is not the next row's observation.
        Successors: taken from the next row. The last row of an episode that does not terminate then
        has none and is dropped, reward and all, and the row before it becomes the truncated one;
        `meta["dropped_rows"]` counts them.
        The values are looked at for defects unless `validate` is False.

        Raises:
            DataError: naming rows, field and remedy, if anything is malformed.
        """
        from habitus.data.validate import check  # which needs this class

        obs, next_obs = infer.arrays(obs), infer.arrays(next_obs)
        action, reward, terminated = infer.arrays(action), infer.arrays(reward), infer.arrays(terminated)
        columns = {"obs": obs, "next_obs": obs if next_obs is None else next_obs, "action": action}
        columns["reward"] = reward.astype(np.float32, copy=False) if reward.dtype.kind in "iuf" else reward
        columns["terminated"] = infer.flags(terminated)
        columns["truncated"] = np.zeros_like(columns["terminated"]) if truncated is None else infer.flags(truncated)
        if cost is not None:
            columns["cost"] = infer.costs(cost)
        bounds = np.zeros(1, np.int64) if starts is None else np.asarray(starts)
        observation_space = observation_space or infer.observation_space_of(obs, next_obs)
        action_space = action_space or infer.action_space_of(action)
        raise_errors(structure(columns | {"starts": bounds}, observation_space, action_space), "the data set")

        done = columns["terminated"] | columns["truncated"]
        if truncated is None and starts is None and next_obs is not None:
            columns["truncated"] = infer.breaks(obs, next_obs) & ~columns["terminated"]
            done = columns["terminated"] | columns["truncated"]
        if starts is None:
            bounds = infer.starts_of(done)
        made = cls(
            **columns, starts=bounds, observation_space=observation_space, action_space=action_space, meta=meta or {}
        )
        if truncated is None:
            made = made._sealed()
        if next_obs is None:
            made = made._with_successors()
        raise_errors(check(made) if validate else [], made.name)
        return made

    # --- size and episodes

    @property
    def columns(self) -> dict[str, Any]:
        """The six columns by name, and `cost` if there is one."""
        return {name: getattr(self, name) for name in COLUMNS} | ({} if self.cost is None else {"cost": self.cost})

    @property
    def costs(self) -> tuple[str, ...]:
        """Names of the costs, in order: those of `meta["costs"]`, or plain ones; none without costs."""
        count = 0 if self.cost is None else self.cost.shape[1]
        named = self.meta.get("costs", ())
        if isinstance(named, (list, tuple)) and len(named) == count:
            return tuple(map(str, named))
        return ("cost",) if count == 1 else tuple(f"cost {i}" for i in range(count))

    @property
    def switches(self) -> tuple[int, ...]:
        """Entries of a real action that are on or off: those of `meta["switches"]`."""
        return tuple(map(int, self.meta.get("switches", ())))

    @property
    def name(self) -> str:
        """What error messages call it."""
        parts = [str(self.meta[key]) for key in ("task", "split") if key in self.meta]
        return "-".join(parts) or "the data set"

    def __len__(self) -> int:
        return len(self.reward)

    def __repr__(self) -> str:
        return f"Dataset({self.name}: {len(self):,} rows, {len(self.starts):,} episodes)"

    @property
    def nbytes(self) -> int:
        """Bytes of all columns, on disk or in memory."""
        return sum(leaf.nbytes for name, column in self.columns.items() for _, leaf in column_leaves(name, column))

    @property
    def ends(self) -> Int[np.ndarray, "episodes"]:
        """The last row of each episode."""
        return np.append(self.starts[1:], len(self)).astype(np.int64) - 1

    @property
    def lengths(self) -> Int[np.ndarray, "episodes"]:
        """Rows of each episode."""
        return self.ends - self.starts + 1

    @cached_property
    def returns(self) -> Float[np.ndarray, "episodes"]:
        """Undiscounted return of each episode; of an incomplete one, what was recorded of it."""
        return np.add.reduceat(self.reward, self.starts, dtype=np.float64)

    @cached_property
    def to_go(self) -> Float[np.ndarray, "rows"]:
        """Undiscounted sum of the rewards from each row to the end of its episode, float32."""
        total = np.cumsum(np.asarray(self.reward)[::-1], dtype=np.float64)[::-1]
        after = np.append(total, 0.0)[self.ends + 1]
        return (total - np.repeat(after, self.lengths)).astype(np.float32)

    @cached_property
    def complete(self) -> Bool[np.ndarray, "episodes"]:
        """Which episodes were recorded to their end, by termination or truncation."""
        return np.asarray(self.terminated[self.ends] | self.truncated[self.ends])

    def episode_of(self, rows: Rows) -> np.ndarray:
        """The episode that each row belongs to."""
        return np.asarray(np.searchsorted(self.starts, rows, side="right") - 1)

    # --- reading

    def transitions(self, rows: Rows) -> Transition:
        """The transitions of `rows` (an integer, a slice, or an array of any shape)."""
        return Transition(**{name: _pick(column, rows) for name, column in self.columns.items()})

    def episode(self, index: int) -> Transition:
        """One episode, with a leading time axis."""
        return self.transitions(slice(int(self.starts[index]), int(self.ends[index]) + 1))

    def windows(self, length: int, rows: Any, before: int = 0) -> Trajectory:
        """For each of `rows`, the `length` transitions from `before` steps ahead of it on: axes [*rows, length].

        Where the episode begins later or ends sooner, its first or last transition is repeated, and not `valid`.
        Whole episodes are the windows from `starts` on.
        """
        if length < 1 or before < 0:
            raise ConfigError(
                f"a window is {length} steps long and begins {before} before its row, expected at least 1 and 0."
            )
        episodes = self.episode_of(rows)
        first, last = self.starts[episodes][..., None], self.ends[episodes][..., None]
        wanted = np.asarray(rows)[..., None] - before + np.arange(length)
        found = np.clip(wanted, first, last)
        return Trajectory(
            steps=self.transitions(found),
            valid=jnp.asarray((wanted >= first) & (wanted <= last)),
            time=jnp.asarray(found - first, jnp.int32),
            to_go=jnp.asarray(self.to_go[found]),
            left=jnp.asarray(last - found, jnp.int32),
        )

    # --- as learners see it

    @property
    def spec(self) -> Spec:
        """The contract that learners are given: the user's spaces, and this log in canonical form."""
        horizon = self.meta.get("horizon")
        spaces = self.observation_space, self.action_space
        return Spec(*spaces, horizon, self.canonical(), costs=self.costs, switches=self.switches)

    def canonical(self) -> Dataset:
        """The same log in canonical form (see `habitus.core.spec`); columns on disk are converted as they are read."""
        return self._canonical

    @cached_property
    def _canonical(self) -> Dataset:
        spec = Spec(self.observation_space, self.action_space)
        observation_space, action_space = canonical.canonical_spaces(spec)
        changed = {
            "obs": canonical.canonical_obs(spec, self.obs),
            "next_obs": canonical.canonical_obs(spec, self.next_obs),
            "action": canonical.canonical_action(spec, self.action),
        }
        if all(getattr(self, name) is column for name, column in changed.items()):
            return self
        return dataclasses.replace(self, **changed, observation_space=observation_space, action_space=action_space)

    @property
    def mean(self) -> Float[np.ndarray, "..."]:
        """Mean of the canonical observations, float32 [*obs]."""
        return self._summary.mean.astype(np.float32)

    @property
    def std(self) -> Float[np.ndarray, "..."]:
        """Population standard deviation of the canonical observations, float32 [*obs]."""
        return self._summary.std.astype(np.float32)

    @cached_property
    def _summary(self) -> Summary:
        if isinstance(self.observation_space, spaces.Discrete):
            raise SpaceMismatch("observations are integers, which have no mean; normalise vectors only.")
        return summarise(self.canonical().obs)

    # --- making others

    def subset(self, rows: Any = None, *, episodes: Any = None) -> Dataset:
        """The data set of some rows or of some episodes (integers or a mask), in the order given.

        Consecutive rows of an episode stay together; an episode that is cut ends truncated.
        """
        if (rows is None) == (episodes is None):
            raise ConfigError("subset takes rows or episodes, and exactly one of them.")
        if episodes is not None:
            chosen = np.arange(len(self.starts))[episodes]
            rows = np.concatenate([np.arange(self.starts[i], self.ends[i] + 1) for i in chosen])
        rows = np.arange(len(self))[rows]
        if len(rows) == 0:
            raise ConfigError("the subset is empty; choose at least one row.")
        follows = (np.diff(rows) == 1) & (np.diff(self.episode_of(rows)) == 0)
        made = self._rows(rows, np.concatenate([[0], np.flatnonzero(~follows) + 1]))
        return made._sealed(last=bool(rows[-1] != len(self) - 1))

    @staticmethod
    def concat(parts: Sequence[Dataset], meta: dict[str, Any] | None = None) -> Dataset:
        """The data sets one after the other; an unfinished last episode within ends truncated.

        Without `meta`, what all of them agree on is kept.

        Raises:
            SpaceMismatch: if their spaces differ.
            DataError: if some have other costs than others.
        """
        if not parts:
            raise ConfigError("concat needs at least one data set.")
        first = parts[0]
        for part in parts[1:]:
            Spec(first.observation_space, first.action_space).check_same(
                Spec(part.observation_space, part.action_space), part.name
            )
            if part.costs != first.costs:
                raise DataError(f"{part.name} has the costs {part.costs}, the log before it {first.costs}; align them.")
        offsets = np.cumsum([0, *map(len, parts[:-1])])
        shared = {k: v for k, v in first.meta.items() if all(k in p.meta and p.meta[k] == v for p in parts)}
        columns = {
            name: jax.tree.map(lambda *xs: np.concatenate([x[:] for x in xs]), *(getattr(p, name) for p in parts))
            for name in first.columns
        }
        starts = np.concatenate([part.starts + offset for part, offset in zip(parts, offsets, strict=True)])
        meta = shared if meta is None else meta
        return dataclasses.replace(first, **columns, starts=starts, meta=meta)._sealed()

    def _rows(self, rows: np.ndarray, starts: np.ndarray) -> Dataset:
        columns = {name: jax.tree.map(lambda leaf: leaf[rows], column) for name, column in self.columns.items()}
        return dataclasses.replace(self, **columns, starts=starts.astype(np.int64))

    def _sealed(self, last: bool = False) -> Dataset:
        """Every episode ends terminated or truncated; the last one only if `last`."""
        ends = self.ends if last else self.ends[:-1]
        truncated = np.array(self.truncated)
        truncated[ends] |= ~self.terminated[ends]
        return dataclasses.replace(self, truncated=truncated)

    def _with_successors(self) -> Dataset:
        """Successors from the next rows, without the rows that have none."""
        next_obs, known = infer.shifted(self.obs, np.asarray(self.terminated), self.ends)
        made = dataclasses.replace(self, next_obs=next_obs)
        if known.all():
            return made
        if not known.any():
            raise DataError(f"{self.name}: no row has a successor; pass next_obs, or episodes of two rows or more.")
        truncated = np.array(self.truncated)
        cut = self.ends[~known[self.ends] & (self.lengths > 1)]
        truncated[cut - 1] = truncated[cut]
        rows = np.flatnonzero(known)
        meta = self.meta | {"dropped_rows": len(self) - len(rows)}
        made = dataclasses.replace(made, truncated=truncated, meta=meta)
        return made._rows(rows, np.concatenate([[0], np.flatnonzero(np.diff(self.episode_of(rows))) + 1]))


def _pick(column: Any, rows: Rows) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[rows]), column)
