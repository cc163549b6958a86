"""Columns in the canonical form of `habitus.core.spec`, converted when read where they do not fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from gymnasium import spaces

from habitus.core.spec import Spec

CHUNK = 65_536  # rows converted or scanned at once


class LazyColumn:
    """A column on disk that is converted as it is read: `column[rows]` is an array in canonical form.

    Attributes:
        shape: [rows, ...] after conversion.
        dtype: after conversion.
    """

    def __init__(self, raw: Any, encode: Callable[[Any], Any], shape: tuple[int, ...], dtype: np.dtype):
        self._raw, self._encode = raw, jax.jit(jax.vmap(encode))
        self._rows = len(jax.tree.leaves(raw)[0])
        self.shape, self.dtype = (self._rows, *shape), dtype

    def __len__(self) -> int:
        return self._rows

    @property
    def nbytes(self) -> int:
        """Bytes of the column once converted."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            return self._convert(rows)
        index = np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == bool else index
        return self._convert(index.ravel()).reshape(*index.shape, *self.shape[1:])

    def _convert(self, rows: Any) -> np.ndarray:
        picked = jax.tree.map(lambda leaf: np.asarray(leaf[rows]), self._raw)
        if len(jax.tree.leaves(picked)[0]) == 0:
            return np.empty((0, *self.shape[1:]), self.dtype)
        with jax.ensure_compile_time_eval():  # whoever reads a log may be compiling
            return np.asarray(self._encode(picked))

    def read(self) -> np.ndarray:
        """The whole column in memory."""
        out = np.empty(self.shape, self.dtype)
        for start in range(0, len(self), CHUNK):
            out[start : start + CHUNK] = self[start : start + CHUNK]
        return out


def canonical_obs(spec: Spec, column: Any) -> Any:
    """An observation column [rows, ...] in canonical form."""
    space = spec.observation_space
    plain = isinstance(space, spaces.Box) and len(space.shape) == 1 and column.dtype == np.float32
    if spec.image or plain or _plain_integers(space, column):
        return column
    return _converted(column, spec.encode_obs, spec.obs_shape, spec.obs_dtype)


def canonical_action(spec: Spec, column: Any) -> Any:
    """An action column [rows, ...] in canonical form."""
    space = spec.action_space
    plain = space == spaces.Box(-1, 1, spec.action_shape, np.float32) and column.dtype == np.float32
    flat_integers = (
        isinstance(space, spaces.MultiDiscrete)
        and column.ndim == 2
        and column.dtype == np.int32
        and not space.start.any()
    )
    if plain or flat_integers or _plain_integers(space, column):
        return column
    return _converted(column, spec.encode_action, spec.action_shape, spec.action_dtype)


def canonical_spaces(spec: Spec) -> tuple[spaces.Space, spaces.Space]:
    """The observation and action space of a log in canonical form."""
    obs: spaces.Space = spec.observation_space
    if spec.tabular:
        obs = spaces.Discrete(int(obs.n))  # type: ignore[attr-defined]
    elif not spec.image:
        obs = spaces.Box(-np.inf, np.inf, spec.obs_shape, np.float32)
    if spec.discrete:
        return obs, spaces.Discrete(spec.num_actions)
    if spec.multi_discrete:
        return obs, spaces.MultiDiscrete(spec.action_space.nvec.ravel())  # type: ignore[attr-defined]
    bound = 1.0 if spec.bounded else np.inf
    return obs, spaces.Box(-bound, bound, spec.action_shape, np.float32)


def on_disk(column: Any) -> bool:
    """Whether any part of a column is read from disk when it is indexed."""
    return any(isinstance(leaf, (np.memmap, LazyColumn)) for leaf in jax.tree.leaves(column))


def _plain_integers(space: spaces.Space, column: Any) -> bool:
    return isinstance(space, spaces.Discrete) and int(space.start) == 0 and column.dtype == np.int32


def _converted(column: Any, encode: Callable[[Any], Any], shape: tuple[int, ...], dtype: Any) -> Any:
    lazy = LazyColumn(column, encode, shape, np.dtype(dtype))
    return lazy if on_disk(column) else lazy.read()
