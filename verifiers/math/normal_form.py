"""Equality of elementary expressions by a normal form, in this process and without computer algebra.

A value is a quotient of two polynomials with rational coefficients in *generators*: free symbols, i, pi, e, radicals of
primes (2^(1/3)), logarithms of primes, sines and cosines. Monomials in symbols, i, radicals of primes and one
transcendental constant are linearly independent over the rationals (for the radicals: Besicovitch, J. London Math. Soc.
15, 1940), so that there different forms are different values. With other generators equal forms still prove equality
and different ones prove nothing; then, and for everything too large or not covered, the outcome is None.
"""

from __future__ import annotations

from fractions import Fraction
from math import isqrt
from typing import NamedTuple

from verifiers.math.atoms import Node
from verifiers.math.exact import TooLargeError, exact
from verifiers.math.polynomial import (
    I_POLY,
    ONE,
    Poly,
    UndecidedError,
    add_poly,
    constant,
    generator,
    invert_monomial,
    is_decisive,
    mul_poly,
    prime_factors,
    prime_power,
    start_counting,
)

MAX_POWER = 64
_TRIGONOMETRIC = frozenset(["sin", "cos", "tan", "cot", "sec", "csc"])
_HALF = Fraction(1, 2)
_NOT_COVERED = (UndecidedError, TooLargeError, ZeroDivisionError, RecursionError)


class Ratio(NamedTuple):
    num: Poly
    den: Poly = ONE


def same_expression(gold: Node, given: Node) -> bool | None:
    """Whether two trees have one value; None when this module cannot tell."""
    start_counting()
    try:
        left, right = normal_form(gold), normal_form(given)
        difference = add_poly(mul_poly(left.num, right.den), mul_poly(right.num, left.den), Fraction(-1))
    except _NOT_COVERED:
        return None
    if not difference:
        return True
    return False if is_decisive(*left, *right) else None


def same_relation(gold: Node, given: Node) -> bool | None:
    """Whether two relations with the same operator, polynomial in their symbols, are multiples of each other."""
    if len(gold[1]) != 2 or len(given[1]) != 2:
        return None
    start_counting()
    try:
        sides = [_add(normal_form(node[1][0]), _negate(normal_form(node[1][1]))) for node in (gold, given)]
    except _NOT_COVERED:
        return None
    left, right = sides[0].num, sides[1].num
    names = [{g for monomial in side for g, _ in monomial} for side in (left, right)]
    if any(side.den != ONE for side in sides) or any(kind != "symbol" for kind, _ in names[0] | names[1]):
        return None  # a factor may hide in a denominator or in a constant that is not rational
    if not names[0] or names[0] != names[1] or left.keys() != right.keys():
        return False
    factors = {left[monomial] / right[monomial] for monomial in left}
    return len(factors) == 1 and (gold[2][0] in ("=", "!=") or factors.pop() > 0)


# -- arithmetic of quotients -------------------------------------------------------------------------------------------
def _add(a: Ratio, b: Ratio) -> Ratio:
    if a.den == b.den:
        return Ratio(add_poly(a.num, b.num), a.den)
    return Ratio(add_poly(mul_poly(a.num, b.den), mul_poly(b.num, a.den)), mul_poly(a.den, b.den))


def _negate(a: Ratio) -> Ratio:
    return Ratio(add_poly({}, a.num, Fraction(-1)), a.den)


def _mul(a: Ratio, b: Ratio) -> Ratio:
    return Ratio(mul_poly(a.num, b.num), mul_poly(a.den, b.den))


def _invert(a: Ratio) -> Ratio:
    if not a.num:
        raise ZeroDivisionError("a division by zero")
    inverse = invert_monomial(a.num)
    return Ratio(a.den, a.num) if inverse is None else Ratio(mul_poly(a.den, inverse))


def _int_power(a: Ratio, exponent: int) -> Ratio:
    if abs(exponent) > MAX_POWER or (exponent == 0 and not a.num):
        raise UndecidedError("a power that is too large, or 0^0")
    if exponent < 0:
        a, exponent = _invert(a), -exponent
    total = Ratio(ONE)
    for _ in range(exponent):
        total = _mul(total, a)
    return total


