"""Constraints by id: registration, and a row's instructions read and checked before any response is.

A constraint is a function `(text, parameters…) -> str`: what the text breaks, or "" when the constraint is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from verifiers.registry import did_you_mean

Check = Callable[..., str]
Reader = Callable[[Any], Any]  # a value of the row -> the parameter; raises ValueError that says what is allowed
RELATIONS = ("at least", "less than")
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Constraint:
    """A registered constraint: its check, and how each parameter is read from a row's `kwargs`."""

    instruction_id: str
    check: Check
    parameters: Mapping[str, Reader]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One entry of a row: a constraint with its parameters."""

    constraint: Constraint
    arguments: Mapping[str, Any]

    def broken_by(self, text: str) -> str:
        """What `text` breaks; "" when it follows the instruction. Raises TypeError when the check returns no text."""
        broken = self.constraint.check(text, **self.arguments)
        if not isinstance(broken, str):
            raise TypeError(f"constraint {self.constraint.instruction_id!r} returned {broken!r} instead of a text")
        return broken


_constraints: dict[str, Constraint] = {}


def register_constraint(
    instruction_id: str, parameters: Mapping[str, Reader] | None = None
) -> Callable[[Check], Check]:
    """Register `check(text, **parameters) -> str` (what is broken, or "") under `instruction_id`.

    parameters: for each key that `kwargs` must hold, a function that turns the row's value into the parameter and
    raises ValueError for a wrong one: `count`, `word`, `texts`, `relation`, … of this module, or one of yours.

    >>> @register_constraint("example:max_lines", {"max_lines": count})
    ... def max_lines(text: str, max_lines: int) -> str:
    ...     lines = len(text.splitlines())
    ...     return f"{lines} lines, at most {max_lines} are allowed" if lines > max_lines else ""

    Raises ValueError when the id is taken by another function.
    """

    def register(check: Check) -> Check:
        known = _constraints.get(instruction_id)
        here = (check.__module__, check.__qualname__)
        if known is not None and (known.check.__module__, known.check.__qualname__) != here:
            raise ValueError(f"a constraint named {instruction_id!r} is already registered; choose another id")
        _constraints[instruction_id] = Constraint(instruction_id, check, dict(parameters or {}))
        return check

    return register


def list_constraints() -> list[str]:
    """The sorted ids of all registered constraints."""
    return sorted(_constraints)


def read_instructions(row: Mapping[str, Any]) -> list[Instruction]:
    """The instructions of a row, in order. Raises ValueError that names the column, the entry and the key."""
    ids, entries = row["instruction_id_list"], row["kwargs"]
    if not isinstance(ids, (list, tuple)) or not ids:
        raise ValueError(f"column 'instruction_id_list' must be a list of at least one id, got {ids!r}"[:200])
    if not isinstance(entries, (list, tuple)) or len(entries) != len(ids):
        has = f"{len(entries)} entries" if isinstance(entries, (list, tuple)) else repr(entries)[:_SHOWN]
        raise ValueError(f"column 'kwargs' must be a list with one entry for each of the {len(ids)} ids, got {has}")
    return [_read_instruction(i, name, entry) for i, (name, entry) in enumerate(zip(ids, entries), 1)]


def _read_instruction(position: int, name: Any, entry: Any) -> Instruction:
    if not isinstance(name, str) or name not in _constraints:
        known = did_you_mean(str(name), _constraints) or f"; known are {', '.join(list_constraints())}"
        raise ValueError(f"instruction {position}: unknown id {name!r}{known}")
    constraint, where = _constraints[name], f"instruction {position} ({name})"
    if entry is not None and not isinstance(entry, Mapping):
        raise ValueError(f"{where}: its 'kwargs' must be an object, got {entry!r}"[:200])
    given = {key: value for key, value in (entry or {}).items() if value is not None}
    arguments = {}
    for key, read in constraint.parameters.items():
        if key not in given:
            raise ValueError(f"{where} needs {key!r} in 'kwargs'; the entry has {', '.join(given) or 'no values'}")
        try:
            arguments[key] = read(given[key])
        except ValueError as error:
            raise ValueError(f"{where}: {key!r} {error}, got {given[key]!r}"[:300]) from error
    for key, value in given.items():
        # Tables that unite the keys of all instructions fill the unused ones with None, or with 0, "" or [].
        if key not in constraint.parameters and value not in (0, "", [], ()):
            raise ValueError(f"{where} has no parameter {key!r}{did_you_mean(key, constraint.parameters)}")
    return Instruction(constraint, arguments)


def count(value: Any) -> int:
    """A whole number of at least 0; 3.0 counts as 3, because tables with gaps turn their integers into floats."""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or value < 0:
        raise ValueError("must be a whole number of at least 0")
    return int(value)


def position(value: Any) -> int:
    """A place, counted from 1."""
    if count(value) == 0:
        raise ValueError("counts from 1")
    return int(value)


def text_value(value: Any) -> str:
    """A text that is not blank, without white space around it."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a text that is not empty")
    return value.strip()


def word(value: Any) -> str:
    """A text without white space inside."""
    if len(text_value(value).split()) != 1:
        raise ValueError("must be a single word")
    return str(value).strip()


def character(value: Any) -> str:
    """One character that is no white space."""
    if len(word(value)) != 1:
        raise ValueError("must be a single character")
    return str(value).strip()


def texts(value: Any) -> list[str]:
    """A list of at least one text."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError("must be a list of at least one text")
    return [text_value(item) for item in value]


def relation(value: Any) -> str:
    """One of RELATIONS."""
    if value not in RELATIONS:
        raise ValueError(f"must be {' or '.join(map(repr, RELATIONS))}")
    return str(value)


def compare(found: int, relation: str, wanted: int, what: str) -> str:
    """What is broken about a number that was found; "" when it keeps the relation.

    >>> compare(4, "less than", 4, "commas")
    'commas: 4, less than 4 asked for'
    """
    kept = found >= wanted if relation == "at least" else found < wanted
    return "" if kept else f"{what}: {found}, {relation} {wanted} asked for"


def compare_exactly(found: int, wanted: int, what: str) -> str:
    """What is broken about a number that must be met; "" when it is."""
    return "" if found == wanted else f"{what}: {found}, exactly {wanted} asked for"
