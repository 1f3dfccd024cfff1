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
        content = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(content).__name__}")
    return content


def did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else f". Known: {', '.join(sorted(known))}"
