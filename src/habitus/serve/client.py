"""A client of the policy server, for robots and scripts; it needs no JAX."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from habitus.core.errors import MissingExtra
from habitus.serve.protocol import ServeError, array, pack, unpack


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer of the server.

    Attributes:
        action: [*action], with a leading axis for a batch, and one before that for a chunk.
        infer_ms: how long the policy took.
        queue_ms: how long the request waited for those of other sessions.
        staleness: age of the plan that was acted on, in steps: an int, or an array for a batch.
        deadline_met: whether both together kept the deadline.
        report: what else the policy reports.
    """

    action: np.ndarray
    infer_ms: float
    queue_ms: float
    staleness: Any
    deadline_met: bool
    report: dict[str, Any]


class Client:
    """A session with a policy server.

    Args:
        url: such as `ws://127.0.0.1:8765`.
        token: what the server wants to be shown, if anything.
        timeout: seconds to wait for an answer.

    Attributes:
        hello: what the server said of itself: spaces, deadline, limits.

    Raises:
        MissingExtra: if the extra `serve` is not installed.
        ServeError: `busy`, `unauthorised`, or `closed` if there is no server.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 30.0):
        try:
            from websockets.exceptions import InvalidStatus, WebSocketException
            from websockets.sync.client import connect
        except ImportError:
            raise MissingExtra("the client of a policy server", "serve") from None
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.timeout, self.number, self.step = timeout, 0, 0
        try:
            self.socket = connect(
                url, additional_headers=headers, compression=None, max_size=None, open_timeout=timeout, proxy=None
            )
        except InvalidStatus as error:
            response = error.response
            code = {401: "unauthorised", 403: "unauthorised", 503: "busy"}.get(response.status_code, "closed")
            raise ServeError(code, (response.body or b"").decode(errors="replace").strip()) from None
        except (OSError, WebSocketException) as error:
            raise ServeError("closed", f"there is no policy server at {url} ({error}).") from None
        self.hello = self._receive()

    def reset(self, seed: int | None = None, batch: int | None = None, members: list[int] | None = None) -> None:
        """Begins an episode; or those of some members of a batch, while the others go on.

        Args:
            seed: of the policy's random numbers, which otherwise go on.
            batch: how many observations each `act` will bring; None for one without a batch axis.
        """
        self._ask({"op": "reset", "seed": seed, "batch": batch, "members": members})
        if members is None:
            self.step = 0

    def act(self, obs: Any, reward: Any = None, chunk: bool = False) -> Reply:
        """What to do next.

        Args:
            obs: an observation, or a batch of them with a leading axis.
            reward: what the last action earned, for policies that must hear it.
            chunk: whether to answer with as many actions as the server was started for.

        Raises:
            ServeError: with a code for what the server refused.
        """
        found = self._ask({"op": "act", "obs": obs, "step": self.step, "reward": reward, "chunk": chunk})
        self.step += self.hello["chunk"] if chunk else 1
        report = {name: _value(value) for name, value in found["report"].items()}
        times = {name: found[name] for name in ("infer_ms", "queue_ms", "deadline_met")}
        return Reply(array(found["action"]), staleness=_value(found["staleness"]), report=report, **times)

    def close(self) -> None:
        """Ends the session."""
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        from websockets.exceptions import ConnectionClosed

        self.number += 1
        try:
            self.socket.send(pack(message | {"id": self.number}))
        except ConnectionClosed as error:
            raise ServeError("closed", f"the server ended the connection ({error}).") from None
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        from websockets.exceptions import ConnectionClosed

        try:
            found = unpack(self.socket.recv(timeout=self.timeout))
        except TimeoutError:
            self.close()  # a late answer must not be taken for the next one
            raise ServeError("closed", f"the server did not answer within {self.timeout} s.") from None
        except ConnectionClosed as error:
            code = {1009: "too_large", 1013: "busy"}.get(error.rcvd.code if error.rcvd else 0, "closed")
            raise ServeError(code, f"the server ended the connection ({error}).") from None
        if found.get("op") == "error":
            raise ServeError(str(found.get("code")), str(found.get("message")))
        return found


def _value(value: Any) -> Any:
    """An array, or a plain number where it has no axes."""
    found = array(value)
    return found if found.ndim else found.item()
