"""`Answer`: the canonical form of a final answer, with the name, the unit and the percent sign taken off its value."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from verifiers.math.atoms import Node, based
from verifiers.math.exact import symbols
from verifiers.math.parser import parse
from verifiers.math.tokens import MathSyntaxError, strip_typography
from verifiers.math.words import ALL_REALS, FUNCTIONS, GREEK, MULTIPLIERS, NO_SOLUTION, UNIT_ALIASES, WORD_ALIASES

_WORDS = re.compile(r"[A-Za-z'\-\s.,()/\x01\x02]+")
_LETTERS = re.compile(r"\(?[a-z]\)?(?:(?: ?, ?| and |, and )\(?[a-z]\)?)+")
# "(B) 12": the label of an option in front of its content. "(B) - 1" is an expression, "(A) or (B)" are two options.
_OPTION = re.compile(
    r"(?:\x01\(([A-E])\)\s*\x02|\(([A-E])\)(?=\s+[^-+*/^=]))\s*"
    r"(?!\x01?\s*(?:(?:or|and|not|is|isn't)\b|\([A-E]\)))([^\s,;].*)"
)
_NUMERAL = re.compile(r"([0-9A-Za-z]{2,})\s*_\s*\{?\s*(\d{1,2})\s*\}?")
_RELATION_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


@dataclass(frozen=True, slots=True)
class Answer:
    """value: a tree (see `parser`), or ("text", words). name: what the value was said to be of ("x", "f(x)").
    also: further members of an equality chain, which must equal the value. near: the decimal after an approximation
    sign. unit: None when none was written. bound: (k, "Z") for values given for all integers k. option: the letter
    before the value in "(B) 12"."""

    value: Node
    name: str | None = None
    unit: str | None = None
    percent: bool = False
    also: tuple[Node, ...] = ()
    near: Node | None = None
    bound: tuple[str, str] | None = None
    option: str | None = None


def read_answer(text: str) -> Answer:
    """Raises MathSyntaxError when the text is no answer that is understood as a whole."""
    plain = strip_typography(text)
    if not plain:
        raise MathSyntaxError("empty")
    numeral = _NUMERAL.fullmatch(re.sub(r"[\x01\x02() ]", "", plain))
    if numeral and (numeral[1][0].isdigit() or len(numeral[1]) > 1):
        return Answer(based(numeral[1], numeral[2]))
    option = _OPTION.fullmatch(plain)
    if option:
        return replace(_unlabelled(option[3].strip()), option=(option[1] or option[2]).lower())
    return _unlabelled(plain)


def _unlabelled(plain: str) -> Answer:
    words = as_words(plain)
    return canonical(parse(plain)) if words is None else _worded(words)


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


def _worded(words: str) -> Answer:
    """Words that stand for mathematics: "no solution" is the empty set, "A and C" two options."""
    if NO_SOLUTION.fullmatch(words):
        return Answer(("set", []))
    if ALL_REALS.fullmatch(words):
        return Answer(("numset", "R"))
    if _LETTERS.fullmatch(words):
        return Answer(("list", [("text", letter) for letter in re.findall(r"(?<![a-z])[a-z](?![a-z])", words)]))
    return Answer(("text", WORD_ALIASES.get(words, words)))


def normalise_words(text: str) -> str:
    text = re.sub(r"[\x01\x02$]", " ", text).casefold()
    text = re.sub(r"[.,;:!?]+(?=\s|$)|(?<=[a-z])\.", " ", text)
    text = re.sub(r"^\s*(?:the|a|an)\s+(?=\S)", "", " ".join(text.split()))
    return re.sub(r"^\(([^()]*)\)$", r"\1", text).strip()


def canonical(node: Node) -> Answer:
    """An `Answer` from a whole tree."""
    node = _plus_minus(node)
    if node[0] == "list":
        return _canonical_items(node[1])
    if node[0] == "either":
        return _canonical_alternatives(node[1])
    if node[0] == "approx":
        return replace(canonical(node[1]), near=node[2])
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


def _canonical_items(items: list[Node]) -> Answer:
    rest = [item for item in items if not _is_integer_condition(item, items)]
    if len(rest) == len(items) - 1:
        (condition,) = (item for item in items if item not in rest)
        bound = (condition[1][1], condition[2][1])
        return replace(canonical(rest[0] if len(rest) == 1 else ("list", rest)), bound=bound)
    answers = [canonical(item) for item in items]
    if all(_is_inequality(item) for item in items):
        return _canonical_ranges(answers, "both")
    return _canonical_list(answers)


def _canonical_alternatives(items: list[Node]) -> Answer:
    """`x = 1 or x = 2`, `x = 0 or x > 3`."""
    answers = [canonical(item) for item in items]
    if len({answer.name for answer in answers}) > 1:
        raise MathSyntaxError("alternatives about different things")
    if not any(_is_inequality(item) for item in items):
        return _canonical_list(answers)
    ranges = [
        answer if _is_inequality(item) else replace(answer, value=("set", [answer.value]))
        for item, answer in zip(items, answers)
    ]
    return _canonical_ranges(ranges, "union")


def _is_integer_condition(item: Node, items: list[Node]) -> bool:
    r"""The `k \in \mathbb{Z}` of `2k\pi, k \in \mathbb{Z}`."""
    if item[0] != "in" or item[1][0] != "sym" or item[2][0] != "numset":
        return False
    return any(item[1][1] in symbols(other) for other in items if other is not item)


def _canonical_list(items: list[Answer]) -> Answer:
    """`x=1, x=2` is a list named x; `x=1, y=2` keeps its names; units of one kind move to the list."""
    names, units = {a.name for a in items}, {a.unit for a in items} - {None}
    simple = not any(a.percent or a.also or a.near or a.bound for a in items)
    if simple and len(units) <= 1 and (len(names) == 1 or (items[0].name and names == {items[0].name, None})):
        return Answer(("list", [a.value for a in items]), name=items[0].name, unit=next(iter(units), None))
    if simple and None not in names and len(names) == len(items):
        return Answer(("named", sorted(((a.name, a.value) for a in items), key=lambda pair: str(pair[0]))))
    raise MathSyntaxError("a list whose items are named in different ways")


def _is_inequality(node: Node) -> bool:
    return node[0] == "rel" and "=" not in node[2]


def _canonical_ranges(items: list[Answer], kind: str) -> Answer:
    """The "union" of `x < -1 or x > 1`, what "both" of `x > 1, x != 3` leave."""
    if len({item.name for item in items}) != 1 or any(item.value[0] == "rel" for item in items):
        raise MathSyntaxError("inequalities that are not about one variable")
    return Answer((kind, [item.value for item in items]), name=items[0].name)


def _canonical_relation(node: Node) -> Answer:
    nodes, operators = node[1], node[2]
    if set(operators) == {"="}:
        return _canonical_equality(nodes)
    if operators == ["!="] and nodes[0][0] == "sym" and not symbols(nodes[1]):
        return Answer(("minus", ("numset", "R"), ("set", [nodes[1]])), name=str(nodes[0][1]))
    interval = _as_interval(nodes, operators)
    if interval is None and len(nodes) == 2 and operators[0][0] == ">":
        return Answer(("rel", nodes[::-1], [_RELATION_FLIPPED[operators[0]]]))
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
    if _is_name(last) and len(nodes) == 2 and symbols(last) and _head(last) not in symbols(first):
        return replace(canonical(first), name=_key(last))
    if not symbols(list(nodes)):
        return replace(canonical(last), also=tuple(nodes[:-1]))
    if len(nodes) == 2:
        return Answer(("rel", nodes, ["="]))
    raise MathSyntaxError("a chain of equations")


def _is_name(node: Node) -> bool:
    """A symbol, or a symbol or its inverse applied to symbols: x, f(x), P(A), f^{-1}(x)."""
    if node[0] == "sym":
        return True
    return node[0] == "mul" and len(node[1]) == 2 and _is_function(node[1][0]) and node[1][1][0] == "sym"


def _is_function(node: Node) -> bool:
    return node[0] == "sym" or (node[0] == "pow" and node[1][0] == "sym" and node[2] == ("neg", ("num", "1")))


def _head(node: Node) -> str:
    while node[0] != "sym":
        node = node[1][0] if node[0] == "mul" else node[1]
    return str(node[1])


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


def _plus_minus(node: Node) -> Node:
    """Each item with a ± as both its values: all upper signs, then all lower signs."""
    items = node[1] if node[0] in ("list", "either") else [node]
    if not any(_has_sign(item) for item in items):
        return node
    both = [[_choose(item, True), _choose(item, False)] if _has_sign(item) else [item] for item in items]
    return ("list", [value for values in both for value in values])


def _has_sign(node: object) -> bool:
    if isinstance(node, tuple) and node and node[0] in ("pm", "mp"):
        return True
    return isinstance(node, (tuple, list)) and any(_has_sign(part) for part in node)


def _choose(node: object, plus: bool) -> Node:
    if isinstance(node, tuple) and node and node[0] in ("pm", "mp"):
        left, right = _choose(node[1], plus), _choose(node[2], plus)
        return ("add", [left, right if plus == (node[0] == "pm") else ("neg", right)])
    if isinstance(node, tuple):
        return tuple(_choose(part, plus) for part in node)
    if isinstance(node, list):
        return [_choose(part, plus) for part in node]  # type: ignore[return-value]
    return node  # type: ignore[return-value]


def letters_as_units(node: Node) -> Node:
    """Symbols as units: the m and s of `6 m/s`, for a value that is known to be a quantity. A small letter that is no
    unit's is a variable."""
    if node[0] == "sym":
        return ("unit", node[1]) if node[1] in UNIT_ALIASES or not node[1].islower() else node
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
    if node[0] in ("add", "ratio"):
        return _split_terms(node)
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


