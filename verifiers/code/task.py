"""A row of the `code` verifier as a checked `Task`."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verifiers.code.extract import ALIASES
from verifiers.response import fenced_blocks
from verifiers.sandbox import Limits


class RowError(ValueError):
    """The row cannot be checked, whatever the response."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a row asks for. Exactly one of `test`, `asserts`, `cases`, `stdio` is not empty.

    prelude: trusted source (the function's header in HumanEval) that both the candidate and the tests start with.
    setup: trusted source that runs before the tests.
    """

    language: str
    entry_point: str
    prelude: str
    setup: str
    test: str
    asserts: tuple[str, ...]
    cases: tuple[tuple[list[Any], dict[str, Any], Any], ...]
    stdio: tuple[tuple[str, str], ...]
    limits: Limits
    tolerance: float
    partial_credit: bool


_FORMS = ("test", "tests", "cases", "stdio")
DEFAULT_TIME_S, DEFAULT_MEMORY_MB, DEFAULT_TOLERANCE = 10.0, 512, 1e-6


def read_task(row: Mapping[str, Any]) -> Task:
    """Raises RowError that names the key."""
    given = [form for form in _FORMS if row.get(form)]
    if len(given) != 1:
        raise RowError(f"a code row needs exactly one of {', '.join(_FORMS)}; this one has {given or 'none'}")
    language = _text(row, "language", "python").lower()
    language = next((name for name, aliases in ALIASES.items() if language in (name, *aliases)), language)
    if language not in ALIASES:
        raise RowError(f"'language' must be one of {', '.join(ALIASES)}, got {language!r}")
    entry_point = _text(row, "entry_point", "")
    if given[0] in ("test", "cases") and not entry_point:
        raise RowError(f"a row with {given[0]!r} needs 'entry_point', the name of the function to call")
    time_s = _number(row, "time_limit_s", DEFAULT_TIME_S)
    memory_mb = int(_number(row, "memory_limit_mb", DEFAULT_MEMORY_MB))
    return Task(
        language,
        entry_point,
        _prelude(row, entry_point, language),
        _text(row, "setup", ""),
        _text(row, "test", ""),
        _asserts(row),
        _cases(row),
        _stdio(row),
        Limits(wall_s=time_s, cpu_s=time_s, memory_mb=memory_mb),
        _number(row, "tolerance", DEFAULT_TOLERANCE),
        bool(row.get("partial_credit", False)),
    )


def _text(row: Mapping[str, Any], key: str, default: str) -> str:
    value = row.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise RowError(f"{key!r} must be a string, got {type(value).__name__}")
    return value


def _number(row: Mapping[str, Any], key: str, default: float) -> float:
    value = row.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise RowError(f"{key!r} must be a positive number, got {value!r}")
    return value


def _prelude(row: Mapping[str, Any], entry_point: str, language: str) -> str:
    """`prompt` when it is the beginning of a Python program that defines the entry point, as in HumanEval, or its last
    fenced block that is one."""
    prompt = row.get("prompt")
    if language != "python" or not entry_point or not isinstance(prompt, str):
        return ""
    sources = [*(content for _, content in fenced_blocks(prompt)), prompt]
    return next((source for source in reversed(sources) if defines(source, entry_point)), "")


def defines(source: str, name: str) -> bool:
    """Whether Python source parses and binds `name` (a function, class or variable) at its top level."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    name = name.partition(".")[0]
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name == name:
            return True
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return True
    return False


def ends_unfinished(source: str) -> bool:
    """Whether Python source that parses ends in a function without more than docstring and imports. To go on after one
    that is complete would let a program without the function pass by the prompt's own."""
    node: ast.AST = ast.parse(source)
    while isinstance(node, (ast.Module, ast.ClassDef)) and node.body:
        node = node.body[-1]
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and all(
        isinstance(line, (ast.Pass, ast.Import, ast.ImportFrom))
        or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
        for line in node.body
    )


def _sequence(row: Mapping[str, Any], key: str) -> list[Any]:
    value = row.get(key) or []
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
        raise RowError(f"{key!r} must be a list, got {type(value).__name__}")
    return list(value)


def _asserts(row: Mapping[str, Any]) -> tuple[str, ...]:
    tests = _sequence(row, "tests")
    if not all(isinstance(t, str) for t in tests):
        raise RowError("'tests' must be a list of source strings")
    return tuple(tests)


def _cases(row: Mapping[str, Any]) -> tuple[tuple[list[Any], dict[str, Any], Any], ...]:
    cases = []
    for number, case in enumerate(_sequence(row, "cases")):
        if not isinstance(case, Mapping) or "expected" not in case:
            raise RowError(f"'cases'[{number}] needs 'expected' (and 'args' or 'kwargs')")
        cases.append((list(case.get("args") or []), dict(case.get("kwargs") or {}), case["expected"]))
    return tuple(cases)


def _stdio(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    pairs: list[tuple[str, str]] = []
    for number, case in enumerate(_sequence(row, "stdio")):
        stdin, stdout = (case.get("stdin"), case.get("stdout")) if isinstance(case, Mapping) else (None, None)
        if not isinstance(stdin, str) or not isinstance(stdout, str):
            raise RowError(f"'stdio'[{number}] needs the strings 'stdin' and 'stdout'")
        pairs.append((stdin, stdout))
    return tuple(pairs)
