"""Slow tests are left out by name, so the names must be those of tests that there are."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def test_every_slow_test_exists():
    unknown = []
    for line in (HERE / "slow.txt").read_text().splitlines():
        file, _, name = line.partition("::")
        path, function = HERE.parent / file, name.partition("[")[0]
        if not path.is_file() or f"def {function}" not in path.read_text():
            unknown.append(line)
    assert not unknown
