"""`Answer`: the canonical form of a final answer, with the name, the unit and the percent sign taken off its value."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from verifiers.math.atoms import Node, based
from verifiers.math.exact import symbols
from verifiers.math.parser import parse
from verifiers.math.tokens import MathSyntaxError, strip_typography
from verifiers.math.words import FUNCTIONS, GREEK, MULTIPLIERS, UNIT_ALIASES

_WORDS = re.compile(r"[A-Za-z'\-\s.,()/\x01\x02]+")
_NUMERAL = re.compile(r"([0-9A-Za-z]{2,})\s*_\s*\{?\s*(\d{1,2})\s*\}?")
_RELATION_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


@dataclass(frozen=True, slots=True)
class Answer:
    """value: a tree (see `parser`), or ("text", words). name: what the value was said to be of ("x", "f(x)").
    also: further members of an equality chain, which must equal the value. unit: None when none was written."""

    value: Node
    name: str | None = None
    unit: str | None = None
    percent: bool = False
    also: tuple[Node, ...] = ()


def read_answer(text: str) -> Answer:
    """Raises MathSyntaxError when the text is no answer that is understood as a whole."""
    plain = strip_typography(text)
    if not plain:
        raise MathSyntaxError("empty")
    numeral = _NUMERAL.fullmatch(re.sub(r"[\x01\x02() ]", "", plain))
    if numeral and (numeral[1][0].isdigit() or len(numeral[1]) > 1):
        return Answer(based(numeral[1], numeral[2]))
    words = as_words(plain)
    if words is not None:
        return Answer(("text", words))
    return canonical(parse(plain))


def as_words(plain: str) -> str | None:
    """Normalised text of an answer that is words and nothing else ("Monday", "(A) no"); None for mathematics."""
    if not _WORDS.fullmatch(plain):
        return None
    runs = re.findall(r"[A-Za-z]+", plain)
    known = FUNCTIONS | GREEK | MULTIPLIERS.keys() | {"or", "and", "infinity", "inf", "sqrt"}
    if "\x01" not in plain and not any(len(run) > 1 and run not in known for run in runs):
        return None
    if "\x01" in plain and (re.search(r"\x01\s*(?:or|and)\s*\x02", plain) or re.search(r"\x02\s*,", plain)):
        return None
    return normalise_words(plain)


def normalise_words(text: str) -> str:
    text = re.sub(r"[\x01\x02$]", " ", text).casefold()
    text = re.sub(r"[.,;:!?]+(?=\s|$)|(?<=[a-z])\.", " ", text)
    text = re.sub(r"^\s*(?:the|a|an)\s+(?=\S)", "", " ".join(text.split()))
    return re.sub(r"^\(([^()]*)\)$", r"\1", text).strip()


def canonical(node: Node) -> Answer:
    """An `Answer` from a whole tree."""
    signs = _plus_minus(node)
    if signs is not None:
        node = signs
    if node[0] == "list" and all(_is_inequality(item) for item in node[1]):
        return _canonical_union([canonical(item) for item in node[1]])
    if node[0] == "list":
        return _canonical_list([canonical(item) for item in node[1]])
    if node[0] == "in":
        return replace(canonical(node[2]), name=_key(node[1]))
    if node[0] == "rel":
        return _canonical_relation(node)
    if node[0] == "pct":
        return Answer(node[1], percent=True)
    if node[0] == "neg" and node[1][0] == "pct":
        return Answer(("neg", node[1][1]), percent=True)
    value, unit = split_unit(node)
    if value[0] == "pct":
        return Answer(value[1], unit=unit, percent=True)
    return Answer(value, unit=unit)


def _canonical_list(items: list[Answer]) -> Answer:
    """`x=1, x=2` is a list named x; `x=1, y=2` keeps its names; units of one kind move to the list."""
    names, units = {a.name for a in items}, {a.unit for a in items} - {None}
    simple = not any(a.percent or a.also for a in items)
    if simple and len(units) <= 1 and (len(names) == 1 or (items[0].name and names == {items[0].name, None})):
        return Answer(("list", [a.value for a in items]), name=items[0].name, unit=next(iter(units), None))
    if simple and None not in names and len(names) == len(items):
        return Answer(("named", sorted(((a.name, a.value) for a in items), key=lambda pair: str(pair[0]))))
    raise MathSyntaxError("a list whose items are named in different ways")


def _is_inequality(node: Node) -> bool:
    return node[0] == "rel" and "=" not in node[2] and "!=" not in node[2]


def _canonical_union(items: list[Answer]) -> Answer:
    """`x < -1 or x > 1`."""
    if len({item.name for item in items}) != 1 or any(item.value[0] == "rel" for item in items):
        raise MathSyntaxError("inequalities that are not about one variable")
    return Answer(("union", [item.value for item in items]), name=items[0].name)


def _canonical_relation(node: Node) -> Answer:
    nodes, operators = node[1], node[2]
    if set(operators) == {"="}:
        return _canonical_equality(nodes)
    interval = _as_interval(nodes, operators)
    return interval or Answer(node)


def _canonical_equality(nodes: list[Node]) -> Answer:
    first, last = nodes[0], nodes[-1]
    if first[0] == "tuple" and last[0] == "tuple" and len(nodes) == 2 and all(_is_name(n) for n in first[1]):
        pairs = [(_key(n), v) for n, v in zip(first[1], last[1])]
        if len(first[1]) == len(last[1]):
            return Answer(("named", sorted(pairs)))
    if _is_name(first) and _head(first) not in symbols(list(nodes[1:])):
        inner = canonical(last)
        return replace(inner, name=_key(first), also=tuple(nodes[1:-1]))
    if _is_name(last) and len(nodes) == 2 and _head(last) not in symbols(first):
        return replace(canonical(first), name=_key(last))
    if not symbols(list(nodes)):
        return replace(canonical(last), also=tuple(nodes[:-1]))
    if len(nodes) == 2:
        return Answer(("rel", nodes, ["="]))
    raise MathSyntaxError("a chain of equations")


def _is_name(node: Node) -> bool:
    """A symbol, or a symbol applied to symbols: x, f(x), P(A)."""
    if node[0] == "sym":
        return True
    return node[0] == "mul" and len(node[1]) == 2 and all(part[0] == "sym" for part in node[1])


def _head(node: Node) -> str:
    return str(node[1] if node[0] == "sym" else node[1][0][1])


def _key(node: Node) -> str:
    if node[0] == "sym":
        return str(node[1])
    if node[0] == "mul":
        return "*".join(_key(part) for part in node[1])
    return repr(node)


def _as_interval(nodes: list[Node], operators: list[str]) -> Answer | None:
    """`x > 3`, `1 < x <= 2` as an interval named x."""
    if "!=" in operators or "=" in operators:
        return None
    infinity: Node = ("inf",)
    if len(nodes) == 2:
        left, right, operator = nodes[0], nodes[1], operators[0]
        if right[0] == "sym" and left[0] != "sym":
            left, right, operator = right, left, _RELATION_FLIPPED[operator]
        if left[0] != "sym" or symbols(right):
            return None
        closed = "=" in operator
        if operator[0] == "<":
            value = interval("(", ("neg", infinity), right, "]" if closed else ")")
        else:
            value = interval("[" if closed else "(", right, infinity, ")")
        return Answer(value, name=left[1])
    if len(nodes) != 3 or nodes[1][0] != "sym" or symbols(nodes[0]) or symbols(nodes[2]):
        return None
    if operators[0][0] != operators[1][0]:
        return None
    if operators[0][0] == ">":
        nodes, operators = nodes[::-1], [_RELATION_FLIPPED[o] for o in operators[::-1]]
    opening, closing = ("[" if "=" in operators[0] else "("), ("]" if "=" in operators[1] else ")")
    return Answer(interval(opening, nodes[0], nodes[2], closing), name=nodes[1][1])


def interval(opening: str, low: Node, high: Node, closing: str) -> Node:
    """An open interval and a pair look the same, so both are the tuple."""
    return ("tuple", [low, high]) if opening + closing == "()" else ("interval", opening, low, high, closing)


def _plus_minus(node: Node) -> Node | None:
    """The list of both values when a ± stands in the tree (all signs taken together), else None."""
    if "pm" not in repr(node):
        return None
    return ("list", [_choose(node, True), _choose(node, False)])


def _choose(node: object, plus: bool) -> Node:
    if isinstance(node, tuple) and node and node[0] == "pm":
        left, right = _choose(node[1], plus), _choose(node[2], plus)
        return ("add", [left, right if plus else ("neg", right)])
    if isinstance(node, tuple):
        return tuple(_choose(part, plus) for part in node)
    if isinstance(node, list):
        return [_choose(part, plus) for part in node]  # type: ignore[return-value]
    return node  # type: ignore[return-value]


def letters_as_units(node: Node) -> Node:
    """Symbols as units: the m and s of `6 m/s`, for a value that is known to be a quantity."""
    if node[0] == "sym":
        return ("unit", node[1])
    if node[0] in ("mul", "add"):
        return (node[0], [letters_as_units(part) for part in node[1]])
    if node[0] in ("div", "pow", "neg"):
        return (node[0], *(letters_as_units(part) for part in node[1:]))
    return node


def split_unit(node: Node) -> tuple[Node, str | None]:
    """`5 cm^2` as (5, "cm^2"). A tree without a unit, or with nothing else, comes back whole."""
    if node[0] == "neg":
        value, unit = split_unit(node[1])
        return ("neg", value), unit
    if node[0] == "div":
        value, unit = split_unit(node[1])
        if _only_units(node[2]) and (unit or value is node[1]):
            return value, f"{unit or ''}/{_unit_text(node[2])}"
        return (("div", value, node[2]), unit) if unit else (node, None)
    if node[0] != "mul":
        return node, None
    values = [part for part in node[1] if not _only_units(part)]
    units = [_unit_text(part) for part in node[1] if _only_units(part)]
    if not values or not units:
        return node, None
    value, unit = split_unit(values[0]) if len(values) == 1 else (("mul", values), None)
    return value, " ".join([*([unit] if unit else []), *units])


def _only_units(node: Node) -> bool:
    if node[0] == "unit":
        return True
    if node[0] == "pow":
        return _only_units(node[1]) and node[2][0] in ("num", "neg")
    return node[0] == "mul" and all(_only_units(part) for part in node[1])


def _unit_text(node: Node) -> str:
    if node[0] == "unit":
        words = re.sub(r"[^a-z$/ ]", "", node[1].lower()).replace("sq ", "square ").split()
        named = " ".join(UNIT_ALIASES.get(word, word) for word in words)
        return re.sub(r"\bsquare (\w+)", r"\1^2", re.sub(r"\bcubic (\w+)", r"\1^3", named))
    if node[0] == "pow":
        return f"{_unit_text(node[1])}^{node[2][1]}"
    return " ".join(_unit_text(part) for part in node[1])
