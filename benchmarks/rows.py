"""Rows for the recipes, on disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alignment.data import load


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """A JSON object a line; returns the path as the recipes' arguments have it."""
    load.write_rows(path, rows)
    return str(path)
