"""Disagreements one by one: two files on a problem, or two verdicts on a response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from alignment.commands.verify.items import Judged, question_text

SHOWN_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a second verifier or a label says of a response. passed: None where it says nothing."""

    passed: bool | None
    status: str
    detail: str


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two views. row: of its file; passed: the share of its `scored` responses that pass; status, detail
    and response: of one that shows it (response None where there is only an opinion)."""

    source: str
    row: int
    passed: float
    scored: int
    status: str
    detail: str
    response: str | None


@dataclass(frozen=True, slots=True)
class Disagreement:
    """kind: which side passes, or passes more often. columns: the row of the second side."""

    domain: str
    problem: str
    kind: str
    first: Side
    second: Side
    columns: Mapping[str, Any]

    @property
    def size(self) -> float:
        return abs(self.second.passed - self.first.passed)


def pass_share(scored: Sequence[Judged]) -> float:
    return sum(one.verdict.passed for one in scored) / len(scored)


def of_problem(first: Sequence[Judged], second: Sequence[Judged], names: tuple[str, str]) -> Disagreement:
    """Two files' scored responses to one problem, of which different shares pass. The better side shows a response that
    passes, the other one that does not."""
    gain = pass_share(second) > pass_share(first)
    left = _side(names[0], first, next(one for one in first if one.verdict.passed is not gain))
    right = _side(names[1], second, next(one for one in second if one.verdict.passed is gain))
    item = second[0].item
    return Disagreement(item.domain, question_text(item.row), f"{names[gain]} better", left, right, item.row)


def of_response(one: Judged, opinion: Opinion, names: tuple[str, str]) -> Disagreement:
    """A verdict and another opinion on the same response."""
    item, passed = one.item, bool(opinion.passed)
    right = Side(names[1], item.row_number, float(passed), 1, opinion.status, opinion.detail, None)
    kind = f"only {names[passed]} passes"
    return Disagreement(item.domain, question_text(item.row), kind, _side(names[0], [one], one), right, item.row)


def as_json(disagreement: Disagreement) -> dict[str, Any]:
    """One line of the audit file."""
    sides = {"first": asdict(disagreement.first), "second": asdict(disagreement.second)}
    return {"domain": disagreement.domain, "problem": disagreement.problem, "kind": disagreement.kind, **sides}


def audit_table(disagreements: Sequence[Disagreement], names: tuple[str, str], limit: int) -> Table:
    table = Table("row", box=box.SIMPLE_HEAD, title=f"{len(disagreements):,} disagreements")
    has_domains = any(one.domain for one in disagreements)
    for name in (*(["domain"] if has_domains else []), "problem", *names):
        table.add_column(name)
    for one in disagreements[:limit]:
        problem = " ".join(one.problem.split())
        cells = [*([one.domain] if has_domains else []), problem if len(problem) <= 60 else f"{problem[:59]}…"]
        sides = (f"{side_text(side)}: {side.detail}"[:SHOWN_CHARACTERS] for side in (one.first, one.second))
        table.add_row(str(one.second.row), *cells, *sides)
    return table


def side_text(side: Side) -> str:
    """`3/4 pass` of several responses, the status of one."""
    return side.status if side.scored == 1 else f"{round(side.passed * side.scored)}/{side.scored} pass"


def _side(name: str, group: Sequence[Judged], shown: Judged) -> Side:
    verdict, item = shown.verdict, shown.item
    return Side(name, item.row_number, pass_share(group), len(group), verdict.status, verdict.detail, item.response)