def _split_terms(node: Node) -> tuple[Node, str | None]:
    r"""`180^\circ - 2x` and `7:30 pm`: the one unit of all terms; a term without it is of that unit if it is named."""
    parts = [split_unit(part) for part in node[1]]
    units = {unit for _, unit in parts} - {None}
    bare = [value for value, unit in parts if unit is None]
    if len(units) != 1 or (node[0] == "add" and not all(symbols(value) for value in bare)):
        return node, None
    return (node[0], [value for value, _ in parts]), units.pop()


def _only_units(node: Node) -> bool:
    if node[0] == "unit":
        return True
    if node[0] == "pow":
        return _only_units(node[1]) and node[2][0] in ("num", "neg")
    return node[0] == "mul" and all(_only_units(part) for part in node[1])


def _unit_text(node: Node) -> str:
    if node[0] == "unit":
        text = re.sub(r"[^a-z$/ ]", "", node[1].lower()).replace("sq ", "square ").replace(" per ", "/")
        words = re.findall(r"[a-z$]+|/", text)
        named = " ".join(UNIT_ALIASES.get(word, word) for word in words).replace(" / ", "/")
        return re.sub(r"\bsquare (\w+)", r"\1^2", re.sub(r"\bcubic (\w+)", r"\1^3", named))
    if node[0] == "pow":
        return f"{_unit_text(node[1])}^{node[2][1]}"
    return " ".join(_unit_text(part) for part in node[1])
