"""The voting key of an answer: what a majority vote over several responses counts as one and the same answer.

Equality of answers is a relation between two of them, in which a unit, a name or a percent sign counts only where both
state it; a key has to be made from one alone. So the key leaves units, names and percent signs out, and irrational
values are told apart by their digits. Verdicts never use it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import Any

from verifiers.math.answer import Answer, normalise_words, read_answer
from verifiers.math.atoms import Node
from verifiers.math.compare import ask
from verifiers.math.exact import exact
from verifiers.math.extract import extract_answer
from verifiers.math.tokens import MAX_LENGTH, MathSyntaxError, strip_typography
from verifiers.worker import WorkerCrashError, WorkerTimeoutError

_STRUCTURES = ("rel", "in", "union", "both", "minus", "numset", "inf")


def math_answer(response: str, row: Mapping[str, Any]) -> Hashable | None:
    r"""None when no answer can be found.

    >>> math_answer(r"\boxed{\frac{2}{4}}", {}) == math_answer("The answer is 0.5.", {}) != math_answer("2/5", {})
    True
    >>> math_answer(r"\boxed{\sqrt{8}}", {}) == math_answer(r"\boxed{2\sqrt{2}}", {})
    True
    """
    text = extract_answer(response)
    return None if text is None or len(text) > MAX_LENGTH else _key_of_text(text)


@lru_cache(maxsize=4096)
def _key_of_text(text: str) -> Hashable:
    try:
        answer: Answer | None = read_answer(text)
    except (MathSyntaxError, RecursionError):
        answer = None
    return normalise_words(strip_typography(text)) if answer is None else _key(answer.value)


def _key(node: Node) -> Hashable:
    kind = node[0]
    if kind in ("text", "sym"):
        return normalise_words(str(node[1]))
    if kind in ("list", "set"):
        items = tuple(sorted({_key(item) for item in node[1]}, key=repr))
        return items[0] if len(items) == 1 else ("items", *items)
    if kind == "named":
        return ("tuple", *(_key(value) for _, value in node[1]))
    if kind in ("tuple", "ratio"):
        return (kind, *(_key(part) for part in node[1]))
    if kind == "interval":
        return (node[1], _key(node[2]), _key(node[3]), node[4])
    if kind == "matrix":
        return ("matrix", *(tuple(_key(part) for part in row) for row in node[1]))
    return repr(node) if kind in _STRUCTURES else _number_key(node)


def _number_key(node: Node) -> str:
    try:
        value = exact(node)
        return str(ask("key", node, None)) if value is None else str(value)
    except (ArithmeticError, ValueError, RuntimeError, WorkerCrashError, WorkerTimeoutError):
        return repr(node)
