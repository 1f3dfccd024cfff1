"""Reading a YAML file of settings, without importing anything heavy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from alignment.errors import UserError


def read_yaml(path: str | Path | None, what: str = "--config") -> dict[str, Any]:
    """The keys and values of a file. Raises UserError, naming the file, when it is missing or no mapping. what: as what
    the file was asked for."""
    if path is None or not Path(path).is_file():
        raise UserError(f"{what}: there is no file {path or ''}".rstrip())
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:  # ValueError: no UTF-8, or no such date
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(content).__name__}")
    return content


def did_you_mean(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f". Known: {', '.join(known)}" if len(known) <= 30 else "; --help lists all"
