"""Equality of sets of real numbers with rational ends, by membership.

Two sets built from intervals, points, unions, differences and intersections are equal when they agree at every end of
either, between any two neighbouring ends, and beyond the outermost ones.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from verifiers.math.atoms import Node
from verifiers.math.exact import TooLargeError, exact

MAX_ENDS = 64
_INFINITY: Node = ("inf",)


def same_real_set(gold: Node, given: Node) -> bool | None:
    """None when an end is not a rational number, a part is not such a set, or there are more than MAX_ENDS ends."""
    try:
        gold, given = _resolved(gold), _resolved(given)
        return all(_contains(gold, x) == _contains(given, x) for x in _samples(_ends(gold) | _ends(given)))
    except (LookupError, TooLargeError, ZeroDivisionError):
        return None


def _resolved(node: Node) -> Node:
    """ "x < -1 and x > 1" lists two ranges: conditions that nothing meets together are a union."""
    if node[0] != "both" or any(_contains(node, x) for x in _samples(_ends(node))):
        return node
    return ("union", node[1])


def _samples(ends: set[Fraction]) -> list[Fraction]:
    if len(ends) > MAX_ENDS:
        raise LookupError("too many ends")
    points = sorted(ends) or [Fraction(0)]
    between = [(a + b) / 2 for a, b in pairwise(points)]
    return [points[0] - 1, *points, *between, points[-1] + 1]


def _end(node: Node) -> Fraction | None:
    """None for an infinite end. Raises LookupError for one that is not rational."""
    if node == _INFINITY or node == ("neg", _INFINITY):
        return None
    value = exact(node)
    if value is None:
        raise LookupError("an end that is not rational")
    return value


def _bounds(node: Node) -> tuple[Node, Node]:
    return (node[2], node[3]) if node[0] == "interval" else (node[1][0], node[1][1])


def _ends(node: Node) -> set[Fraction]:
    kind = node[0]
    if kind in ("interval", "tuple"):
        if _bounds(node)[0] == _INFINITY or _bounds(node)[1] == ("neg", _INFINITY):
            raise LookupError("an interval from right to left")
        found = {_end(bound) for bound in _bounds(node)}
    elif kind == "set":
        found = {_end(item) for item in node[1]}
        if None in found:
            raise LookupError("infinity is no member")
    elif kind in ("union", "both"):
        found = set().union(*(_ends(part) for part in node[1]))
    elif kind == "minus":
        found = {*_ends(node[1]), *_ends(node[2])}
    elif node == ("numset", "R"):
        found = set()
    else:
        raise LookupError(f"a {kind} is no set of intervals")
    return {end for end in found if end is not None}


def _contains(node: Node, x: Fraction) -> bool:
    kind = node[0]
    if kind in ("interval", "tuple"):
        low, high = (_end(bound) for bound in _bounds(node))
        opening, closing = (node[1], node[4]) if kind == "interval" else ("(", ")")
        above = low is None or x > low or (x == low and opening == "[")
        return above and (high is None or x < high or (x == high and closing == "]"))
    if kind == "set":
        return any(exact(item) == x for item in node[1])
    if kind == "union":
        return any(_contains(part, x) for part in node[1])
    if kind == "both":
        return all(_contains(part, x) for part in node[1])
    return True if kind == "numset" else _contains(node[1], x) and not _contains(node[2], x)
