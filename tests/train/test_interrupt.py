"""Ctrl-C saves, leaves cleanly, and what it left goes on."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from .processes import bits, finish, start

PURE = """
import sys, habitus
run = habitus.learn("td3bc", "pendulum-medium", 20_000, hidden=(32, 32), batch_size=64, seeds=2,
                    folder=sys.argv[1], resume=True, checkpoints=1, points=400)
print(run.interrupted)
"""
HOST = """
import sys, habitus
run = habitus.learn("sac", env="Pendulum-v1", steps=4_000, hidden=(16, 16), batch_size=32,
                    source_options={"warmup": 100}, folder=sys.argv[1], resume=True, checkpoints=1, points=200)
print(run.interrupted, run.history["update"][-1])
"""


def interrupt(script: str, folder: Path) -> list[str]:
    """What a run prints that is interrupted as soon as it has learned something."""
    process = start(script, folder)
    rows = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (rows.exists() and rows.stat().st_size) and process.poll() is None:
        assert time.monotonic() < deadline, "the run does not start"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    return finish(process)


def test_a_compiled_run_goes_on_to_the_bits_of_an_uninterrupted_one(tmp_path):
    assert interrupt(PURE, tmp_path / "cut") == ["True"]
    assert finish(start(PURE, tmp_path / "cut")) == ["False"]
    assert finish(start(PURE, tmp_path / "whole")) == ["False"]
    assert len(bits(tmp_path / "whole")) == 2 and bits(tmp_path / "cut") == bits(tmp_path / "whole")


def test_a_run_in_a_host_world_goes_on_to_the_same_number_of_updates(tmp_path):
    stopped, updates = interrupt(HOST, tmp_path)
    assert stopped == "True" and 0 < int(updates) < 3_900
    assert finish(start(HOST, tmp_path)) == ["False", "3900"]