def _rational_ratio(value: Fraction) -> Ratio:
    return Ratio(constant(value))


# -- from trees --------------------------------------------------------------------------------------------------------
def normal_form(node: Node) -> Ratio:
    """Raises UndecidedError for what is not covered, and whatever `exact` raises."""
    kind = node[0]
    if kind in ("num", "base", "fact"):
        return _rational_ratio(_rational(node))
    if kind in ("sym", "unit"):
        return Ratio(_symbol(node[1]))
    if kind in ("add", "mul"):
        total = normal_form(node[1][0])
        for part in node[1][1:]:
            total = (_add if kind == "add" else _mul)(total, normal_form(part))
        return total
    if kind == "neg":
        return _negate(normal_form(node[1]))
    if kind == "pct":
        return _mul(normal_form(node[1]), _rational_ratio(Fraction(1, 100)))
    if kind == "div":
        return _mul(normal_form(node[1]), _invert(normal_form(node[2])))
    if kind == "pow":
        return _power(node[1], node[2])
    if kind == "call":
        return _call(node[1], node[2])
    raise UndecidedError(f"a {kind}")


def _rational(node: Node) -> Fraction:
    value = exact(node)
    if value is None:
        raise UndecidedError("not a rational number")
    return value


def _symbol(name: str) -> Poly:
    if name == "i":
        return I_POLY
    return generator(name, "") if name in ("e", "pi") else generator("symbol", name)


def _power(base: Node, exponent: Node) -> Ratio:
    power = exact(exponent)
    if power is None:
        if base == ("sym", "e"):
            return _exponential(normal_form(exponent))
        raise UndecidedError("an exponent that is not rational")
    value = normal_form(base)
    if power.denominator == 1:
        return _int_power(value, int(power))
    return _int_power(Ratio(_root(value, power.denominator)), power.numerator)


def _root(value: Ratio, index: int) -> Poly:
    """The real root; of a negative number the real root for an odd index and i times a root for index 2."""
    if value.den != ONE or not 1 <= len(value.num) <= 2:
        raise UndecidedError("a root of an expression")
    if len(value.num) == 2:
        return _denested(value.num, index)
    ((monomial, factor),) = value.num.items()
    if any(kind != "prime" for (kind, _), _ in monomial) or (factor < 0 and index > 2 and index % 2 == 0):
        raise UndecidedError("a root of a symbol, or a complex root")
    root = prime_power(abs(factor), Fraction(1, index))
    for (_, prime), exponent in monomial:
        root = mul_poly(root, prime_power(Fraction(prime), exponent / index))
    if factor < 0:
        root = mul_poly(root, I_POLY if index == 2 else constant(Fraction(-1)))
    return root


def _denested(value: Poly, index: int) -> Poly:
    r"""sqrt(a + b sqrt(c)) = sqrt((a+s)/2) ± sqrt((a-s)/2) where s = sqrt(a^2 - b^2 c) is rational."""
    first, second = value.get(()), next(((m, c) for m, c in value.items() if m), None)
    if index != 2 or first is None or first <= 0 or second is None:
        raise UndecidedError("a nested root")
    monomial, factor = second
    square = factor**2
    for (kind, prime), exponent in monomial:
        if kind != "prime" or exponent != _HALF:
            raise UndecidedError("a nested root")
        square *= prime
    s = _rational_square_root(first**2 - square)
    larger, smaller = (prime_power((first + sign * s) / 2, _HALF) for sign in (1, -1))
    return add_poly(larger, smaller, Fraction(1 if factor > 0 else -1))


def _rational_square_root(value: Fraction) -> Fraction:
    if value >= 0:
        top, bottom = isqrt(value.numerator), isqrt(value.denominator)
        if top**2 == value.numerator and bottom**2 == value.denominator:
            return Fraction(top, bottom)
    raise UndecidedError("a nested root")


