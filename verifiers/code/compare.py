"""Strict comparison of plain data, and of printed output."""

from __future__ import annotations

import math
from typing import Any


def same_value(expected: Any, got: Any, tolerance: float) -> bool:
    """Whether `got` is `expected`, types included: `True` is not 1 and 1 is not 1.0.

    Floats may differ by `tolerance`, relative or absolute; NaN equals NaN. An expected list also accepts a tuple,
    since rows in JSON or Arrow cannot spell one. Keys of dicts and members of sets are compared exactly.

    >>> same_value([1, 2.0], [1, 2.0 + 1e-9], 1e-6), same_value(1, True, 1e-6), same_value([1], (1,), 1e-6)
    (True, False, True)
    """
    if type(expected) is list and type(got) is tuple:
        got = list(got)
    if type(expected) is not type(got):
        return False
    if type(expected) is float:
        if math.isnan(expected) or math.isnan(got):
            return math.isnan(expected) and math.isnan(got)
        return math.isclose(expected, got, rel_tol=tolerance, abs_tol=tolerance)
    if type(expected) in (list, tuple):
        return len(expected) == len(got) and all(same_value(e, g, tolerance) for e, g in zip(expected, got))
    if type(expected) is dict:
        if {(type(k), k) for k in expected} != {(type(k), k) for k in got}:
            return False
        return all(same_value(e, got[k], tolerance) for k, e in expected.items())
    if type(expected) in (set, frozenset):
        return {(type(m), m) for m in expected} == {(type(m), m) for m in got}
    return expected == got


def same_output(expected: str, got: str) -> bool:
    """Whether a program printed what it should: every line, in order, ignoring white space at the ends of lines and
    blank lines at the end. A correct beginning is not enough.

    >>> same_output("1\\n2\\n", "1 \\n2"), same_output("1\\n2\\n", "1\\n"), same_output("1", " 1")
    (True, False, False)
    """
    return _lines(expected) == _lines(got)


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines
