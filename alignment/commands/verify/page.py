"""The page of `align verify --html`: the figures, and the responses or disagreements behind them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.commands.verify import compare, summary
from alignment.commands.verify.audit import Disagreement, Side, side_text
from alignment.commands.verify.compare import Comparison
from alignment.commands.verify.items import Judged, question_text
from alignment.commands.verify.summary import ALL, NO_DOMAIN, Line
from alignment.page import MAX_CHARACTERS, shorten, write_page
from alignment.report_charts import draw_intervals
from alignment.report_samples import split_thinking

MAX_ENTRIES = 400
EXPECTED_CHARACTERS = 600


@dataclass(frozen=True, slots=True)
class View:
    """One view of an entry: who says so (empty for the verifier alone), its row (0 where it is the entry's), status,
    what the badge shows, the verdict's detail, and the response in parts (None: shown by another view)."""

    source: str
    row: int
    status: str
    badge: str
    detail: str
    parts: list[tuple[str, str]] | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the list. expected: (column, text) of what the verifier reads of the row."""

    row: int
    domain: str
    kind: str
    problem: str
    expected: list[tuple[str, str]]
    views: list[View]

    @property
    def statuses(self) -> list[str]:
        return [view.status for view in self.views]

    @property
    def responses(self) -> list[View]:
        return [view for view in self.views if view.parts is not None]


def write_verdicts(
    path: Path,
    title: str,
    verifier: str,
    lines: Mapping[str, Line],
    judged: Sequence[Judged],
    comparison: Comparison | None,
) -> None:
    """Writes the page: disagreements in its list where there is a comparison, otherwise the responses."""
    columns = _columns(verifier)
    found: Sequence[Any] = comparison.disagreements if comparison else judged
    chosen = choose_evenly(found, MAX_ENTRIES)
    entries = [_of_disagreement(one, columns) if comparison else _of_response(one, columns) for one in chosen]
    folder, all_lines = Path(__file__).parent, lines[ALL]
    values = {
        "title": title,
        "when": "",
        "headline": _headline(all_lines),
        "tables": _tables(lines, comparison),
        "chart": _chart(lines),
        "entries": entries,
        "total": len(found),
        "what": "disagreements" if comparison else "responses",
        "statuses": _values(status for entry in entries for status in entry.statuses),
        "kinds": _values(entry.kind for entry in entries),
        "domains": _values(entry.domain for entry in entries),
    }
    write_page(path, folder / "verify.html.jinja", folder / "verify.js", values)


def choose_evenly(found: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` of them in their order, taken in turn from every domain and status (or kind)."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, one in enumerate(found):
        key = (one.domain, one.kind) if isinstance(one, Disagreement) else (one.item.domain, one.verdict.status)
        groups.setdefault(key, []).append(index)
    turns = sorted((turn, index) for members in groups.values() for turn, index in enumerate(members))
    return [found[index] for index in sorted(index for _, index in turns[:limit])]


def _tables(lines: Mapping[str, Line], comparison: Comparison | None) -> list[dict[str, Any]]:
    names = summary.headings(lines[ALL])
    rows = [(domain, summary.cells(line, len(names))) for domain, line in lines.items()]
    tables = [{"id": "rates", "title": "Pass rates", "names": names, "rows": rows, "notes": summary.notes(lines[ALL])}]
    if comparison:
        compared = [(domain, compare.cells(comparison, line)) for domain, line in comparison.lines.items()]
        title = compare.comparison_title(comparison)
        tables.append(
            {
                "id": "comparison",
                "title": title[0].upper() + title[1:],
                "names": compare.headings(comparison),
                "rows": compared,
                "notes": compare.notes(comparison),
            }
        )
    return tables


def _headline(line: Line) -> dict[str, str]:
    counts = f"{line.responses:,} responses to {line.problems:,} problems"
    return {"value": summary.rate(line.pass_rate), "label": f"pass ({summary.interval(line.pass_rate)}), {counts}"}


def _chart(lines: Mapping[str, Line]) -> str:
    """Only where there is something to compare by eye."""
    rates = [
        {"name": name, "pass_rate": found.value, "ci_low": found.low, "ci_high": found.high}
        for name, line in lines.items()
        if (found := line.pass_rate)
    ]
    return draw_intervals(rates) if 1 < len(rates) <= 16 else ""


def _columns(verifier: str) -> tuple[str, ...]:
    from verifiers import verifier_info

    info = verifier_info(verifier)
    return (*info.columns, *info.optional)


def _expected(row: Mapping[str, Any], columns: Sequence[str]) -> list[tuple[str, str]]:
    found = [(name, row[name]) for name in columns if row.get(name) is not None]
    texts = [(name, cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, default=str))
             for name, cell in found]  # fmt: skip
    return [(name, shorten(text, EXPECTED_CHARACTERS)) for name, text in texts]


def _of_response(one: Judged, columns: Sequence[str]) -> Entry:
    verdict, item = one.verdict, one.item
    view = View("", 0, verdict.status, verdict.status, verdict.detail, _parts(item.response))
    problem = shorten(question_text(item.row))
    return Entry(item.row_number, item.domain or NO_DOMAIN, "", problem, _expected(item.row, columns), [view])


def _of_disagreement(one: Disagreement, columns: Sequence[str]) -> Entry:
    views = [_view(one.first), _view(one.second)]
    expected = _expected(one.columns, columns)
    return Entry(one.second.row, one.domain or NO_DOMAIN, one.kind, shorten(one.problem), expected, views)


def _view(side: Side) -> View:
    parts = None if side.response is None else _parts(side.response)
    return View(side.source, side.row, side.status, side_text(side), side.detail, parts)


def _parts(response: str) -> list[tuple[str, str]]:
    """("thinking" | "text", piece); both ends of a long piece, because the answer stands at the end."""
    return [(kind, _both_ends(piece)) for kind, piece in split_thinking(response)]


def _both_ends(text: str) -> str:
    half = MAX_CHARACTERS // 2
    left_out = len(text) - 2 * half
    return text if left_out <= 0 else f"{text[:half]}\n… ({left_out:,} characters left out) …\n{text[-half:]}"


def _values(found: Any) -> list[str]:
    """What a filter offers; nothing to choose from is no filter."""
    values = sorted({value for value in found if value})
    return values if len(values) > 1 else []
