"""Rows for the recipes, on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alignment.metrics import replace_file


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """A JSON object a line; returns the path as the recipes' arguments have it."""
    replace_file(path, "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
