"""Computer algebra, run in the worker: sympy expressions from answer trees, and proofs that two are equal.

Equality is accepted only when sympy *proves* the difference to be zero. Numerical evaluation is used to reject, never
to accept.
"""

from __future__ import annotations

import zlib
from decimal import Context
from fractions import Fraction
from typing import Any

import sympy
from sympy import Expr, Matrix, Rational, Set, Symbol
from sympy.functions.elementary.hyperbolic import HyperbolicFunction
from sympy.functions.elementary.trigonometric import InverseTrigonometricFunction, TrigonometricFunction

DIGITS = 40
_TRIGONOMETRIC = ["sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "exp"]
_FUNCTIONS: dict[str, Any] = {name: getattr(sympy, name) for name in _TRIGONOMETRIC} | {
    "arcsin": sympy.asin,
    "arccos": sympy.acos,
    "arctan": sympy.atan,
    "arccot": sympy.acot,
    "abs": sympy.Abs,
    "floor": sympy.floor,
    "ceil": sympy.ceiling,
    "gcd": sympy.gcd,
    "lcm": sympy.lcm,
    "max": sympy.Max,
    "min": sympy.Min,
    "binom": sympy.binomial,
    "ln": sympy.log,
    "log": sympy.log,
}
_CONSTANTS = {"e": sympy.E, "i": sympy.I, "pi": sympy.pi}
_NUMBER_SETS = {"R": sympy.S.Reals, "Z": sympy.S.Integers, "Q": sympy.S.Rationals, "N": sympy.S.Naturals}


def answer_request(request: list[Any]) -> bool | str:
    """The worker's entry: [operation, gold, given]."""
    operation, gold, given = request
    if operation == "equal":
        return equal(expression(gold), expression(given))
    if operation == "near":
        return near(expression(gold), expression(given))
    if operation == "proportional":
        return proportional(gold, given)
    if operation == "same_set":
        return same_set(as_set(gold), as_set(given))
    if operation == "key":
        return value_key(expression(gold))
    if operation == "latex":
        from verifiers.math.latex_fallback import same_latex

        return same_latex(gold, given)
    raise ValueError(f"unknown operation {operation!r}")


def expression(node: Any) -> Any:
    """The sympy expression of a tree (a matrix for a matrix). Symbols are real."""
    kind = node[0]
    if kind == "num":
        return Rational(node[1])
    if kind == "base":
        return sympy.Integer(int(node[1], int(node[2])))
    if kind in ("sym", "unit"):
        return _CONSTANTS.get(node[1]) or Symbol(node[1], real=True)
    if kind == "inf":
        return sympy.oo
    if kind in ("add", "mul"):
        parts = [expression(part) for part in node[1]]
        total = parts[0]
        for part in parts[1:]:
            total = total + part if kind == "add" else total * part
        return total
    if kind == "call":
        return _call(node[1], [expression(part) for part in node[2]])
    if kind == "matrix":
        return Matrix([[expression(part) for part in row] for row in node[1]])
    return _operator(kind, [expression(part) for part in node[1:]])


def _operator(kind: str, parts: list[Any]) -> Any:
    if kind == "neg":
        return -parts[0]
    if kind == "pct":
        return parts[0] / 100
    if kind == "fact":
        return sympy.factorial(parts[0])
    if kind == "div":
        return parts[0] / parts[1]
    if kind == "pow":
        # The real root of a negative number under an odd index, as textbooks write it.
        if len(parts) == 2 and parts[0].is_negative and parts[1].is_Rational and parts[1].q % 2 and parts[1].q > 1:
            return sympy.real_root(parts[0], parts[1].q) ** parts[1].p
        return parts[0] ** parts[1]
    raise ValueError(f"a {kind} is no expression")


def _call(name: str, arguments: list[Any]) -> Any:
    if name == "det":
        return arguments[0].det()
    if name == "lg":
        return sympy.log(arguments[0], 10)
    return _FUNCTIONS[name](*arguments)


def equal(left: Any, right: Any) -> bool:
    """True only when proven."""
    if isinstance(left, Matrix) or isinstance(right, Matrix):
        both = isinstance(left, Matrix) and isinstance(right, Matrix)
        return both and left.shape == right.shape and all(equal(a, b) for a, b in zip(left, right))
    undefined = (sympy.nan, sympy.zoo)
    if left.has(*undefined) or right.has(*undefined):
        return False
    if left == right:
        return True
    if left.has(sympy.oo, -sympy.oo) or right.has(sympy.oo, -sympy.oo):
        return False
    difference = left - right
    return not clearly_nonzero(difference) and proven_zero(difference)


def clearly_nonzero(difference: Expr) -> bool:
    """Numerically away from zero, at a sample point when there are symbols."""
    free = sorted(difference.free_symbols, key=str)
    for shift in (0, 1):
        point = {symbol: Rational(7 + 3 * i + shift, 5 + 2 * i) for i, symbol in enumerate(free)}
        value = difference.subs(point).evalf(DIGITS)
        # sympy returns precision 1 when it cannot tell a value from zero.
        if value.is_number and not value.has(sympy.nan, sympy.zoo, sympy.oo):
            parts = [part for part in value.as_real_imag() if part.is_Float and part != 0]
            if any(part._prec > 1 for part in parts):
                return True
    return False


def near(value: Expr, decimal: Expr) -> bool:
    """Whether a decimal may stand for the value: within five percent. It only ever takes an answer away."""
    distance = sympy.Abs(value - decimal).evalf(DIGITS)
    return bool(distance.is_Float and distance <= sympy.Abs(value).evalf(DIGITS) / 20)


def proven_zero(difference: Expr) -> bool:
    """The quick proofs first."""
    for step in (sympy.expand, _exponentials, _denested, _arc_sum, _algebraic, sympy.radsimp, sympy.simplify, sympy.fu):
        try:
            reduced = step(difference)
        except Exception:  # computer algebra raises many types where a method does not apply
            continue
        if reduced.is_zero or reduced == 0:
            return True
    return False


def _exponentials(difference: Expr) -> Expr:
    """The numerator, expanded, with sines and cosines as powers of e: identities of multiple angles cancel."""
    if not difference.has(TrigonometricFunction, HyperbolicFunction, sympy.exp):
        return difference
    return sympy.expand(sympy.together(difference.rewrite(sympy.exp)).as_numer_denom()[0])


def _denested(difference: Expr) -> Expr:
    return sympy.expand(sympy.sqrtdenest(difference))


def _arc_sum(difference: Expr) -> Expr:
    """Zero when the tangent is zero and the value lies within half a period of it."""
    if difference.free_symbols or not difference.has(InverseTrigonometricFunction):
        return difference
    tangent = sympy.simplify(sympy.expand_trig(sympy.tan(difference)))
    return sympy.Integer(0) if tangent == 0 and abs(difference.evalf(DIGITS)) < 1 else difference


def _algebraic(difference: Expr) -> Expr:
    """Zero for an algebraic number whose minimal polynomial is x, else the difference itself."""
    if difference.free_symbols or not difference.is_algebraic:
        return difference
    x = Symbol("x")
    return sympy.Integer(0) if sympy.minimal_polynomial(difference, x) == x else difference


def proportional(gold: Any, given: Any) -> bool:
    """Whether two relations `lhs ? rhs` with one operator describe the same set: their differences are proportional
    (for an equation after clearing denominators; for an inequality with a positive factor)."""
    if len(gold[1]) != 2 or len(given[1]) != 2 or gold[2] != given[2]:
        return False
    left, right = (expression(side[1][0]) - expression(side[1][1]) for side in (gold, given))
    if gold[2][0] in ("=", "!="):
        left, right = (sympy.together(side).as_numer_denom()[0] for side in (left, right))
    if left.is_zero or right.is_zero or left.free_symbols != right.free_symbols or not left.free_symbols:
        return False
    factor = sympy.simplify(left / right)
    if factor.free_symbols or not factor.is_real or factor.is_zero or not equal(left, factor * right):
        return False
    return gold[2][0] in ("=", "!=") or bool(factor.is_positive)


def as_set(node: Any) -> Set:
    kind = node[0]
    if kind == "interval":
        low, high = expression(node[2]), expression(node[3])
        return sympy.Interval(low, high, left_open=node[1] != "[", right_open=node[4] != "]")
    if kind == "tuple":
        return sympy.Interval.open(expression(node[1][0]), expression(node[1][1]))
    if kind == "set":
        return sympy.FiniteSet(*(expression(part) for part in node[1]))
    if kind == "union":
        return sympy.Union(*(as_set(part) for part in node[1]))
    if kind == "both":
        parts = [as_set(part) for part in node[1]]
        common = sympy.Intersection(*parts)
        return sympy.Union(*parts) if common.is_empty else common
    if kind == "minus":
        return as_set(node[1]) - as_set(node[2])
    if kind == "numset":
        return _NUMBER_SETS[node[1]]
    raise ValueError(f"a {kind} is no set")


def same_set(left: Set, right: Set) -> bool:
    return left == right or sympy.SymmetricDifference(left, right).doit().is_empty is True


def value_key(value: Expr) -> str:
    """Digits of the value at a fixed point of its symbols: one text for expressions that are equal. Only for counting
    votes, never for a verdict. Raises ValueError for infinite and undefined values."""
    point = {symbol: 1 + Rational(zlib.crc32(symbol.name.encode()), 2**33) for symbol in value.free_symbols}
    number = value.subs(point).evalf(DIGITS)
    if not number.is_number or number.has(sympy.nan, sympy.zoo, sympy.oo):
        raise ValueError("no finite number")
    real, imaginary = (_digits(part) for part in number.as_real_imag())
    return real if imaginary == "0" else f"{real} + {imaginary}i"


def _digits(part: Expr) -> str:
    """A rational with a small denominator by its name, so that log_2(8) and 3 have one key."""
    if part.is_Float and part._prec == 1:  # cannot be told from zero
        return "0"
    number = Fraction(str(part))
    near = number.limit_denominator(10**9)
    close = abs(number - near) <= abs(number) / 10**30
    return str(near) if close else str(Context(prec=25).create_decimal(str(part)))
