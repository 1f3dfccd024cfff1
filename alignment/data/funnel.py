"""Filters one behind the other, with a report of what each took out and why; and a fair choice over domains."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from alignment.errors import UserError
from alignment.metrics import replace_file
from alignment.page import shorten, write_page

Thing = TypeVar("Thing")
SHOWN_DROPS = 400


@dataclass(frozen=True, slots=True)
class Dropped:
    """What fell to which filter. why: the filter's own words. text: what a reader recognises it by."""

    filter: str
    id: str
    why: str
    text: str


@dataclass(frozen=True, slots=True)
class Count:
    """of: what is counted, such as queries. before: how many came to the filter. dropped: how many it took out."""

    of: str
    filter: str
    before: int
    dropped: int


class Funnel:
    """Applies filters in turn and keeps the counts. shown: (id, text) of a thing, for the report."""

    def __init__(self, of: str, shown: Callable[[Any], tuple[str, str]]):
        self.of, self.shown = of, shown
        self.counts: list[Count] = []
        self.dropped: list[Dropped] = []

    def keep(self, things: Sequence[Thing], name: str, reason: Callable[[Thing], str]) -> list[Thing]:
        """Those for which `reason` says nothing; the text it gives for the others is why they fall."""
        kept = []
        for thing in things:
            why = reason(thing)
            if why:
                self.dropped.append(Dropped(name, self.shown(thing)[0], why, self.shown(thing)[1]))
            else:
                kept.append(thing)
        self.counts.append(Count(self.of, name, len(things), len(things) - len(kept)))
        return kept


def share_out(sizes: Mapping[str, int], total: int, shares: Mapping[str, float] | None = None) -> dict[str, int]:
    """How many to take of each group so that they come to `total`, or to all there are: each its share (by default all
    the same), and what a small group cannot fill goes to the others.

    >>> share_out({"math": 100, "code": 3, "logic": 50}, 30)
    {'math': 14, 'code': 3, 'logic': 13}
    >>> share_out({"math": 100, "code": 100}, 10, {"math": 4.0})
    {'math': 8, 'code': 2}

    shares: weights; groups that are not named have weight 1, nothing is taken of one with weight 0.
    """
    taken = dict.fromkeys(sizes, 0)
    weights = {name: (shares or {}).get(name, 1.0) for name in sizes}
    left = min(total, sum(size for name, size in sizes.items() if weights[name]))
    while left:
        open_groups = [name for name in sizes if weights[name] and taken[name] < sizes[name]]
        # one at a time to whoever is furthest below its share: exact, and no more steps than things are taken
        name = min(open_groups, key=lambda n: (taken[n] + 1) / weights[n])
        taken[name] += 1
        left -= 1
    return taken


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises UserError for a domain whose weight is negative or no finite number."""
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise UserError(f"domain_weights: {name}: {weight!r} is not valid, it has to be 0 or more")


def by_domain(things: Sequence[Thing], domain: Callable[[Thing], str]) -> dict[str, list[Thing]]:
    groups: dict[str, list[Thing]] = defaultdict(list)
    for thing in things:
        groups[domain(thing)].append(thing)
    return dict(sorted(groups.items()))


@dataclass(frozen=True)
class FunnelReport:
    """funnels: of queries, of responses. domains: rows of a table with the columns `domain_columns`."""

    title: str
    funnels: Sequence[Funnel]
    domain_columns: Sequence[str]
    domains: Sequence[Sequence[Any]]

    def as_dict(self) -> dict[str, Any]:
        return {
            "filters": [asdict(count) for funnel in self.funnels for count in funnel.counts],
            "domains": [dict(zip(self.domain_columns, row, strict=True)) for row in self.domains],
            "dropped": [{"of": f.of, **asdict(dropped)} for f in self.funnels for dropped in f.dropped],
        }

    def show(self) -> None:
        """Print both tables."""
        console = Console(highlight=False, markup=False)
        for part in self._tables():
            table = Table(title=part["title"])
            for i, name in enumerate(part["names"]):
                table.add_column(name, justify="right" if i else "left")
            for row in part["rows"]:
                table.add_row(*row)
            console.print(table)

    def write(self, path: str) -> None:
        """`PATH.json` with the counts and everything that fell, `PATH.html` to read."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace_file(Path(f"{path}.json"), json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n")
        dropped = [(f.of, one) for f in self.funnels for one in f.dropped]
        shown = [{"of": of, **asdict(one), "text": shorten(one.text, 600)} for of, one in _evenly(dropped, SHOWN_DROPS)]
        values = {
            "title": self.title,
            "when": "",
            "headline": "",
            "tables": self._tables(),
            "dropped": shown,
            "total": len(dropped),
            "filters": sorted({one["filter"] for one in shown}),
        }
        folder = Path(__file__).parent
        write_page(Path(f"{path}.html"), folder / "funnel.html.jinja", folder / "funnel.js", values)

    def _tables(self) -> list[dict[str, Any]]:
        rows = []
        for count in (count for funnel in self.funnels for count in funnel.counts):
            share = count.dropped / count.before if count.before else 0.0
            left = count.before - count.dropped
            rows.append(
                [count.filter, count.of, f"{count.before:,}", f"{count.dropped:,}", f"{share:.1%}", f"{left:,}"]
            )
        cells = [[_cell(cell) for cell in row] for row in self.domains]
        return [
            {"title": self.title, "names": ["filter", "of", "before", "dropped", "share", "left"], "rows": rows},
            {"title": "Domains", "names": list(self.domain_columns), "rows": cells},
        ]


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _evenly(dropped: Sequence[tuple[str, Dropped]], limit: int) -> list[tuple[str, Dropped]]:
    """At most `limit`, in turn from every filter, in their order."""
    seen: Counter[str] = Counter()
    turns = []
    for place, (_, one) in enumerate(dropped):
        turns.append((seen[one.filter], place))
        seen[one.filter] += 1
    return [dropped[place] for place in sorted(place for _, place in sorted(turns)[:limit])]
