"""Exact rational value of a tree: the fast path. Never a float."""

from __future__ import annotations

from fractions import Fraction
from math import comb, factorial

from verifiers.math.atoms import Node

MAX_BITS = 1 << 16
MAX_FACTORIAL = 3000
MAX_ROOT_BITS = 2048


class TooLargeError(ValueError):
    """The value has more than MAX_BITS bits, which no answer needs."""


def exact(node: Node) -> Fraction | None:
    """The value when the tree is rational arithmetic, else None.

    Raises TooLargeError for towers of powers and ZeroDivisionError for a division by zero.
    """
    kind = node[0]
    if kind == "num":
        return Fraction(node[1])
    if kind == "base":
        return Fraction(int(node[1], int(node[2])))
    if kind in ("neg", "pct", "fact"):
        value = exact(node[1])
        return None if value is None else _unary(kind, value)
    if kind in ("add", "mul"):
        return _fold(kind, node[1])
    if kind in ("div", "pow"):
        left, right = exact(node[1]), exact(node[2])
        if left is None or right is None:
            return None
        return left / right if kind == "div" else _power(left, right)
    if kind == "call" and node[1] in ("binom", "abs", "floor", "ceil"):
        return _call(node[1], [exact(n) for n in node[2]])
    return None


def _fold(kind: str, nodes: list[Node]) -> Fraction | None:
    total = Fraction(0 if kind == "add" else 1)
    for node in nodes:
        value = exact(node)
        if value is None:
            return None
        total = total + value if kind == "add" else total * value
        _check_size(total)
    return total


def _unary(kind: str, value: Fraction) -> Fraction | None:
    if kind == "neg":
        return -value
    if kind == "pct":
        return value / 100
    if value.denominator != 1 or value < 0:
        return None
    if value > MAX_FACTORIAL:
        raise TooLargeError(f"{value}!")
    return Fraction(factorial(int(value)))


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return _root(base, exponent)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) != 1 and base != 0 and bits * abs(exponent) > MAX_BITS:
        raise TooLargeError("a power that is too large")
    if base == 0 and exponent == 0:
        return None
    if abs(base) == 1:
        return base if exponent.numerator % 2 else Fraction(1)
    return base ** int(exponent)


def _root(base: Fraction, exponent: Fraction) -> Fraction | None:
    """Perfect powers only, so that sqrt(16) is 4; any other root is not rational."""
    if base < 0 or exponent.denominator > 64 or max(base.numerator, base.denominator).bit_length() > MAX_ROOT_BITS:
        return None
    parts = [_integer_root(n, exponent.denominator) for n in (base.numerator, base.denominator)]
    if parts[0] is None or parts[1] is None:
        return None
    return _power(Fraction(parts[0], parts[1]), Fraction(exponent.numerator))


def _integer_root(n: int, k: int) -> int | None:
    low, high = 0, 1 << (n.bit_length() // k + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**k <= n else (low, middle - 1)
    return low if low**k == n else None


def _call(name: str, values: list[Fraction | None]) -> Fraction | None:
    if any(v is None for v in values):
        return None
    first = values[0]
    assert first is not None
    if name == "binom":
        second = values[1]
        if second is None or first.denominator != 1 or second.denominator != 1 or not 0 <= second <= first <= 4000:
            return None
        return Fraction(comb(int(first), int(second)))
    if name == "abs":
        return abs(first)
    return Fraction(first.__floor__() if name == "floor" else first.__ceil__())


def _check_size(value: Fraction) -> None:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise TooLargeError("a number that is too large")


def symbols(node: object) -> set[str]:
    """Names of the free symbols of a tree; e, i and pi are constants."""
    if isinstance(node, tuple) and len(node) == 2 and node[0] in ("sym", "unit"):
        return set() if node[1] in ("e", "i", "pi") else {node[1]}
    if isinstance(node, (tuple, list)):
        return set().union(*(symbols(part) for part in node)) if node else set()
    return set()
