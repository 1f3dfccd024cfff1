"""Whether two answers are the same: structure first, exact arithmetic at the leaves, computer algebra behind it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from verifiers.math.answer import Answer, letters_as_units, normalise_words, split_unit
from verifiers.math.atoms import Node
from verifiers.math.exact import exact, symbols
from verifiers.math.normal_form import same_expression, same_relation
from verifiers.math.real_sets import same_real_set
from verifiers.math.words import UNIT_ALIASES
from verifiers.worker import Worker

CALL_TIMEOUT_S = 5.0
MAX_ITEMS = 64
_KNOWN_UNITS = frozenset(UNIT_ALIASES.values())
STRUCTURES = frozenset(
    ["list", "set", "tuple", "interval", "union", "both", "minus", "numset", "matrix", "named", "text", "ratio", "rel",
     "in"]
)  # fmt: skip
_worker = Worker("verifiers.math.symbolic:answer_request", CALL_TIMEOUT_S)


def ask(operation: str, gold: object, given: object) -> bool | str:
    """One question to the computer-algebra worker; text only from "latex", see `latex_fallback.same_latex`.

    Raises WorkerTimeoutError, WorkerCrashError, or RuntimeError with the text of what it raised."""
    return _worker.call([operation, gold, given])


def same_answer(gold: Answer, given: Answer) -> bool:
    """Names count only where both answers state one; units only where both state a known one; `50%` equals 50 as well
    as 1/2, because a percent sign is also a unit."""
    if gold.option or given.option:
        return _same_option(gold, given)
    if "rel" in (gold.value[0], given.value[0]):
        return same_value(_as_relation(gold), _as_relation(given))
    if gold.name and given.name and gold.name != given.name:
        return False
    if gold.unit and not given.unit and symbols(given.value) and not symbols(gold.value):
        value, unit = split_unit(letters_as_units(given.value))
        given = replace(given, value=value, unit=unit)
    if _units_conflict(gold.unit, given.unit) or _percent_conflict(gold, given):
        return False
    if any(not same_value(given.value, member) for member in given.also):
        return False
    if given.near is not None and ask("near", given.value, given.near) is not True:
        return False
    if gold.bound and given.bound:
        if gold.bound[1] != given.bound[1]:
            return False
        given = replace(given, value=_renamed(given.value, given.bound[0], gold.bound[0]))
    if {gold.unit, given.unit} == {"degree", "radian"}:
        return _same_angle(gold, given)
    if same_value(gold.value, given.value):
        return True
    if gold.percent != given.percent:
        return same_value(_without_percent(gold), _without_percent(given))
    return gold.unit != given.unit and "degree" in (gold.unit, given.unit) and _same_angle(gold, given)


def _same_option(gold: Answer, given: Answer) -> bool:
    """The letter alone, the content alone, or both."""
    if gold.option and given.option:
        return gold.option == given.option and same_answer(replace(gold, option=None), replace(given, option=None))
    labelled, other = (gold, given) if gold.option else (given, gold)
    if _plain(other.value) == labelled.option:
        return True
    return same_answer(replace(gold, option=None), replace(given, option=None))


def _without_percent(answer: Answer) -> Node:
    return ("pct", answer.value) if answer.percent else answer.value


def _same_angle(gold: Answer, given: Answer) -> bool:
    """30 degrees and pi/6."""
    if any(answer.unit not in (None, "degree", "radian") for answer in (gold, given)):
        return False
    half_turns = [
        ("div", answer.value, ("num", "180") if answer.unit == "degree" else ("sym", "pi")) for answer in (gold, given)
    ]
    return same_number(*half_turns) if not {gold.value[0], given.value[0]} & STRUCTURES else False


def _renamed(node: Any, old: str, new: str) -> Any:
    if node == ("sym", old):
        return ("sym", new)
    return type(node)(_renamed(part, old, new) for part in node) if isinstance(node, (tuple, list)) else node


def _as_relation(answer: Answer) -> Node:
    """`y = 2x + 1` as an equation again, to be compared with `2x - y + 1 = 0`."""
    if answer.name is None or answer.also or answer.unit or answer.value[0] in ("list", "tuple", "interval", "text"):
        return answer.value
    return ("rel", [("sym", answer.name), answer.value], ["="])


def _units_conflict(gold: str | None, given: str | None) -> bool:
    """Words that are no known units ("square units", "years old") say nothing."""
    left, right = _known_units(gold), _known_units(given)
    return bool(left and right and left != right and {left, right} != {"degree", "radian"})


def _percent_conflict(gold: Answer, given: Answer) -> bool:
    """Percent against a known unit: `5%` is not `5 cm`."""
    quantity = given if gold.percent else gold
    return gold.percent != given.percent and bool(_known_units(quantity.unit))


def _known_units(unit: str | None) -> str:
    unit = re.sub(r"\b(?:square|sq) (\w+)|(\w+) squared\b", r"\1\2^2", unit or "")
    unit = re.sub(r"\bcubic (\w+)|(\w+) cubed\b", r"\1\2^3", unit)
    parts = re.findall(r"[a-z$]+(?:\^[-\d]+)?|/", unit)
    return " ".join(part for part in parts if part == "/" or part.split("^")[0] in _KNOWN_UNITS).strip(" /")


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
        return gold[2] == given[2] and _same_relation(gold, given)
    if kinds & {"union", "both", "minus", "numset"}:
        return _is_set(gold) and _is_set(given) and _same_set(gold, given)
    if "ratio" in kinds:
        return _same_ratio(gold, given)
    if kinds & {"tuple", "interval", "matrix"}:
        return len(kinds) == 1 and _same_parts(gold, given)
    if "rel" in kinds or "in" in kinds:
        return False
    return same_number(gold, given)


def same_number(gold: Node, given: Node) -> bool:
    """Rational values by exact arithmetic; anything else is proven equal by computer algebra or is not equal."""
    left, right = exact(gold), exact(given)
    if left is not None and right is not None:
        return left == right
    same = same_expression(gold, given)
    if same is None:
        same = ask("equal", gold, given) is True
    if not same and (_has_bare_log(gold) or _has_bare_log(given)):
        return same_number(_common_log(gold), _common_log(given))
    return same


def _same_relation(gold: Node, given: Node) -> bool:
    same = same_relation(gold, given)
    return ask("proportional", gold, given) is True if same is None else same


def _has_bare_log(node: object) -> bool:
    if not isinstance(node, (tuple, list)):
        return False
    return (len(node) == 3 and node[:2] == ("call", "log") and len(node[2]) == 1) or any(map(_has_bare_log, node))


def _common_log(node: Any) -> Any:
    r"""A `\log` without a base, which is read as natural first, to base 10."""
    if not isinstance(node, (tuple, list)):
        return node
    parts = type(node)(_common_log(part) for part in node)
    return ("call", "lg", parts[2]) if _has_bare_log(node) and node[:2] == ("call", "log") else parts


def _is_set(node: Node) -> bool:
    kinds = ("interval", "union", "both", "minus", "numset", "set")
    return node[0] in kinds or (node[0] == "tuple" and len(node[1]) == 2)


def _same_set(gold: Node, given: Node) -> bool:
    same = same_real_set(gold, given)
    return ask("same_set", gold, given) is True if same is None else same


def _same_ratio(gold: Node, given: Node) -> bool:
    """3:4 equals 6:8 and 3/4; a time of day equals only itself."""
    if gold[0] != given[0]:
        ratio, number = (gold, given) if gold[0] == "ratio" else (given, gold)
        return len(ratio[1]) == 2 and same_value(("div", *ratio[1]), number)
    left, right = gold[1], given[1]
    if len(left) != len(right) or len(left) > MAX_ITEMS:
        return False
    if all(same_value(a, b) for a, b in zip(left, right)):
        return True
    if _is_time(gold) or _is_time(given):
        return False
    return all(same_number(("mul", [a, right[0]]), ("mul", [b, left[0]])) for a, b in zip(left, right))


def _is_time(node: Node) -> bool:
    minutes = node[1][-1]
    return len(node[1]) == 2 and minutes[0] == "num" and len(minutes[1]) == 2


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
    """A collection of one, or a list in the answer of several ways to write the accepted one: `1/2 or 0.5`."""
    collection, single = (gold, given) if gold[0] in ("list", "set") else (given, gold)
    several = given[0] == "list" and 1 < len(given[1]) <= MAX_ITEMS
    return (several or len(collection[1]) == 1) and all(same_value(single, item) for item in collection[1])


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
