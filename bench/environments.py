"""One virtual environment a peer, made on demand from its pinned requirements. Standard library only."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
HOME = HERE.parent / ".bench"
STAMP = "requirements.sha256"


def python_of(peer: str) -> Path:
    """The interpreter of `peer`'s environment, which is made, or made anew, if its requirements ask for it."""
    folder, wanted = HOME / peer, _digest(peer)
    stamp = folder / STAMP
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"making {folder} (a few minutes)", file=sys.stderr, flush=True)
    venv.create(folder, clear=True, with_pip=True)
    requirements = HERE / "peers" / peer / "requirements.txt"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
    stamp.write_text(wanted)
    return python


def _digest(peer: str) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for name in ("requirements.txt", "constraints.txt"):
        digest.update((HERE / "peers" / peer / name).read_bytes())
    return digest.hexdigest()
