"""Runs in processes of their own, as a signal ends the process it is sent to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def start(script: str, *args: str | Path) -> subprocess.Popen:
    """A Python process that runs `script`."""
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> list[str]:
    """The words that a process prints, which must end well."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.split()


def bits(folder: Path) -> list[bytes]:
    """The saved policies of a run, by seed."""
    return [path.read_bytes() for path in sorted((folder / "policy").rglob("policy.safetensors"))]
