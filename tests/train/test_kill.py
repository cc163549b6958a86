"""A run that is killed at any moment goes on from a whole checkpoint to the same bits."""

from __future__ import annotations

import random
import subprocess

from .processes import bits, finish, start

KILLS = 20
RUN = """
import sys, habitus
habitus.learn("td3bc", "pendulum-medium", 4_000, seeds=2, hidden=(32, 32), batch_size=64,
              folder=sys.argv[1], resume=True, checkpoints=40, points=40)
"""


def test_twenty_kills_change_no_bit(tmp_path):
    whole = tmp_path / "whole"
    finish(start(RUN, whole))
    assert len(bits(whole)) == 2
    rng, kills, attempts, folder = random.Random(0), 0, 0, tmp_path / "0"
    while kills < KILLS:
        attempts += 1
        assert attempts < 4 * KILLS, "the run ends before it can be killed"
        process = start(RUN, folder)
        try:
            process.wait(rng.uniform(0.5, 3.5))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)
            kills += 1
            continue
        finish(process)
        assert bits(folder) == bits(whole)
        folder = tmp_path / str(attempts)
    finish(start(RUN, folder))
    assert bits(folder) == bits(whole)
