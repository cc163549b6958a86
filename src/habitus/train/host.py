"""A uniform ring buffer in NumPy, for worlds that run in Python."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from habitus.core.experience import Transition
from habitus.core.spec import Spec


class HostBuffer:
    """The last `capacity` transitions; changes in place."""

    def __init__(self, spec: Spec, capacity: int):
        obs = np.zeros((capacity, *spec.obs_shape), spec.obs_dtype)
        self.data = Transition(
            obs=obs,
            action=np.zeros((capacity, *spec.action_shape), spec.action_dtype),
            reward=np.zeros(capacity, np.float32),
            terminated=np.zeros(capacity, bool),
            truncated=np.zeros(capacity, bool),
            next_obs=np.zeros_like(obs),
        )
        self.capacity, self.position, self.size = capacity, 0, 0

    def add(self, rows: Transition) -> None:
        """Overwrites the oldest rows."""
        n = rows.reward.shape[0]
        at = slice(self.position, self.position + n)
        for store, new in zip(jax.tree.leaves(self.data), jax.tree.leaves(rows), strict=True):
            store[at] = new
        self.position, self.size = (self.position + n) % self.capacity, min(self.size + n, self.capacity)

    def sample(self, key: PRNGKeyArray, n: int) -> Transition:
        """`n` rows, uniformly and with replacement; the key decides which."""
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        rows = rng.integers(0, self.size, n)
        return jax.tree.map(lambda x: x[rows], self.data)

    def arrays(self) -> dict[str, np.ndarray]:
        """Contents and position, for a checkpoint; only the rows that are filled."""
        leaves = jax.tree.leaves(jax.tree.map(lambda x: x[: self.size], self.data))
        head = {"position": np.asarray(self.position), "size": np.asarray(self.size)}
        return head | {f"column{i}": leaf for i, leaf in enumerate(leaves)}

    def load(self, saved: dict[str, np.ndarray]) -> None:
        """Puts the contents of a checkpoint back."""
        self.position, self.size = int(saved["position"]), int(saved["size"])
        for i, store in enumerate(jax.tree.leaves(self.data)):
            store[: self.size] = saved[f"column{i}"]
