"""Accuracy against the thinking budget, as a table, a figure and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alignment.errors import UserError
from alignment.metrics import replace_file
from recipes.responses import Record

Budget = int | None
Figures = Mapping[str, Any]
"""pass_rate with ci_low and ci_high, and what `lengths` gives."""


def read_budgets(values: Sequence[Any]) -> list[int]:
    """Budgets in ascending order from numbers or comma-separated texts. Raises UserError for anything else."""
    parts = [part.strip() for value in values for part in str(value).split(",") if part.strip()]
    if bad := [part for part in parts if not part.isdecimal()]:
        raise UserError(f"thinking_budgets: {bad[0]!r} is no number of tokens; give some like 0,64,128")
    return sorted({int(part) for part in parts})


def responses_path(path: str, budget: Budget) -> str:
    """The responses file of one budget: `a.jsonl` becomes `a.budget-64.jsonl`."""
    if not path:
        return ""
    name = "no-budget" if budget is None else f"budget-{budget}"
    return str(Path(path).with_suffix(f".{name}{Path(path).suffix}"))


def lengths(records: Sequence[Record]) -> dict[str, float]:
    """The mean number of tokens of a response, and the share of them whose thinking was stopped and that then ended."""
    return {
        "tokens": sum(record["tokens"] for record in records) / len(records),
        "stopped": sum(record["finish_reason"] == "budget" for record in records) / len(records),
        "truncated": sum(record["finish_reason"] == "length" for record in records) / len(records),
    }


def write_curve(path: Path, points: Mapping[Budget, Figures], title: str) -> dict[str, Any]:
    """Print the table, write the figure to `path` and the numbers beside it (`.json`); returns the numbers."""
    _print(points, title)
    named = [{"budget": budget, **figures} for budget, figures in points.items()]
    content = {"title": title, "points": named}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path.with_suffix(".json"), json.dumps(content, indent=2) + "\n")
    plot(path, points, title)
    print(f"figure in {path}, numbers in {path.with_suffix('.json')}", flush=True)
    return content


def _print(points: Mapping[Budget, Figures], title: str) -> None:
    table = Table("budget", title=title)
    for column in ("pass rate", "95 % interval", "tokens", "thinking stopped", "truncated"):
        table.add_column(column, justify="right")
    for budget, point in points.items():
        interval = f"{point['ci_low']:.1%} – {point['ci_high']:.1%}"
        shares = [f"{point['stopped']:.1%}", f"{point['truncated']:.1%}"]
        name = "none" if budget is None else str(budget)
        table.add_row(name, f"{point['pass_rate']:.1%}", interval, f"{point['tokens']:.0f}", *shares)
    Console(highlight=False).print(table)


def check_matplotlib() -> None:
    """Raises UserError when the figure cannot be drawn: before hours of sampling."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("thinking_budgets: the figure needs matplotlib: pip install matplotlib") from error


def plot(path: Path, points: Mapping[Budget, Figures], title: str) -> None:
    """PNG or whatever the file's ending says: pass rates with 95 % intervals; a line for samples without a budget."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.8), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    limited = {budget: point for budget, point in points.items() if budget is not None}
    rates = [100 * point["pass_rate"] for point in limited.values()]
    below = [100 * (point["pass_rate"] - point["ci_low"]) for point in limited.values()]
    above = [100 * (point["ci_high"] - point["pass_rate"]) for point in limited.values()]
    axes.errorbar(list(limited), rates, yerr=[below, above], fmt="o-", color="#2563eb", markersize=5, capsize=4)
    if free := points.get(None):
        axes.axhline(100 * free["pass_rate"], color="#64748b", linewidth=1.2, linestyle="--", label="no budget")
        axes.axhspan(100 * free["ci_low"], 100 * free["ci_high"], color="#64748b", alpha=0.12, linewidth=0)
        axes.legend(frameon=False, loc="lower right")
    axes.set_ylim(0, None)
    axes.set_xlabel("thinking budget, tokens")
    axes.set_ylabel("pass rate, % (95 % interval)")
    axes.set_title(title, fontsize=9)
    axes.grid(color="#d7dbe2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
