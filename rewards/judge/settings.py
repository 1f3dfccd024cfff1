"""Checks of settings, and a judge's settings in a YAML file of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml


def read_settings(path: str | Path) -> dict[str, Any]:
    """The parameters of `make_judge` that the file holds. Raises ValueError, naming it, when it is missing or no
    mapping of names to values."""
    if not Path(path).is_file():
        raise ValueError(f"judge: there is no file {path}")
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path}: expected `key: value` lines, for instance `url: http://localhost:8000/v1`")
    return content


def number(name: str, value: Any, at_least: float = -math.inf, *, whole: bool = False) -> float:
    """The value as a finite number; text that spells one counts, since YAML reads 1e-3 as text. Raises ValueError."""
    try:
        result = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result) or result < at_least or (whole and not result.is_integer()):
        bound = "" if at_least == -math.inf else f" of {at_least:g} or more"
        raise ValueError(f"{name} has to be a {'whole ' * whole}number{bound}, got {value!r}")
    return result


def seconds(name: str, value: Any) -> float:
    """Raises ValueError when it is not a number above 0."""
    result = number(name, value)
    if result <= 0:
        raise ValueError(f"{name} has to be above 0, got {value!r}")
    return result


def score_bounds(value: Any) -> tuple[float, float]:
    """Worst and best score. Raises ValueError when it is not two rising numbers."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(f"score_range has to be two numbers, the worst and the best score, got {value!r}")
    lowest, highest = (number("score_range", bound) for bound in value)
    if lowest >= highest:
        raise ValueError(f"score_range has to rise from the worst to the best score, got {value!r}")
    return lowest, highest
