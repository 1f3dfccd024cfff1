r"""math-verify behind our own grammar: answers it reads and we do not (integrals, sums, limits, rarer commands).

Its parser may stop in the middle of a text and its comparison rounds floats, so it is trusted with neither: a parse
counts only if it is *anchored* (the text in brackets, times a fresh symbol, parses to the parse times that symbol), and
equality is decided by `symbolic.equal`.
"""

from __future__ import annotations

from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy

from verifiers.math.symbolic import equal, expression

_ANCHOR = r"z_{777}"


def same_latex(gold: list[Any], given: list[Any]) -> bool | str:
    """Each side is ["tree", node] or ["latex", text]. Returns "gold" or "given" when that side cannot be read whole."""
    values = []
    for side, (form, content) in (("gold", gold), ("given", given)):
        try:
            values.append(expression(content) if form == "tree" else _read(content))
        except Exception:  # the parsers raise many types
            return side
    return equal(*values)


def _read(text: str) -> Any:
    value = latex2sympy(text)
    anchored, anchor = latex2sympy(rf"\left({text}\right) \cdot {_ANCHOR}"), latex2sympy(_ANCHOR)
    if not isinstance(value, sympy.Expr) or not equal(value * anchor, anchored):
        raise ValueError(f"math-verify reads only a part of {text[:80]!r}")
    real = {symbol: sympy.Symbol(symbol.name, real=True) for symbol in value.free_symbols}
    return value.xreplace(real).doit()
