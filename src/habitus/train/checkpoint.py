"""Checkpoints: atomic and asynchronous, through Orbax."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from habitus.core.errors import CheckpointError
from habitus.core.trees import is_array


def to_host(tree: PyTree) -> list[np.ndarray]:
    """The array leaves as NumPy copies that nothing else owns; random keys as their data."""

    def one(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        # a copy, as the original's buffer is donated to the next chunk while this is being written
        return np.array(x, copy=True)

    return [one(x) for x in jax.tree.leaves(tree) if is_array(x)]


def from_host(tree: PyTree, leaves: list[np.ndarray]) -> PyTree:
    """`tree` with its array leaves replaced, in order. Inverse of `to_host`."""
    queue = iter(leaves)

    def one(x: Any) -> Any:
        if not is_array(x):
            return x
        new = next(queue)
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jnp.asarray(new), impl=jax.random.key_impl(x))
        return jnp.asarray(new) if isinstance(x, jax.Array) else new

    return jax.tree.map(one, tree)


class Checkpoints:
    """The checkpoints of one run: the latest few, and the best by evaluation return.

    Orbax takes half a second to import, so it is imported in the background while the first chunk
    compiles.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        self._manager: Any = None
        self._importer = threading.Thread(target=self._open, daemon=True)
        self._importer.start()

    def _open(self) -> None:
        logging.getLogger("absl").setLevel(logging.ERROR)
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

        best = keep.BestN(get_metric_fn=lambda m: m["return"], n=1, keep_checkpoints_without_metrics=False)
        policy = keep.AnyPreservationPolicy([keep.LatestN(n=self.keep), best])
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, enable_async_checkpointing=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ocp, self._manager = ocp, ocp.CheckpointManager(self.folder.resolve(), options=options)

    @property
    def manager(self) -> Any:
        """The Orbax manager, once it is imported."""
        self._importer.join()
        if self._manager is None:
            raise CheckpointError(f"checkpoints cannot be kept in {self.folder}; is the folder writable?")
        return self._manager

    def latest(self) -> int | None:
        """The update of the newest whole checkpoint, or None."""
        return self.manager.latest_step()

    def path(self, update: int) -> Path:
        """Where the checkpoint of an update lies."""
        return self.folder / str(update)

    def save(self, update: int, leaves: list[np.ndarray], score: float | None) -> None:
        """Writes in the background; a kill leaves either the whole checkpoint or none."""
        if update in self.manager.all_steps():
            return
        named = {f"{i:04d}": leaf for i, leaf in enumerate(leaves)}
        metrics = None if score is None or not np.isfinite(score) else {"return": float(score)}
        self.manager.save(update, args=self._ocp.args.StandardSave(named), metrics=metrics)

    def load(self, update: int, like: list[np.ndarray]) -> list[np.ndarray]:
        """The leaves of a checkpoint.

        Raises:
            CheckpointError: if they do not have the shapes of `like`.
        """
        self.manager.wait_until_finished()
        found = self._ocp.StandardCheckpointer().restore(self.path(update).resolve() / "default")
        leaves = [np.asarray(found[name]) for name in sorted(found)]
        same = len(leaves) == len(like) and all(
            a.dtype == b.dtype and (a.shape == b.shape or a.shape[1:] == b.shape[1:])
            for a, b in zip(leaves, like, strict=True)
        )
        if not same:
            raise CheckpointError(
                f"the checkpoint {self.path(update)} is of a run with other networks, sizes or seeds; "
                "resume with the settings in its config.json."
            )
        return leaves

    def close(self) -> None:
        """Waits until everything is on disk."""
        self.manager.wait_until_finished()
        self.manager.close()
