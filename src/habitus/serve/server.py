"""The policy server: WebSocket for requests, a page with live latencies at `/`."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import importlib.util
import ipaddress
import itertools
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlsplit

from habitus.core.domains import require
from habitus.core.errors import ConfigError, MissingExtra
from habitus.core.policy import Deployed
from habitus.core.spec import space_to_json
from habitus.serve.engine import Engine
from habitus.serve.page import PAGE, POLICY
from habitus.serve.protocol import VERSION, ServeError, pack, unpack
from habitus.serve.sessions import ServedSession, Tally

HARD_LIMIT = 16  # times max_bytes: beyond it a message is not even read, and its connection ends


class PolicyServer:
    """Serves one policy to several sessions. A session is a connection, and has its own carry and random numbers.

    Args:
        hz: control rate; an answer that takes longer than `1 / hz` missed its deadline.
        host: where to listen. Anything but loopback needs a token.
        port: 0 for any that is free.
        token: that every connection must show.
        batch: most observations of one request.
        chunk: actions of an answer that is a chunk.
        max_sessions: how many may be connected at once.
        max_bytes: of one message; by default what the largest request needs, and some more.

    Raises:
        ConfigError: if a number is out of its domain, or an open host has no token.
        MissingExtra: if the extra `serve` is not installed.
    """

    def __init__(
        self,
        policy: Deployed,
        *,
        hz: float = 50.0,
        host: str = "127.0.0.1",
        port: int = 8765,
        token: str | None = None,
        batch: int = 1,
        chunk: int = 1,
        max_sessions: int = 16,
        max_bytes: int | None = None,
    ):
        require(hz > 0, f"hz must be above 0, but is {hz}.")
        require(0 <= port < 65536, f"port must be from 0 to 65535, but is {port}.")
        require(max_sessions >= 1, f"max_sessions must be 1 or more, but is {max_sessions}.")
        require(max_bytes is None or max_bytes >= 64, f"max_bytes must be 64 or more, but is {max_bytes}.")
        if not token and not is_loopback(host):
            raise ConfigError(f"{host} can be reached from other machines; give a token, or serve on 127.0.0.1.")
        if not all(importlib.util.find_spec(name) for name in ("msgpack", "websockets")):
            raise MissingExtra("the policy server", "serve")
        self.engine = Engine(policy, batch, chunk)
        self.hz, self.host, self.port, self.token, self.max_sessions = hz, host, port, token, max_sessions
        # a number as text in a list takes nine bytes of MessagePack, a byte of an image two
        self.max_bytes = max_bytes or 4096 + 4 * batch * self.engine.obs_bytes
        self.sessions: dict[int, ServedSession] = {}
        self.tally, self.numbers, self.compiled_s = Tally(), itertools.count(1), 0.0
        self.connected = 0
        self.worker = ThreadPoolExecutor(1, "policy")

    @property
    def url(self) -> str:
        """Where clients connect; the port is known once it listens."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ws://{host}:{self.port}"

    def run(self) -> None:
        """Compiles, says where it listens, and serves until it is interrupted."""
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(self._serve(None, True))

    @contextlib.contextmanager
    def background(self) -> Iterator[str]:
        """Serves from another thread meanwhile; gives the URL."""
        ready: list[Any] = []
        began = threading.Event()

        async def main() -> None:
            stop = asyncio.Event()
            ready.extend((asyncio.get_running_loop(), stop))
            await self._serve(stop, False, began)

        def body() -> None:
            try:
                asyncio.run(main())
            except BaseException as error:  # told to the thread that waits
                ready.append(error)
            finally:
                began.set()

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        began.wait()
        if len(ready) > 2:
            raise ready[2]
        try:
            yield self.url
        finally:
            ready[0].call_soon_threadsafe(ready[1].set)
            thread.join(10)

    async def _serve(self, stop: asyncio.Event | None, loud: bool, began: threading.Event | None = None) -> None:
        from websockets.asyncio.server import serve

        loop = asyncio.get_running_loop()
        self.compiled_s = await loop.run_in_executor(self.worker, self.engine.compile)
        listening = serve(
            self._connection,
            self.host,
            self.port,
            process_request=self._before,
            max_size=HARD_LIMIT * self.max_bytes,
            compression=None,
            server_header=None,
        )
        async with listening as server:
            self.port = next(iter(server.sockets)).getsockname()[1]
            if loud:
                print(f"compiled in {self.compiled_s:.1f} s; serving at {self.url}, page at http{self.url[2:]}/")
            if began is not None:
                began.set()
            await (stop.wait() if stop is not None else asyncio.Future())

    # --- before a connection

    def _before(self, connection: Any, request: Any) -> Any:
        """Answers pages, and refuses connections that may not be; None lets one through."""
        parts = urlsplit(request.path)
        refused = self._refused(request, parse_qs(parts.query))
        if refused is not None:
            return connection.respond(*refused)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            if self.connected >= self.max_sessions:
                return connection.respond(503, f"the server takes {self.max_sessions} sessions; close one.\n")
            return None
        if parts.path == "/stats":
            return _page(connection, json.dumps(self.stats()), "application/json")
        if parts.path == "/":
            return _page(connection, PAGE, "text/html; charset=utf-8")
        return connection.respond(404, "there is a page at / and figures at /stats.\n")

    def _refused(self, request: Any, query: dict[str, list[str]]) -> tuple[int, str] | None:
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "pages of other sites may not use this server.\n"  # a browser would let them
        if self.token is None:
            name = urlsplit(f"//{host}").hostname or ""
            # a name that an attacker's name server points here is not loopback's
            return None if is_loopback(name) else (403, "without a token the server answers only to loopback.\n")
        shown = request.headers.get("Authorization", "").removeprefix("Bearer ") or query.get("token", [""])[0]
        if hmac.compare_digest(shown.encode(), self.token.encode()):
            return None
        return 401, "the token is missing or wrong; send 'Authorization: Bearer TOKEN'.\n"

    def stats(self) -> dict[str, Any]:
        """What the page shows."""
        sessions = [session.summary() for session in list(self.sessions.values())]
        own = {"hz": self.hz, "deadline_ms": 1e3 / self.hz, "max_sessions": self.max_sessions}
        return own | {"sessions": sessions, "latency": self.tally.summary()}

    # --- a connection

    async def _connection(self, socket: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        if self.connected >= self.max_sessions:  # several may have passed the first check at once
            await socket.close(1013, "too many sessions")
            return
        self.connected += 1
        session = ServedSession(next(self.numbers), self.engine, 1e3 / self.hz, self.tally)
        self.sessions[session.number] = session
        try:
            await socket.send(pack(self._hello(session)))
            async for message in socket:
                await socket.send(await self._reply(session, message, time.perf_counter()))
        except ConnectionClosed:
            pass
        finally:
            self.connected -= 1
            del self.sessions[session.number]

    def _hello(self, session: ServedSession) -> dict[str, Any]:
        spec, engine = self.engine.spec, self.engine
        spaces = {"observation": space_to_json(spec.observation_space), "action": space_to_json(spec.action_space)}
        limits = {"batch": engine.batch, "chunk": engine.chunk, "max_bytes": self.max_bytes}
        head = {"op": "hello", "version": VERSION, "session": session.number, "deadline_ms": session.deadline_ms}
        return head | {"spaces": spaces} | limits

    async def _reply(self, session: ServedSession, data: bytes | str, arrived: float) -> bytes:
        """The answer to one message, whatever it holds."""
        number = None
        try:
            if len(data) > self.max_bytes:
                raise ServeError("too_large", f"the message has {len(data)} bytes; at most {self.max_bytes} are taken.")
            message = unpack(data)
            number = message.get("id") if type(message.get("id")) is int else None
            loop = asyncio.get_running_loop()
            return pack(await loop.run_in_executor(self.worker, session.answer, message, arrived))
        except ServeError as error:
            code, text = error.code, str(error)
        except Exception as error:  # a fault of ours must not end the session, nor disturb another
            code, text = "internal", f"the server failed with a {type(error).__name__}; the session is as it was."
        self.tally.errors += 1
        return pack({"op": "error", "id": number, "code": code, "message": text})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _page(connection: Any, body: str, kind: str) -> Any:
    response = connection.respond(200, body)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = kind
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
