"""`align verify`: pass rates of responses in a file, or a check of the rows' own gold answers.

Also pass@k and majority@k, the paired difference to another file of responses, and the disagreements with it, with a
second verifier or with labels: on the console, as JSON and as a page.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from alignment.commands.list import import_modules
from alignment.commands.verify.items import PROBLEM_COLUMNS, RESPONSE_COLUMNS, Judged
from alignment.errors import UserError

if TYPE_CHECKING:
    from alignment.commands.verify.compare import Comparison
    from alignment.commands.verify.summary import Line

SHOWN_CHARACTERS = 160


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", help="a .jsonl or .jsonl.gz file (or another form that recipes read)")
    add("--verifier", required=True, metavar="NAME",
        help="a registered name, package.module:function or routing:FILE.yaml")  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--gold", metavar="COLUMN", help="verify this column's gold answers; exit code 1 if one fails")
    what.add_argument("--response", metavar="COLUMN", help=f"default: the first of {', '.join(RESPONSE_COLUMNS)}")
    problems = f"the first of {', '.join(PROBLEM_COLUMNS)}, else every row is a problem"
    add("--problem", metavar="COLUMN", help=f"rows equal here answer one problem; default: {problems}")
    add("--pass-at", type=int, nargs="+", default=[], metavar="K", help="also report pass@k")
    add("--majority-at", type=int, nargs="+", default=[], metavar="K",
        help="also report majority@k: how often the most frequent answer of k passes")  # fmt: skip
    second = parser.add_mutually_exclusive_group()
    second.add_argument("--against", metavar="FILE",
                        help="paired difference to this file's responses to the same problems")  # fmt: skip
    second.add_argument("--audit-against", metavar="NAME",
                        help="agreement with a second verifier, or with the labels in this column")  # fmt: skip
    add("--limit", type=int, metavar="N", help="the first N rows only")
    add("--show", type=int, default=20, metavar="N", help="list at most N rows (default 20)")
    add("--output", type=Path, metavar="FILE", help="write one verdict per response as JSON lines")
    add("--audit", type=Path, metavar="FILE", help="write all disagreements as JSON lines")
    add("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    add("--html", type=Path, metavar="FILE", help="write a page with the figures and the responses behind them")
    add("--import", dest="modules", metavar="MODULE", action="append", default=[],
        help="import a module of yours that registers verifiers; may be repeated")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Raises UserError for unknown names, missing columns and unreadable files."""
    from alignment.commands.verify.compare import comparison_table
    from alignment.commands.verify.compare import notes as comparison_notes
    from alignment.commands.verify.summary import ALL, notes, print_table, summarise, summary_table

    _check(options)
    judged, comparison = _judge(options)
    lines = summarise(judged, options.pass_at, options.majority_at)
    console = Console(highlight=False, markup=False)
    print_table(console, summary_table(lines, _title(options)))
    for note in notes(lines[ALL]):
        console.print(note)
    failing = [one for one in judged if not one.verdict.passed]
    _list_failing(console, failing if options.gold else [one for one in failing if one.score is None], options.show)
    if comparison:
        print_table(console, comparison_table(comparison))
        for note in comparison_notes(comparison):
            console.print(note)
        _list_disagreements(console, comparison, options.show)
    _write_files(options, judged, lines, comparison)
    return 1 if options.gold and failing else 0


def _check(options: argparse.Namespace) -> None:
    """What can be refused before anything is verified, so that no work is lost."""
    from rewards.routed_verifier import find_verifier

    import_modules(options.modules)
    try:
        find_verifier(options.verifier)
    except ValueError as error:
        raise UserError(f"--verifier: {error}") from error
    if options.gold and options.against:
        raise UserError("--against compares responses: leave out --gold")
    if options.audit and not (options.against or options.audit_against):
        raise UserError("--audit lists disagreements: say with whom, by --against or --audit-against")
    for path in filter(None, (options.output, options.audit, options.json, options.html)):
        folder = path.absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK) or (path.exists() and not path.is_file()):
            raise UserError(f"cannot write {path}: name a file in a folder that exists and is writable")


