"""Load on the policy server: many sessions at a fixed rate, in peace and while things are killed.

    python bench/serving.py [--sessions 100] [--hz 50] [--seconds 60] [--disturb]

Trains a small policy, serves it with `habitus serve` in a process of its own, and asks from this process with a
client for each session. Every tick has a time at which it is due; a request that is late is sent at once. With
`--disturb`, connections are aborted at random and the server is killed and started again half-way; clients connect
anew, begin an episode and go on. Prints latencies as seen by the clients, missed deadlines, and whether every request
was answered once. Standard library, NumPy, and what `habitus[serve]` installs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

OBS = [1.0, 0.0, 0.5]
KILLS_A_SECOND = 2.0


@dataclass
class Tally:
    """What the clients saw."""

    latencies: list[float] = field(default_factory=list)  # seconds, from sending to the answer
    overdue: int = 0  # answers that came after the tick's period
    told_missed: int = 0  # answers in which the server says that it missed its deadline
    sent: int = 0
    answered: int = 0
    cut: int = 0  # requests whose connection ended before an answer
    wrong: int = 0  # answers to another request than the last one, or errors
    connections: int = 0


def trained(folder: Path) -> Path:
    """A saved policy: two hidden layers of 64."""
    import habitus

    habitus.learn("td3bc", data="pendulum-medium", steps=200, hidden=(64, 64), folder=folder)
    return folder


def serve(run: Path, port: int, args: argparse.Namespace) -> subprocess.Popen[bytes]:
    """The server, once it answers."""
    command = [sys.executable, "-m", "habitus.cli", "serve", str(run), "--hz", str(args.hz), "--port", str(port)]
    process = subprocess.Popen([*command, "--sessions", str(2 * args.sessions)], stdout=subprocess.DEVNULL)
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        if process.poll() is not None:
            sys.exit("the server ended before it listened.")
        time.sleep(0.1)
    sys.exit("the server did not listen within a minute.")


async def session(url: str, hz: float, until: float, tally: Tally, sockets: set[object]) -> None:
    """One client: connects, begins an episode, asks at every tick; connects anew where it was cut off."""
    period, due = 1 / hz, time.perf_counter() + random.random() / hz
    while time.perf_counter() < until:
        try:
            async with connect(url, compression=None, proxy=None) as link:
                sockets.add(link)
                tally.connections += 1
                try:
                    await link.recv()
                    number, due = 0, max(due, time.perf_counter())
                    while time.perf_counter() < until:
                        await asyncio.sleep(max(0.0, due - time.perf_counter()))
                        number += 1
                        await ask(link, number, period, tally)
                        due += period
                finally:
                    sockets.discard(link)
        except (OSError, WebSocketException):
            await asyncio.sleep(0.2)


async def ask(link: object, number: int, period: float, tally: Tally) -> None:
    """One request and its answer."""
    sent = time.perf_counter()
    tally.sent += 1
    try:
        await link.send(msgpack.packb({"op": "act", "id": number, "obs": OBS, "step": number - 1}))  # type: ignore[attr-defined]
        reply = msgpack.unpackb(await link.recv())  # type: ignore[attr-defined]
    except (OSError, WebSocketException):
        tally.cut += 1
        raise
    seconds = time.perf_counter() - sent
    tally.answered += 1
    tally.wrong += reply.get("op") == "error" or reply.get("id") != number
    tally.latencies.append(seconds)
    tally.overdue += seconds > period
    tally.told_missed += not reply.get("deadline_met", False)


async def load(url: str, args: argparse.Namespace, tally: Tally, restart: object) -> None:
    """All sessions at once, and what disturbs them."""
    until, sockets = time.perf_counter() + args.seconds, set()
    clients = [asyncio.create_task(session(url, args.hz, until, tally, sockets)) for _ in range(args.sessions)]
    half = time.perf_counter() + args.seconds / 2
    while args.disturb and time.perf_counter() < until:
        await asyncio.sleep(random.expovariate(KILLS_A_SECOND))
        if sockets:
            random.choice(list(sockets)).transport.abort()
        if restart is not None and time.perf_counter() > half:
            await asyncio.get_running_loop().run_in_executor(None, restart)
            restart = None
    await asyncio.gather(*clients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--hz", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--disturb", action="store_true", help="abort connections, and restart the server half-way")
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        run = trained(Path(folder) / "run")
        servers = [serve(run, port, args)]

        def restart() -> None:
            os.kill(servers[-1].pid, signal.SIGKILL)
            servers[-1].wait()
            servers.append(serve(run, port, args))

        tally = Tally()
        try:
            asyncio.run(load(f"ws://127.0.0.1:{port}", args, tally, restart))
        finally:
            servers[-1].terminate()
            servers[-1].wait()
    print(json.dumps(summary(tally, args), indent=1))


def summary(tally: Tally, args: argparse.Namespace) -> dict[str, object]:
    """The figures; latencies in milliseconds."""
    p50, p99, p999 = np.percentile(1e3 * np.asarray(tally.latencies), (50, 99, 99.9)).round(2).tolist()
    return {
        "sessions": args.sessions, "hz": args.hz, "seconds": args.seconds, "disturbed": args.disturb,
        "requests": tally.sent, "answered": tally.answered, "cut off with their connection": tally.cut,
        "lost": tally.sent - tally.answered - tally.cut, "wrong": tally.wrong,
        "answers per second": round(tally.answered / args.seconds, 1),
        "p50_ms": p50, "p99_ms": p99, "p99.9_ms": p999,
        "later than a period": round(tally.overdue / max(tally.answered, 1), 5),
        "deadline missed, as the server says": round(tally.told_missed / max(tally.answered, 1), 5),
        "connections": tally.connections,
    }  # fmt: skip


if __name__ == "__main__":
    main()
