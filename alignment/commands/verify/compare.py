"""The paired difference of two files of responses, and the agreement of verdicts with a second opinion."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich import box
from rich.table import Table

from alignment.commands.verify.audit import Disagreement, Opinion, of_problem, of_response, pass_share
from alignment.commands.verify.items import Judged
from alignment.commands.verify.summary import ALL, by_domain, by_problem, interval, rate
from alignment.evaluate import Estimate, paired_difference, pass_rate


@dataclass(frozen=True, slots=True)
class Line:
    """One domain. compared: problems (of two files) or responses (of two verdicts) that both sides score. first and
    second: their pass rates. estimate: second minus first, or the share of responses on which both agree; all three are
    None where nothing is compared. only_first, only_second: how many lean to either side."""

    compared: int
    first: Estimate | None
    second: Estimate | None
    estimate: Estimate | None
    only_first: int
    only_second: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """names: of the two sides. lines: per domain, if there are several, and ALL last. missing: how many could not be
    compared, and why."""

    what: Literal["difference", "agreement"]
    names: tuple[str, str]
    lines: dict[str, Line]
    disagreements: list[Disagreement]
    missing: dict[str, int]


Pair = tuple[list[Judged], list[Judged]]


def compare_files(first: Sequence[Judged], second: Sequence[Judged], names: tuple[str, str]) -> Comparison:
    """Problems of the two files joined by their keys; the largest differences come first."""
    left, right = by_problem(first), by_problem(second)
    both = [key for key in right if key in left]
    pairs: dict[Hashable, Pair] = {key: (_scored(left[key]), _scored(right[key])) for key in both}
    usable = {key: pair for key, pair in pairs.items() if pair[0] and pair[1]}
    domains = by_domain(both, lambda key: right[key][0].item.domain)
    lines = {name: _difference([usable[key] for key in keys if key in usable]) for name, keys in domains.items()}
    apart = [of_problem(*pair, names) for pair in usable.values() if pass_share(pair[0]) != pass_share(pair[1])]
    missing = {
        f"problems stand in {names[0]} only": len(left) - len(both),
        f"problems stand in {names[1]} only": len(right) - len(both),
        "problems have no scored response in one of the files": len(both) - len(usable),
    }
    return Comparison("difference", names, lines, sorted(apart, key=lambda one: -one.size), missing)


def compare_verdicts(judged: Sequence[Judged], opinions: Sequence[Opinion], names: tuple[str, str]) -> Comparison:
    """Verdicts against one second opinion each."""
    everything = list(zip(judged, opinions, strict=True))
    usable = [(one, other) for one, other in everything if one.score is not None and other.passed is not None]
    lines = {name: _agreement(part) for name, part in by_domain(usable, lambda pair: pair[0].item.domain).items()}
    apart = [of_response(one, other, names) for one, other in usable if one.verdict.passed is not other.passed]
    missing = {
        f"responses have no verdict by {names[0]}": sum(one.score is None for one in judged),
        f"responses have no verdict by {names[1]}": sum(other.passed is None for other in opinions),
    }
    return Comparison("agreement", names, lines, apart, missing)


def headings(comparison: Comparison) -> list[str]:
    first, second = comparison.names
    if comparison.what == "difference":
        return ["problems", first, second, "difference, points", "95 % interval", "worse", "better"]
    return ["responses", first, second, "agreement", "95 % interval", f"only {first}", f"only {second}"]


def cells(comparison: Comparison, line: Line) -> list[str]:
    found = line.estimate
    if comparison.what == "agreement" or found is None:
        middle = [rate(found), interval(found)]
    else:
        middle = [_points(found.value), f"{_points(found.low)} to {_points(found.high)}"]
    ends = [f"{line.only_first:,}", f"{line.only_second:,}"]
    return [f"{line.compared:,}", rate(line.first), rate(line.second), *middle, *ends]


def comparison_title(comparison: Comparison) -> str:
    first, second = comparison.names
    difference = f"paired difference: {second} minus {first}"
    return difference if comparison.what == "difference" else f"agreement of {first} with {second}"


def comparison_table(comparison: Comparison) -> Table:
    table = Table(title=comparison_title(comparison), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("domain")
    for name in headings(comparison):
        table.add_column(name, justify="right")
    for domain, line in comparison.lines.items():
        if domain == ALL and len(comparison.lines) > 1:
            table.add_section()
        table.add_row(domain, *cells(comparison, line))
    return table


def notes(comparison: Comparison) -> list[str]:
    """What was not compared."""
    return [f"{count:,} {what}" for what, count in comparison.missing.items() if count]


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Plain data, without the list of disagreements."""
    return {
        "what": comparison.what,
        "first": comparison.names[0],
        "second": comparison.names[1],
        "domains": {name: asdict(line) for name, line in comparison.lines.items()},
        "disagreements": len(comparison.disagreements),
        "missing": comparison.missing,
    }


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _difference(pairs: Sequence[Pair]) -> Line:
    first, second = [[one.score for one in a] for a, _ in pairs], [[one.score for one in b] for _, b in pairs]
    gains = [pass_share(b) - pass_share(a) for a, b in pairs]
    worse, better = sum(gain < 0 for gain in gains), sum(gain > 0 for gain in gains)
    if not pairs:
        return Line(0, None, None, None, 0, 0)
    difference = paired_difference(first, second)
    return Line(len(pairs), pass_rate(first), pass_rate(second), difference, worse, better)


def _agreement(pairs: Sequence[tuple[Judged, Opinion]]) -> Line:
    """The intervals take the responses of one problem together."""
    groups: dict[Hashable, list[tuple[float, float]]] = {}
    for one, other in pairs:
        groups.setdefault(one.item.problem, []).append((float(one.verdict.passed), float(bool(other.passed))))
    first = [[a for a, _ in group] for group in groups.values()]
    second = [[b for _, b in group] for group in groups.values()]
    same = [[float(a == b) for a, b in group] for group in groups.values()]
    if not pairs:
        return Line(0, None, None, None, 0, 0)
    flat = [pair for group in groups.values() for pair in group]
    only_first, only_second = sum(a > b for a, b in flat), sum(a < b for a, b in flat)
    return Line(len(flat), pass_rate(first), pass_rate(second), pass_rate(same), only_first, only_second)


def _scored(group: Sequence[Judged]) -> list[Judged]:
    return [one for one in group if one.score is not None]
