"""What converting a log larger than the memory it may take costs: peak memory and time from each format to each.

    python bench/convert_memory.py                 # 2.2 GiB from each of five formats to each: 20 GB of disk
    python bench/convert_memory.py --ring          # each reader and each writer once: 7 GB
    python bench/convert_memory.py --bytes 1e8     # a small one

Each conversion is a process of its own; its peak is what Linux says of it, with Python and JAX, which take the same
memory before the first row. The log is made a piece at a time as well.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NAMES = {"npz": "log.npz", "d4rl": "log.hdf5", "minari": "log-v0", "lerobot": "robot", "rlds": "1.0.0"}
WIDTH, ACTIONS, EPISODE = 240, 12, 1_000
ROW = 4 * (2 * WIDTH + ACTIONS + 1) + 2  # bytes


def made(size: float):
    """A log of `size` bytes that exists a piece at a time."""
    import numpy as np
    from gymnasium import spaces

    from habitus.data.stream import Piece, Stream

    episodes = max(2, int(size / (ROW * EPISODE)))

    def pieces() -> Iterator[Piece]:
        for episode in range(episodes):
            rng = np.random.default_rng(episode)
            seen = rng.standard_normal((EPISODE + 1, WIDTH), np.float32)
            ends = np.arange(EPISODE) == EPISODE - 1
            columns = {
                "obs": seen[:-1],
                "action": rng.uniform(-1, 1, (EPISODE, ACTIONS)).astype(np.float32),
                "reward": rng.standard_normal(EPISODE, np.float32),
                "next_obs": seen[1:],
                "terminated": ends & (episode % 2 == 0),
                "truncated": ends & (episode % 2 == 1),
            }
            yield Piece(columns, np.zeros(1, np.int64))

    observed = spaces.Box(-np.inf, np.inf, (WIDTH,), np.float32)
    acted = spaces.Box(-1, 1, (ACTIONS,), np.float32)
    return Stream(pieces(), Path("made"), observed, acted, {"task": "made"}, episodes * EPISODE)


def convert_once(source: str, out: str, format: str, size: float, piece: int | None) -> None:
    """One conversion in this process; prints what it took."""
    import h5py  # noqa: F401  so that the memory of these counts as there before the first row
    import jax
    import PIL.Image  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    from habitus.data import stream, summary
    from habitus.data.io import MODULES, convert

    jax.numpy.zeros(1)
    if piece is not None:
        stream.PIECE_BYTES = summary.PIECE_BYTES = piece
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    if source == "made":
        MODULES[format].write(made(size), Path(out))
    else:
        convert(source, out, format=format)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"before": before, "peak": peak, "seconds": time.perf_counter() - start}))


def measure(source: str, out: Path, format: str, size: float, piece: int | None) -> dict[str, float]:
    """One conversion in a process of its own: bytes before and at the peak, seconds."""
    command = [sys.executable, __file__, "--once", source, str(out), format, "--bytes", str(size)]
    command += [] if piece is None else ["--piece", str(piece)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_all(
    folder: Path, size: float, piece: int | None = None, formats: tuple[str, ...] = tuple(NAMES), ring: bool = False
) -> dict[tuple[str, str], dict[str, float]]:
    """Every pair of formats; or a ring, in which each reader and each writer has its turn once."""
    found: dict[tuple[str, str], dict[str, float]] = {}

    def one(source: str, target: str, out: Path) -> None:
        origin = source if source == "made" else str(folder / source / NAMES[source])
        found[source, target] = measure(origin, out, target, size, piece)
        report(found, source, target)

    if ring:
        one("made", formats[0], folder / formats[0] / NAMES[formats[0]])
        for source, target in itertools.pairwise((*formats, formats[0])):
            one(source, target, folder / target / NAMES[target])
            shutil.rmtree(folder / source)
        return found
    for target in formats:
        one("made", target, folder / target / NAMES[target])
    for source, target in itertools.product(formats, formats):
        one(source, target, folder / "out" / NAMES[target])
        shutil.rmtree(folder / "out")
    return found


def report(found: dict[tuple[str, str], dict[str, float]], source: str, target: str) -> None:
    """One line as soon as it is known, to the side of the table."""
    one = found[source, target]
    print(f"{source} -> {target}: {one['peak'] / 2**20:.0f} MiB, {one['seconds']:.0f} s", file=sys.stderr, flush=True)


def table(found: dict[tuple[str, str], dict[str, float]]) -> str:
    """Peak memory and time of each pair, as Markdown."""
    lines = ["| from | to | peak, MiB | before the first row, MiB | seconds |", "|---|---|---:|---:|---:|"]
    for (source, target), one in found.items():
        peak, before = (f"{one[name] / 2**20:.0f}" for name in ("peak", "before"))
        lines.append(f"| {source} | {target} | {peak} | {before} | {one['seconds']:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=float, default=2.2 * 2**30, help="that the log takes in memory")
    parser.add_argument("--piece", type=int, help="bytes of a piece; by default the library's")
    parser.add_argument(
        "--ring", action="store_true", help="npz, d4rl, minari, lerobot, rlds, npz: one after the other"
    )
    parser.add_argument("--once", nargs=3, metavar=("SOURCE", "OUT", "FORMAT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        convert_once(*arguments.once, arguments.bytes, arguments.piece)
    else:
        with tempfile.TemporaryDirectory() as work:
            print(table(measure_all(Path(work), arguments.bytes, arguments.piece, ring=arguments.ring)))
