"""What a session of the policy server remembers, and how it answers a request."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import jax
import numpy as np

from habitus.serve.engine import Engine
from habitus.serve.protocol import ServeError, array

EDGES_MS = [0.1 * 2 ** (i / 2) for i in range(28)]  # 0.1 ms to 1.2 s


class Tally:
    """Latencies of the last requests of all sessions, and counts since the start."""

    def __init__(self) -> None:
        self.latencies: deque[float] = deque(maxlen=4096)
        self.acts = self.missed = self.errors = 0

    def add(self, latency_ms: float, met: bool) -> None:
        """One answered `act`."""
        self.latencies.append(latency_ms)
        self.acts, self.missed = self.acts + 1, self.missed + (not met)

    def summary(self) -> dict[str, Any]:
        """Counts, percentiles in ms, and a histogram: requests below each edge and not below the one before."""
        known = np.asarray(self.latencies)
        p50, p99 = np.percentile(known, (50, 99)).tolist() if len(known) else (None, None)
        counts = np.bincount(np.searchsorted(EDGES_MS, known, side="right"), minlength=len(EDGES_MS) + 1)
        counted = {"acts": self.acts, "missed": self.missed, "errors": self.errors, "p50_ms": p50, "p99_ms": p99}
        return counted | {"edges_ms": EDGES_MS, "counts": counts.tolist()}


class ServedSession:
    """One connection: its carry, its random numbers, and where it is.

    Attributes:
        deadline_ms: within which an answer must be ready.
    """

    def __init__(self, number: int, engine: Engine, deadline_ms: float, tally: Tally):
        self.number, self.engine, self.deadline_ms, self.tally = number, engine, deadline_ms, tally
        self.key, self.tick, self.step, self.last_id = jax.random.key(0), 0, 0, -1
        self.batch: int | None = None
        self.carry = engine.single
        self.missed, self.latency_ms, self.staleness = 0, 0.0, 0.0

    def answer(self, message: dict[str, Any], arrived: float) -> dict[str, Any]:
        """The reply to a request; the session changes only if it succeeds.

        Raises:
            ServeError: with the code for what is wrong.
        """
        number = message.get("id")
        if type(number) is not int or not 0 <= number < 2**53:
            raise ServeError("malformed", "id must be an integer from 0 that grows from request to request.")
        if number <= self.last_id:
            raise ServeError("out_of_order", f"id is {number}, but the last one was {self.last_id}; it must grow.")
        self.last_id = number
        operation = message.get("op")
        if operation == "reset":
            return self._reset(message)
        if operation == "act":
            return self._act(message, arrived)
        raise ServeError("malformed", "op must be 'reset' or 'act'.")

    def _reset(self, message: dict[str, Any]) -> dict[str, Any]:
        if message.get("members") is not None:
            self._reset_members(message["members"])
            return {"op": "reset", "id": self.last_id}
        seed, batch = message.get("seed"), message.get("batch")
        if seed is not None and (type(seed) is not int or not 0 <= seed < 2**32):
            raise ServeError("malformed", "seed must be an integer from 0 to 2^32 - 1.")
        if batch is not None and (type(batch) is not int or not 1 <= batch <= self.engine.batch):
            raise ServeError("wrong_shape", f"batch must be from 1 to {self.engine.batch}, what the server takes.")
        if batch is not None and self.engine.batch == 1:
            raise ServeError("wrong_shape", "this server takes one observation at a time; start it with a batch.")
        if seed is not None:
            self.key, self.tick = jax.random.key(seed), 0
        self.batch, self.step, self.staleness = batch, 0, 0.0
        self.carry = self.engine.single if batch is None else self.engine.many
        return {"op": "reset", "id": self.last_id}

    def _reset_members(self, members: Any) -> None:
        if self.batch is None:
            raise ServeError("out_of_order", "there is no batch yet; reset with batch before resetting members.")
        valid = isinstance(members, list) and all(type(i) is int and 0 <= i < self.batch for i in members)  # type: ignore[operator]
        if not valid:
            raise ServeError("malformed", f"members must be indices from 0 to {self.batch - 1}.")
        ended = np.isin(np.arange(self.engine.batch), members)
        self.carry = jax.tree.map(
            lambda new, old: np.where(ended.reshape(-1, *[1] * (new.ndim - 1)), new, old), self.engine.many, self.carry
        )

    def _act(self, message: dict[str, Any], arrived: float) -> dict[str, Any]:
        began = time.perf_counter()
        step = message.get("step")
        if step is not None and (type(step) is not int or step != self.step):
            raise ServeError("out_of_order", f"step is {step!r}, but {self.step} must follow; send them in order.")
        if "obs" not in message:
            raise ServeError("malformed", "act needs obs.")
        engine, batched = self.engine, self.batch is not None
        n = engine.chunk if message.get("chunk") else 1
        obs = engine.observation(message["obs"], self.batch)
        carry = self.carry
        if message.get("reward") is not None:
            carry = engine.hear(carry, self._reward(message["reward"]), batched)
        action, carry, report = engine.act(obs, carry, self.key, self.tick, n, batched)
        self.carry, self.tick, self.step = carry, self.tick + n, self.step + n
        if batched:
            action = action[:, : self.batch] if n > 1 else action[: self.batch]
            report = {name: value[: self.batch] for name, value in report.items()}
        now = time.perf_counter()
        self.latency_ms, met = 1e3 * (now - arrived), 1e3 * (now - arrived) <= self.deadline_ms
        self.staleness = float(np.max(report.get("staleness", 0)))
        self.missed += not met
        self.tally.add(self.latency_ms, met)
        return {
            "op": "act",
            "id": self.last_id,
            "action": action,
            "infer_ms": 1e3 * (now - began),
            "queue_ms": 1e3 * (began - arrived),
            "staleness": report.get("staleness", 0),
            "deadline_met": met,
            "report": report,
        }

    def _reward(self, value: Any) -> np.ndarray:
        reward, wanted = array(value), () if self.batch is None else (self.batch,)
        if reward.shape != wanted:
            raise ServeError("wrong_shape", f"reward has shape {list(reward.shape)}, but must have {list(wanted)}.")
        if not np.isfinite(reward).all():
            raise ServeError("not_finite", "reward holds NaN or infinity; send only finite numbers.")
        if self.batch is None:
            return reward
        return reward[np.minimum(np.arange(self.engine.batch), self.batch - 1)]

    def summary(self) -> dict[str, Any]:
        """Where the session is, for the page."""
        names = ("number", "batch", "step", "missed", "latency_ms", "staleness")
        return {name: getattr(self, name) for name in names}
