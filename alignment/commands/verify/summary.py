"""Pass rates per domain: one line of numbers for the console, for scripts and for the page."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from alignment.commands.verify.items import Item, Judged
from alignment.errors import UserError
from alignment.evaluate import Estimate, majority_at_k, pass_at_k, pass_rate

ALL, NO_DOMAIN = "all", "(none)"
SHARES = ("unparsed", "timeout", "error", "truncated")
Thing = TypeVar("Thing")
Group = list[tuple[Hashable, float]]  # answer and score of each scored response to one problem


@dataclass(frozen=True, slots=True)
class Line:
    """The figures of one domain, or of all. Estimates are None where nothing is scored.

    pass_at, majority_at: by k. shares: of the responses that were unparsed, timeout, error, and cut off at the length
    limit (rows with `finish_reason` "length"). too_few: by k, how many problems errors leave with fewer than k scored
    responses; they are not in the estimates of that k.
    """

    problems: int
    responses: int
    pass_rate: Estimate | None
    pass_at: dict[int, Estimate | None]
    majority_at: dict[int, Estimate | None]
    shares: dict[str, float]
    too_few: dict[int, int]


def by_domain(things: Sequence[Thing], domain_of: Callable[[Thing], str]) -> dict[str, list[Thing]]:
    """The things of each domain in alphabetical order, if there are several domains, and ALL of them last."""
    parts: dict[str, list[Thing]] = defaultdict(list)
    for thing in things:
        parts[domain_of(thing) or NO_DOMAIN].append(thing)
    named = {f"{name} (domain)" if name == ALL else name: part for name, part in sorted(parts.items())}
    return {**(named if len(named) > 1 else {}), ALL: list(things)}


def by_problem(judged: Iterable[Judged]) -> dict[Hashable, list[Judged]]:
    groups: dict[Hashable, list[Judged]] = defaultdict(list)
    for one in judged:
        groups[one.item.problem].append(one)
    return dict(groups)


def check_k(items: Sequence[Item], option: str, ks: Sequence[int]) -> None:
    """Raises UserError when a problem has fewer responses than the largest k asks for."""
    if ks and min(ks) < 1:
        raise UserError(f"{option} {min(ks)}: give numbers from 1 on")
    first = {item.problem: item for item in reversed(items)}
    for problem, count in Counter(item.problem for item in items).items():
        if ks and count < max(ks):
            where = f"the problem of row {first[problem].row_number} has {count} response{'s' * (count > 1)}"
            raise UserError(f"{option} {max(ks)}: {where}; --problem names the column that tells problems apart")


def summarise(
    judged: Sequence[Judged], pass_at: Sequence[int] = (), majority_at: Sequence[int] = ()
) -> dict[str, Line]:
    """A line per domain (the rows' column `domain`), if there are several, and the line ALL last."""
    parts = by_domain(judged, lambda one: one.item.domain)
    return {name: _line(part, pass_at, majority_at) for name, part in parts.items()}


def _line(judged: Sequence[Judged], pass_at: Sequence[int], majority_at: Sequence[int]) -> Line:
    groups = [
        [(one.answer, one.score) for one in group if one.score is not None] for group in by_problem(judged).values()
    ]
    scored = [group for group in groups if group]
    enough = {k: [group for group in scored if len(group) >= k] for k in {*pass_at, *majority_at}}
    counts: Counter[str] = Counter(one.verdict.status for one in judged)
    counts["truncated"] = sum(one.item.row.get("finish_reason") == "length" for one in judged)
    return Line(
        problems=len(groups),
        responses=len(judged),
        pass_rate=pass_rate(_scores(scored)) if scored else None,
        pass_at={k: pass_at_k(_scores(enough[k]), k) if enough[k] else None for k in pass_at},
        majority_at={
            k: majority_at_k(_answers(enough[k]), _scores(enough[k]), k) if enough[k] else None for k in majority_at
        },
        shares={name: counts[name] / len(judged) for name in SHARES},
        too_few={k: len(groups) - len(part) for k, part in enough.items() if len(part) < len(groups)},
    )


def _scores(groups: Sequence[Group]) -> list[list[float]]:
    return [[score for _, score in group] for group in groups]


def _answers(groups: Sequence[Group]) -> list[list[Hashable]]:
    return [[answer for answer, _ in group] for group in groups]


def headings(line: Line) -> list[str]:
    """Of the columns that `cells` fills; the share of truncated responses only where some are."""
    at_k = [*(f"pass@{k}" for k in line.pass_at), *(f"majority@{k}" for k in line.majority_at)]
    return ["problems", "responses", "pass rate", "95 % interval", *at_k, *SHARES[: 3 + (line.shares["truncated"] > 0)]]


def cells(line: Line, columns: int) -> list[str]:
    """The texts of the first `columns` columns."""
    texts = [f"{line.problems:,}", f"{line.responses:,}", rate(line.pass_rate), interval(line.pass_rate)]
    for estimate in (*line.pass_at.values(), *line.majority_at.values()):
        texts.append(f"{rate(estimate)} ({interval(estimate)})" if estimate else "–")
    return [*texts, *(f"{line.shares[name]:.1%}" for name in SHARES)][:columns]


def summary_table(lines: dict[str, Line], title: str) -> Table:
    """One row per line."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = headings(lines[ALL])
    table.add_column("domain")
    for name in names:
        table.add_column(name, justify="right")
    for domain, line in lines.items():
        if domain == ALL and len(lines) > 1:
            table.add_section()
        table.add_row(domain, *cells(line, len(names)))
    return table


def print_table(console: Console, table: Table) -> None:
    """Never cut off: in a file or a pipe the table is as wide as it needs, in a narrow terminal it wraps."""
    usual = console.width
    if not console.is_terminal:
        console.width = 1000
        console.width = max(usual, console.measure(table).maximum)
    console.print(table)
    console.width = usual


def notes(line: Line) -> list[str]:
    """What a reader of the table has to know besides."""
    return [
        f"@{k}: {count:,} problem{'s' * (count > 1)} left out, errors leave fewer than {k} scored responses"
        for k, count in line.too_few.items()
    ]


def rate(estimate: Estimate | None) -> str:
    return f"{estimate.value:.1%}" if estimate else "–"


def interval(estimate: Estimate | None) -> str:
    return f"{estimate.low:.1%} – {estimate.high:.1%}" if estimate else "–"


def as_json(line: Line) -> dict[str, Any]:
    """Plain data: rates between 0 and 1, None where nothing is scored."""
    record = asdict(line)
    return record | record.pop("shares")