def _judge(options: argparse.Namespace) -> tuple[list[Judged], Comparison | None]:
    """The responses' verdicts, and the comparison if one is asked for."""
    from alignment.commands.verify.compare import compare_files, compare_verdicts
    from alignment.commands.verify.items import judge, problem_column, read_items
    from alignment.commands.verify.opinions import second_opinions
    from alignment.commands.verify.summary import check_k
    from alignment.data.load import load_rows

    rows = load_rows(options.data, limit=options.limit)
    other_rows = load_rows(options.against, limit=options.limit) if options.against else []
    problem = options.problem or problem_column(*filter(None, (rows, other_rows)))
    if options.against and not problem:
        raise UserError(f"{options.data} and {options.against} share none of the columns {', '.join(PROBLEM_COLUMNS)}: "
                        "name the one that tells problems apart with --problem")  # fmt: skip
    column = options.gold or options.response
    gold = options.verifier if options.gold else ""
    items = read_items(rows, options.data, column=column, gold=gold, problem=problem)
    others = read_items(other_rows, options.against, column=column, gold="", problem=problem) if other_rows else []
    check_k(items, "--pass-at", options.pass_at)
    check_k(items, "--majority-at", options.majority_at)
    judged = judge(options.verifier, items, options.data, voting=bool(options.majority_at))
    if others:
        names = _short_names(options.against, options.data)
        return judged, compare_files(judge(options.verifier, others, options.against), judged, names)
    if options.audit_against:
        opinions, name = second_opinions(options.audit_against, items, options.data)
        return judged, compare_verdicts(judged, opinions, (options.verifier, name))
    return judged, None


def _title(options: argparse.Namespace) -> str:
    return f"{options.verifier} on {options.data}"


def _short_names(first: str, second: str) -> tuple[str, str]:
    """The files' names, with as many of their folders as tell them apart."""
    left, right = Path(first).absolute().parts, Path(second).absolute().parts
    for size in range(1, max(len(left), len(right)) + 1):
        if left[-size:] != right[-size:]:
            return "/".join(left[-size:]), "/".join(right[-size:])
    return first, f"{second} (again)"


def _list_failing(console: Console, failing: Sequence[Judged], limit: int) -> None:
    if not failing:
        return
    table = Table("row", "status", "detail", box=box.SIMPLE_HEAD, title=f"{len(failing):,} to look at")
    for one in failing[:limit]:
        table.add_row(str(one.item.row_number), one.verdict.status, one.verdict.detail[:SHOWN_CHARACTERS])
    console.print(table)
    if len(failing) > limit:
        console.print(f"… and {len(failing) - limit:,} more (--show, --output)")


def _list_disagreements(console: Console, comparison: Comparison, limit: int) -> None:
    from alignment.commands.verify.audit import audit_table

    found = comparison.disagreements
    if not found:
        console.print("no disagreements")
        return
    console.print(audit_table(found, comparison.names, limit))
    if len(found) > limit:
        console.print(f"… and {len(found) - limit:,} more (--show, --audit)")


def _write_files(
    options: argparse.Namespace, judged: Sequence[Judged], lines: dict[str, Line], comparison: Comparison | None
) -> None:
    from alignment.commands.verify import audit, compare, summary
    from alignment.commands.verify.page import write_verdicts

    if options.output:
        records = ({"row": one.item.row_number, **asdict(one.verdict), "response": one.item.response} for one in judged)
        _write_lines(options.output, records)
    if options.audit and comparison:
        _write_lines(options.audit, map(audit.as_json, comparison.disagreements))
    if options.json:
        figures: dict[str, Any] = {"verifier": options.verifier, "data": options.data}
        figures["domains"] = {name: summary.as_json(line) for name, line in lines.items()}
        figures["comparison"] = compare.as_json(comparison) if comparison else None
        _write(options.json, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    if options.html:
        write_verdicts(options.html, _title(options), options.verifier, lines, judged, comparison)


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    _write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _write(path: Path, text: str) -> None:
    from alignment.metrics import replace_file

    try:
        replace_file(path, text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
