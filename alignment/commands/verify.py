"""`align verify`: pass rates of responses in a file, or a check of the rows' own gold answers."""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from alignment.commands.list import import_modules
from alignment.errors import UserError

if TYPE_CHECKING:
    from verifiers import Verdict

RESPONSE_COLUMNS = ("response", "responses", "completion", "completions")
PROBLEM_COLUMNS = ("prompt_id", "problem_id", "question", "prompt", "problem")
CHUNK = 256
SHOWN_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class Item:
    """One response: the number of its row (from 1), the row, and the problem it answers."""

    row_number: int
    row: Mapping[str, Any]
    response: str
    problem: Hashable


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="a .jsonl or .jsonl.gz file (or another form that recipes read)")
    parser.add_argument(
        "--verifier", required=True, metavar="NAME", help="a registered name or package.module:function"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--gold", metavar="COLUMN", help="verify this column's gold answers; exit code 1 if one fails")
    what.add_argument("--response", metavar="COLUMN", help=f"default: the first of {', '.join(RESPONSE_COLUMNS)}")
    problems = f"the first of {', '.join(PROBLEM_COLUMNS)}, else every row is a problem"
    parser.add_argument("--problem", metavar="COLUMN", help=f"rows equal here answer one problem; default: {problems}")
    parser.add_argument("--pass-at", type=int, nargs="+", default=[], metavar="K", help="also report pass@k")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N rows only")
    parser.add_argument("--show", type=int, default=20, metavar="N", help="list at most N failing rows (default 20)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write one verdict per response as JSON lines")
    parser.add_argument("--import", dest="modules", metavar="MODULE", action="append", default=[],
                        help="import a module of yours that registers verifiers; may be repeated")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Raises UserError for unknown names, missing columns and unreadable files."""
    from alignment.data.load import load_rows

    import_modules(options.modules)
    _check_verifier(options.verifier)
    rows = load_rows(options.data, limit=options.limit)
    items = read_items(rows, options.gold or options.response, bool(options.gold), options.problem, options.data)
    console = Console(highlight=False, markup=False)
    verdicts = _verify(options.verifier, items)
    if options.output:
        _write(options.output, items, verdicts)
    console.print(summary_table(items, verdicts, options.pass_at, f"{options.verifier} on {options.data}"))
    failing = [(item, verdict) for item, verdict in zip(items, verdicts) if not verdict.passed]
    if options.gold and failing:
        _list_failing(console, failing, options.show)
    elif not options.gold:
        _list_failing(console, [pair for pair in failing if pair[1].status == "error"], options.show)
    return 1 if options.gold and failing else 0


def _check_verifier(name: str) -> None:
    from verifiers import get_verifier

    try:
        get_verifier(name)
    except ValueError as error:
        raise UserError(f"--verifier: {error}") from error


def read_items(
    rows: Sequence[Mapping[str, Any]], column: str | None, gold: bool, problem: str | None, source: str
) -> list[Item]:
    """One item per response; a cell may hold a text, a list of messages, or a list of either.

    column: None means the first of RESPONSE_COLUMNS that row 1 has. Raises UserError naming the row and the column.
    """
    column = column or next((name for name in RESPONSE_COLUMNS if name in rows[0]), None)
    if column is None:
        raise UserError(f"{source}, row 1: none of the columns {', '.join(RESPONSE_COLUMNS)}; name one with --response "
                        f"(its columns are {sorted(rows[0])})")  # fmt: skip
    problem = problem or next((name for name in PROBLEM_COLUMNS if name in rows[0]), None)
    items: list[Item] = []
    for number, row in enumerate(rows, 1):
        for name in [column, *([problem] if problem else [])]:
            if row.get(name) is None:
                raise UserError(f"{source}, row {number}: no column {name!r} (its columns are {sorted(row)})")
        key = json.dumps(row[problem], sort_keys=True, default=str) if problem else number
        # Two rows with one question may have two gold answers; under --gold each row stands for itself.
        key = number if gold else key
        texts = [_as_gold(row[column])] if gold else _texts(row[column], f"{source}, row {number}, column {column!r}")
        items.extend(Item(number, row, text, key) for text in texts)
    return items


def _as_gold(cell: Any) -> str:
    """Of several accepted answers the first stands for the response."""
    first = cell[0] if isinstance(cell, (list, tuple)) and cell else cell
    return first if isinstance(first, str) else json.dumps(first)


def _texts(cell: Any, where: str) -> list[str]:
    from rewards import completion_text

    is_one = isinstance(cell, str) or (isinstance(cell, list) and cell and isinstance(cell[0], dict))
    try:
        return [completion_text(part) for part in ([cell] if is_one else cell)]
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{where}: expected a text, a list of messages, or a list of either ({error})") from error


def _verify(verifier: str, items: Sequence[Item]) -> list[Verdict]:
    from verifiers import verify_all

    verdicts: list[Verdict] = []
    progress = Console(stderr=True)
    starts = range(0, len(items), CHUNK)
    for start in track(starts, "verifying", console=progress, transient=True, disable=not progress.is_terminal):
        chunk = items[start : start + CHUNK]
        verdicts += verify_all(verifier, [item.response for item in chunk], [item.row for item in chunk])
    return verdicts


def summary_table(items: Sequence[Item], verdicts: Sequence[Verdict], pass_at: Sequence[int], title: str) -> Table:
    """One line per domain (the rows' `domain` column) and one for all."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("domain")
    for name in ("problems", "responses", "pass rate", "95 % interval", *(f"pass@{k}" for k in pass_at)):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("unparsed", "timeout", "error"):
        table.add_column(name, justify="right")
    domains: dict[str, list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        domains[str(item.row.get("domain", ""))].append(i)
    if len(domains) > 1:
        for domain, indices in sorted(domains.items()):
            table.add_row(
                domain or "(none)", *_cells([items[i] for i in indices], [verdicts[i] for i in indices], pass_at)
            )
        table.add_section()
    table.add_row("all", *_cells(items, verdicts, pass_at))
    return table


def _cells(items: Sequence[Item], verdicts: Sequence[Verdict], pass_at: Sequence[int]) -> list[str]:
    from alignment.evaluate import Estimate, pass_at_k, pass_rate

    groups: dict[Hashable, list[float | None]] = defaultdict(list)
    for item, verdict in zip(items, verdicts):
        groups[item.problem].append(None if verdict.status == "error" else float(verdict.passed))
    scores, statuses = list(groups.values()), Counter(verdict.status for verdict in verdicts)
    rate: Estimate | None = pass_rate(scores) if len(verdicts) > statuses["error"] else None
    cells = [f"{len(groups):,}", f"{len(items):,}"]
    cells += [f"{rate.value:.1%}", f"{rate.low:.1%} – {rate.high:.1%}"] if rate else ["–", "–"]
    for k in pass_at:
        try:
            at_k = pass_at_k(scores, k)
            cells.append(f"{at_k.value:.1%} ({at_k.low:.1%} – {at_k.high:.1%})")
        except ValueError as error:
            raise UserError(f"--pass-at: {error}") from error
    return [*cells, *(f"{statuses[status] / len(verdicts):.1%}" for status in ("unparsed", "timeout", "error"))]


def _list_failing(console: Console, failing: Sequence[tuple[Item, Verdict]], limit: int) -> None:
    if not failing:
        return
    table = Table("row", "status", "detail", box=box.SIMPLE_HEAD, title=f"{len(failing):,} to look at")
    for item, verdict in failing[:limit]:
        table.add_row(str(item.row_number), verdict.status, verdict.detail[:SHOWN_CHARACTERS])
    console.print(table)
    if len(failing) > limit:
        console.print(f"… and {len(failing) - limit:,} more (--show, --output)")


def _write(path: Path, items: Sequence[Item], verdicts: Sequence[Verdict]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for item, verdict in zip(items, verdicts):
            record = {"row": item.row_number, **asdict(verdict), "response": item.response}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
