"""Times habitus against its peers, side by side: `python bench/run.py [--work W...] [--repeats N] [--peer P...]`.

Each side runs in a process of its own, one at a time, and the sides take turns (A B C A B C ...), so
that a machine that slows down slows all of them. Writes `bench/results.json` and the tables of
`docs/performance.md`. Standard library only.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from comparisons import COMPARISONS, HABITUS, Comparison
from environments import HERE, python_of
from machine import Others, describe, wait_until_idle
from table import write_tables

ROOT = HERE.parent
RESULTS = HERE / "results.json"
PAGE = ROOT / "docs" / "performance.md"
LONGEST_S = 600


def run_side(peer: str, work: str, scale: float) -> dict[str, Any]:
    """One measurement: the JSON object that the side's script prints last."""
    if peer == HABITUS:
        python, script = Path(sys.executable), HERE / "habitus_run.py"
    else:
        python, script = python_of(peer), HERE / "peers" / peer / "run.py"
    # Without byte code every import compiles its sources again, which would be timed as starting.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [str(python), str(script), work, "--scale", str(scale), "--started", str(time.time())]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        sys.exit(f"{peer} {work} ran longer than {LONGEST_S} s; run {script} {work} by hand to see why.")
    if done.returncode != 0:
        sys.exit(f"{peer} {work} failed; the end of what it said:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(comparison: Comparison, args: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one comparison, as it is kept in `results.json`."""
    sides = list(comparison.sides(args.peer))
    for peer, _ in sides:
        if peer != HABITUS:
            python_of(peer)
    if comparison.limits:
        # Reading a package from disk for the first time would be timed as starting.
        for peer, work in sides:
            run_side(peer, work, args.scale)
    rounds: list[dict[str, dict[str, Any]]] = []
    for number in range(args.repeats):
        rounds.append({})
        for peer, work in sides:
            if not args.anyway:
                wait_until_idle()
            with Others() as others:
                result = run_side(peer, work, args.scale)
            rounds[-1][f"{peer} {work}"] = result | {"others": others.share}
            shown = {k: round(v, 3) for k, v in result.items() if isinstance(v, float)}
            print(f"{comparison.work} {number + 1}/{args.repeats} {peer}: {shown}", file=sys.stderr, flush=True)
    return {"machine": describe(), "commit": commit(), "date": today(), "scale": args.scale, "rounds": rounds}


def commit() -> str:
    """The commit that is measured, with a + if files differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    dirty = subprocess.run([*git, "status", "--porcelain", "-uno", "src"], capture_output=True, text=True)
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else "unknown"


def today() -> str:
    """The date, in ISO form."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def main() -> None:
    parser = argparse.ArgumentParser(description="Times habitus against its peers.")
    parser.add_argument("--work", nargs="+", choices=list(COMPARISONS), default=list(COMPARISONS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer", nargs="+", choices=["sb3", "sbx", "rejax", "d3rlpy", HABITUS], help="only these")
    parser.add_argument("--scale", type=float, default=1.0, help="length of the measured parts; 1 = several seconds")
    parser.add_argument("--anyway", action="store_true", help="do not wait until the machine is idle")
    parser.add_argument("--dry", action="store_true", help="print the tables, write nothing")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for work in args.work:
        results[work] = measure(COMPARISONS[work], args)
        if not args.dry:
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(write_tables(results, None if args.dry else PAGE))


if __name__ == "__main__":
    main()
