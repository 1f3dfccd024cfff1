"""Polynomials with rational coefficients in named generators, with the relations that the generators obey.

A `Poly` maps monomials to coefficients and holds no zero. A generator is (kind, name): ("symbol", "x"), ("i", ""),
("pi", ""), ("e", ""), ("prime", 2) for real radicals of a prime, ("log", 2), ("sin", key), ("cos", key). The relations
kept are i^2 = -1, p^(a+1) = p·p^a, and cos^2 = 1 - sin^2.
"""

from __future__ import annotations

import threading
from fractions import Fraction
from typing import Any

Generator = tuple[str, Any]
Monomial = tuple[tuple[Generator, Fraction], ...]
Poly = dict[Monomial, Fraction]

MAX_PRODUCTS = 20_000  # per comparison, about 0.1 s
MAX_BITS = 4096
MAX_TRIAL = 1000
ONE: Poly = {(): Fraction(1)}
I_POLY: Poly = {((("i", ""), Fraction(1)),): Fraction(1)}


class _Spent(threading.local):
    products = 0


_spent = _Spent()


class UndecidedError(ValueError):
    """The expression is not covered by normal forms, or too large for them."""


def start_counting() -> None:
    """Begin a comparison: from here on the products of this thread count towards MAX_PRODUCTS."""
    _spent.products = 0


def constant(value: Fraction) -> Poly:
    return {(): value} if value else {}


def generator(kind: str, name: Any) -> Poly:
    return {(((kind, name), Fraction(1)),): Fraction(1)}


def add_poly(left: Poly, right: Poly, factor: Fraction = Fraction(1)) -> Poly:
    """left + factor · right."""
    total = dict(left)
    for monomial, coefficient in right.items():
        total[monomial] = total.get(monomial, Fraction(0)) + factor * coefficient
    return {monomial: coefficient for monomial, coefficient in total.items() if coefficient}


def mul_poly(left: Poly, right: Poly) -> Poly:
    _spent.products += len(left) * len(right)
    if _spent.products > MAX_PRODUCTS:
        raise UndecidedError("too many products of terms")
    total: Poly = {}
    for a, x in left.items():
        for b, y in right.items():
            for monomial, coefficient in _mul_monomials(a, b).items():
                total[monomial] = total.get(monomial, Fraction(0)) + x * y * coefficient
    total = {monomial: coefficient for monomial, coefficient in total.items() if coefficient}
    if any(max(c.numerator.bit_length(), c.denominator.bit_length()) > MAX_BITS for c in total.values()):
        raise UndecidedError("a coefficient that is too large")
    return total


def _mul_monomials(a: Monomial, b: Monomial) -> Poly:
    if not a or not b:
        return {a or b: Fraction(1)}
    exponents = dict(a)
    for g, exponent in b:
        exponents[g] = exponents.get(g, Fraction(0)) + exponent
    factor, cosine = Fraction(1), None
    for g, exponent in exponents.items():
        if g[0] == "prime" and exponent >= 1:
            factor, exponents[g] = factor * g[1] ** int(exponent), exponent % 1
        elif g[0] == "i" and exponent >= 2:
            factor, exponents[g] = -factor, exponent - 2
        elif g[0] == "cos" and exponent >= 2:
            cosine, exponents[g] = g[1], exponent - 2
    monomial = tuple(sorted((g, e) for g, e in exponents.items() if e))
    if cosine is None:
        return {monomial: factor}
    return mul_poly({monomial: factor}, {(): Fraction(1), ((("sin", cosine), Fraction(2)),): Fraction(-1)})


def invert_monomial(value: Poly) -> Poly | None:
    """The inverse of one monomial in i and radicals of primes; None for anything else."""
    if len(value) != 1:
        return None
    ((monomial, coefficient),) = value.items()
    inverse = constant(1 / coefficient)
    for (kind, name), exponent in monomial:
        if kind == "prime":
            inverse = mul_poly(inverse, prime_power(Fraction(name), -exponent))
        elif kind == "i":
            inverse = mul_poly(inverse, add_poly({}, I_POLY, Fraction(-1)))
        else:
            return None
    return inverse


def prime_power(value: Fraction, exponent: Fraction) -> Poly:
    """value^exponent for a rational value >= 0, one monomial in radicals of primes."""
    if value == 0 and exponent > 0:
        return {}
    total = Fraction(1)
    parts: list[tuple[Generator, Fraction]] = []
    for prime, multiplicity in prime_factors(value):
        whole, part = divmod(multiplicity * exponent, 1)
        if abs(whole) * prime.bit_length() > MAX_BITS:
            raise UndecidedError("a power that is too large")
        total *= Fraction(prime) ** int(whole)
        if part:
            parts.append((("prime", prime), part))
    return {tuple(sorted(parts)): total}


def prime_factors(value: Fraction) -> list[tuple[int, int]]:
    """Primes and multiplicities (negative in the denominator) of a rational number > 0; small primes only, so that a
    long integer costs nothing."""
    if value <= 0:
        raise UndecidedError("a number that is not positive has no prime factors")
    factors: list[tuple[int, int]] = []
    for n, sign in ((value.numerator, 1), (value.denominator, -1)):
        if n.bit_length() > MAX_BITS:
            raise UndecidedError("a number that is too large")
        for prime in (2, *range(3, MAX_TRIAL, 2)):
            if n == 1:
                break
            multiplicity = 0
            while n % prime == 0:
                n, multiplicity = n // prime, multiplicity + 1
            if multiplicity:
                factors.append((prime, sign * multiplicity))
        if n >= MAX_TRIAL**2:
            raise UndecidedError("a number without small factors")
        if n > 1:
            factors.append((n, sign))
    return factors


def is_decisive(*polys: Poly) -> bool:
    """Whether different polynomials in these generators are different values (see `normal_form`)."""
    kinds = {g[0] for poly in polys for monomial in poly for g, _ in monomial}
    return kinds <= {"symbol", "i", "prime", "pi"} or kinds <= {"symbol", "i", "prime", "e"}
