"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, data: Any) -> None:
    """Writes JSON; what JSON has no word for, such as a path, is written as text."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=1, default=str), encoding="utf-8")
    os.replace(part, path)
