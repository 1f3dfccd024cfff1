"""The second opinion of `--audit-against`: another verifier, or labels that stand in a column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from alignment.commands.verify.audit import Opinion
from alignment.commands.verify.items import Item, judge
from alignment.errors import UserError

PASSES = ("pass", "passed", "correct", "true", "yes", "1")
FAILS = ("fail", "failed", "unparsed", "timeout", "incorrect", "wrong", "false", "no", "0")
UNKNOWN = ("error", "")


def second_opinions(name: str, items: Sequence[Item], source: str) -> tuple[list[Opinion], str]:
    """One opinion per item, and what to call them. name: a registered verifier or package.module:function, otherwise a
    column. Raises UserError when it is neither, or when a cell is no label."""
    from verifiers import get_verifier

    try:
        get_verifier(name)
    except ValueError as error:
        if any(name in item.row for item in items):
            return [_label(item, name, source) for item in items], f"column {name}"
        columns = sorted(items[0].row)
        raise UserError(f"--audit-against: {error}; nor is it a column of {source}, which has {columns}") from error
    judged = judge(name, items, source)
    return [
        Opinion(None if one.score is None else one.verdict.passed, one.verdict.status, one.verdict.detail)
        for one in judged
    ], name


def _label(item: Item, column: str, source: str) -> Opinion:
    """A list holds one label per response of its row."""
    where, cell = f"{source}, row {item.row_number}, column {column!r}", item.row.get(column)
    if isinstance(cell, list):
        if item.sample >= len(cell):
            raise UserError(f"{where}: {len(cell)} labels are too few, give one per response")
        cell = cell[item.sample]
    passed = _as_pass(cell, where)
    status = "unlabelled" if passed is None else "pass" if passed else "fail"
    return Opinion(passed, status, f"labelled {cell!r}")


def _as_pass(cell: Any, where: str) -> bool | None:
    """A number passes from 1 on, as scores do."""
    if cell is None:
        return None
    if isinstance(cell, (bool, int, float)):
        return None if math.isnan(cell) else cell >= 1
    text = str(cell).strip().casefold()
    if text in UNKNOWN:
        return None
    if text not in PASSES and text not in FAILS:
        known = ", ".join((*PASSES, *FAILS))
        raise UserError(f"{where}: {str(cell)[:40]!r} is no label; use true and false, numbers, or one of {known}")
    return text in PASSES
