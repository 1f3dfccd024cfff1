"""Whether two answers are the same: structure first, exact arithmetic at the leaves, computer algebra behind it."""

from __future__ import annotations

from dataclasses import replace

from verifiers.math.answer import Answer, letters_as_units, normalise_words, split_unit
from verifiers.math.atoms import Node
from verifiers.math.exact import exact, symbols
from verifiers.math.words import UNIT_ALIASES
from verifiers.worker import Worker

CALL_TIMEOUT_S = 5.0
MAX_ITEMS = 64
_KNOWN_UNITS = frozenset(UNIT_ALIASES.values())
_worker = Worker("verifiers.math.symbolic:answer_request", CALL_TIMEOUT_S)


def ask(operation: str, gold: object, given: object) -> bool | str:
    """One question to the computer-algebra worker; text only from "latex", see `latex_fallback.same_latex`.

    Raises WorkerTimeoutError, WorkerCrashError, or RuntimeError with the text of what it raised."""
    return _worker.call([operation, gold, given])


def same_answer(gold: Answer, given: Answer) -> bool:
    """Names count only where both answers state one; units only where both state a known one; `50%` equals 50 as well
    as 1/2, because a percent sign is also a unit."""
    if "rel" in (gold.value[0], given.value[0]):
        return same_value(_as_relation(gold), _as_relation(given))
    if gold.name and given.name and gold.name != given.name:
        return False
    if gold.unit and not given.unit and symbols(given.value) and not symbols(gold.value):
        value, unit = split_unit(letters_as_units(given.value))
        given = replace(given, value=value, unit=unit)
    if _units_conflict(gold.unit, given.unit):
        return False
    if any(not same_value(given.value, member) for member in given.also):
        return False
    if gold.percent == given.percent:
        return same_value(gold.value, given.value)
    left, right = gold.value, given.value
    if same_value(left, right):
        return True
    return same_value(("pct", left) if gold.percent else left, ("pct", right) if given.percent else right)


def _as_relation(answer: Answer) -> Node:
    """`y = 2x + 1` as an equation again, to be compared with `2x - y + 1 = 0`."""
    if answer.name is None or answer.also or answer.unit or answer.value[0] in ("list", "tuple", "interval", "text"):
        return answer.value
    return ("rel", [("sym", answer.name), answer.value], ["="])


def _units_conflict(gold: str | None, given: str | None) -> bool:
    if not gold or not given or gold == given:
        return False
    return all(
        any(part in _KNOWN_UNITS for part in unit.replace("/", " ").replace("^", " ").split()) for unit in (gold, given)
    )


def same_value(gold: Node, given: Node) -> bool:
    if gold == given:
        return True
    kinds = {gold[0], given[0]}
    if "text" in kinds:
        return _plain(gold) is not None and _plain(gold) == _plain(given)
    if "named" in kinds:
        return _same_named(gold, given)
    if kinds <= {"list", "set"}:
        return _same_items(gold, given)
    if kinds & {"list", "set"}:
        return _same_single(gold, given)
    if kinds == {"rel"}:
        return gold[2] == given[2] and ask("proportional", gold, given) is True
    if kinds & {"union", "minus", "numset"}:
        return bool(kinds & {"interval", "tuple", "union", "minus", "numset"}) and ask("same_set", gold, given) is True
    if kinds & {"tuple", "ratio", "interval", "matrix"}:
        return len(kinds) == 1 and _same_parts(gold, given)
    if "rel" in kinds or "in" in kinds:
        return False
    return same_number(gold, given)


def same_number(gold: Node, given: Node) -> bool:
    """Rational values by exact arithmetic; anything else is proven equal by computer algebra or is not equal."""
    left, right = exact(gold), exact(given)
    if left is not None and right is not None:
        return left == right
    return ask("equal", gold, given) is True


def _plain(node: Node) -> str | None:
    if node[0] in ("text", "unit"):
        return str(node[1])
    return normalise_words(node[1]) if node[0] == "sym" else None


def _same_named(gold: Node, given: Node) -> bool:
    """`x=1, y=2` equals `y=2, x=1`, and the pair (1, 2) in alphabetical order of the names."""
    if gold[0] == given[0]:
        names = [[name for name, _ in node[1]] for node in (gold, given)]
        return names[0] == names[1] and all(same_value(a, b) for (_, a), (_, b) in zip(gold[1], given[1]))
    named, other = (gold, given) if gold[0] == "named" else (given, gold)
    return other[0] == "tuple" and _same_parts(("tuple", [value for _, value in named[1]]), other)


def _same_items(gold: Node, given: Node) -> bool:
    """Any order. Lists must have one length; in a set a repeated element counts once."""
    left, right = gold[1], given[1]
    if len(left) > MAX_ITEMS or len(right) > MAX_ITEMS or (len(left) != len(right) and {gold[0], given[0]} == {"list"}):
        return False
    rest = list(right)
    for item in left:
        match = next((other for other in rest if same_value(item, other)), None)
        if match is None:
            is_repeated = gold[0] == "set" and any(same_value(item, other) for other in right)
            if not is_repeated:
                return False
        else:
            rest.remove(match)
    return all(given[0] == "set" and any(same_value(item, other) for item in left) for other in rest)


def _same_single(gold: Node, given: Node) -> bool:
    collection, single = (gold, given) if gold[0] in ("list", "set") else (given, gold)
    return len(collection[1]) == 1 and same_value(collection[1][0], single)


def _same_parts(gold: Node, given: Node) -> bool:
    left, right = _parts(gold), _parts(given)
    if len(left) != len(right) or len(left) > MAX_ITEMS or _shape(gold) != _shape(given):
        return False
    return all(same_value(a, b) for a, b in zip(left, right))


def _parts(node: Node) -> list[Node]:
    if node[0] == "interval":
        return [node[2], node[3]]
    if node[0] == "matrix":
        return [part for row in node[1] for part in row]
    return node[1]


def _shape(node: Node) -> object:
    if node[0] == "interval":
        return node[1], node[4]
    return len(node[1][0]) if node[0] == "matrix" else None