# -- functions ---------------------------------------------------------------------------------------------------------
def _call(name: str, arguments: list[Node]) -> Ratio:
    if name in _TRIGONOMETRIC and len(arguments) == 1:
        return _trigonometric(name, normal_form(arguments[0]))
    if name == "exp" and len(arguments) == 1:
        return _exponential(normal_form(arguments[0]))
    if name in ("ln", "log", "lg"):
        logarithms = [Ratio(_logarithm(part)) for part in ([*arguments, ("num", "10")] if name == "lg" else arguments)]
        return logarithms[0] if len(logarithms) == 1 else _mul(logarithms[0], _invert(logarithms[1]))
    if name == "binom":
        return _binomial(normal_form(arguments[0]), _rational(arguments[1]))
    return _rational_ratio(_rational(("call", name, arguments)))


def _binomial(top: Ratio, bottom: Fraction) -> Ratio:
    if bottom.denominator != 1 or not 0 <= bottom <= 8:
        raise UndecidedError("a binomial coefficient")
    total = Ratio(ONE)
    for j in range(int(bottom)):
        factor = _mul(_add(top, _rational_ratio(Fraction(-j))), _rational_ratio(Fraction(1, j + 1)))
        total = _mul(total, factor)
    return total


def _logarithm(node: Node) -> Poly:
    """The natural logarithm of e or of a positive rational number, in logarithms of primes."""
    if node == ("sym", "e"):
        return ONE
    total: Poly = {}
    for prime, multiplicity in prime_factors(_rational(node)):
        total = add_poly(total, generator("log", prime), Fraction(multiplicity))
    return total


def _exponential(exponent: Ratio) -> Ratio:
    """e^(i x) = cos x + i sin x for an x without i."""
    imaginary = [dict(monomial).get(("i", "")) for monomial in exponent.num]
    if exponent.den != ONE or not imaginary or None in imaginary:
        raise UndecidedError("a power of e")
    angle = mul_poly(exponent.num, add_poly({}, I_POLY, Fraction(-1)))
    return Ratio(add_poly(_cosine(angle), mul_poly(I_POLY, _sine(angle))))


def _trigonometric(name: str, angle: Ratio) -> Ratio:
    if angle.den != ONE:
        raise UndecidedError("a function of a quotient")
    sine, cosine = Ratio(_sine(angle.num)), Ratio(_cosine(angle.num))
    if name in ("sin", "cos"):
        return sine if name == "sin" else cosine
    if name in ("tan", "cot"):
        return _mul(sine, _invert(cosine)) if name == "tan" else _mul(cosine, _invert(sine))
    return _invert(cosine) if name == "sec" else _invert(sine)


def _cosine(angle: Poly) -> Poly:
    """A table for multiples of 15 degrees, else a generator."""
    turns = _twelfths_of_pi(angle)
    if turns is None:
        return generator("cos", repr(sorted(angle.items())))
    folded = min(turns % 24, 24 - turns % 24)
    sign = Fraction(1 if folded <= 6 else -1)
    return add_poly({}, _FIRST_QUADRANT[min(folded, 12 - folded)], sign)


def _sine(angle: Poly) -> Poly:
    turns = _twelfths_of_pi(angle)
    if turns is None:
        return generator("sin", repr(sorted(angle.items())))
    return _cosine({_PI: Fraction(6 - turns, 12)} if turns != 6 else {})


def _twelfths_of_pi(angle: Poly) -> int | None:
    if not angle:
        return 0
    turns = 12 * angle.get(_PI, Fraction(0))
    return int(turns) if len(angle) == 1 and turns and turns.denominator == 1 else None


def _surd(*terms: tuple[int, int]) -> Poly:
    """Σ factor · sqrt(radicand) / 4."""
    total: Poly = {}
    for factor, radicand in terms:
        total = add_poly(total, prime_power(Fraction(radicand), _HALF), Fraction(factor, 4))
    return total


_PI = ((("pi", ""), Fraction(1)),)
_FIRST_QUADRANT = [  # cosines of 0, 15, … 90 degrees
    ONE, _surd((1, 6), (1, 2)), _surd((2, 3)), _surd((2, 2)), _surd((2, 1)), _surd((1, 6), (-1, 2)), {},
]  # fmt: skip
