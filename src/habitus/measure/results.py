"""The committed results of claims. Imports nothing heavy, as the command line lists verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from habitus.core.errors import DataError


def results_folder() -> Path:
    """The working tree's `results/`, else the results that came with the package."""
    package = Path(__file__).parents[1]
    tree = package.parents[1] / "results"
    return tree if tree.is_dir() else package / "_results"


def read_result(slug: str) -> dict[str, Any] | None:
    """The result of a claim, or None.

    Raises:
        DataError: if the file is damaged.
    """
    path = results_folder() / f"{slug}.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON ({error}); run `habitus claim {slug} --out results` again.") from error


def read_results() -> list[dict[str, Any]]:
    """Every result, ordered by slug."""
    found = (read_result(path.stem) for path in sorted(results_folder().glob("*.json")))
    return [result for result in found if result is not None]
