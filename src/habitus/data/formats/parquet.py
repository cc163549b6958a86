"""Parquet, for the formats built on it."""

from __future__ import annotations

from typing import Any

from habitus.core.errors import MissingExtra


def import_parquet() -> Any:
    """The module `pyarrow.parquet`. Raises `MissingExtra` where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("reading and writing LeRobot's data sets", "lerobot") from None
    return pyarrow.parquet
