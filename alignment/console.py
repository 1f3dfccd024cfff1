"""What a person sees while a run goes on: a progress bar in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table

HEADLINES = (
    "reward",
    "reward/mean",
    "pass_rate",
    "loss",
    "accuracy",
    "kl",
    "entropy",
    "completion_length/mean",
    "learning_rate",
    "grad_norm",
)
HIGHER_IS_BETTER = ("reward", "pass", "accuracy", "margin", "tokens_per_second")
LOWER_IS_BETTER = ("loss", "perplexity", "error", "unparsed", "timeout")
PLAIN_SECONDS = 5.0
SMOOTHING_STEPS = 20
TABLE_ROWS = 16


@dataclass(slots=True)
class Range:
    """First, last, lowest and highest finite value of one metric, with the steps of the extremes."""

    first: float
    last: float
    low: tuple[float, int]
    high: tuple[float, int]


class RunConsole:
    """Prints the progress of a run. `start_step`: the step a resumed run goes on from."""

    def __init__(self, total_steps: int, start_step: int = 0) -> None:
        self._total = total_steps
        self._console = Console(file=sys.stdout, highlight=False)
        self._ranges: dict[str, Range] = {}
        self._tokens = self._train_seconds = self._step_seconds = 0.0
        self._count = 0
        self._last_line = -math.inf
        self._previous = time.perf_counter()
        self._bar: Progress | None = None
        if self._console.is_terminal:
            status = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis"))
            self._bar = Progress(BarColumn(bar_width=24), status, console=self._console, refresh_per_second=4)
            self._task = self._bar.add_task(f"step {start_step}/{total_steps}", total=total_steps, completed=start_step)
            self._bar.start()

    def train(self, step: int, metrics: dict[str, float], tokens: float, seconds: float) -> None:
        self.remember(step, "train", metrics)
        self._smooth(tokens, seconds)
        text = self._status(step, metrics)
        if self._bar:
            self._bar.update(self._task, completed=step, description=escape(text))
        elif step >= self._total or time.perf_counter() - self._last_line >= PLAIN_SECONDS:
            self._last_line = time.perf_counter()
            print(text, flush=True)

    def eval(self, step: int, metrics: dict[str, float]) -> None:
        self.remember(step, "eval", metrics)
        values = "  ".join(f"{name} {format_value(metrics[name])}" for name in _ordered(metrics))
        self.message(f"eval at step {step}: {values}")

    def message(self, text: str) -> None:
        if self._bar:
            self._console.print(escape(text))
        else:
            print(text, flush=True)

    def remember(self, step: int, kind: str, metrics: dict[str, float]) -> None:
        """Takes the values into the closing table."""
        for name, value in metrics.items():
            value = float(value)
            if not math.isfinite(value):
                continue
            key = f"eval {name}" if kind == "eval" else name
            known = self._ranges.get(key) or Range(value, value, (value, step), (value, step))
            low, high = min(known.low, (value, step)), max(known.high, (value, step), key=lambda pair: pair[0])
            self._ranges[key] = Range(known.first, value, low, high)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
        if self._ranges:
            self._console.print(self._table())

    def _smooth(self, tokens: float, seconds: float) -> None:
        """Running means over about the last SMOOTHING_STEPS steps, plain means before that."""
        self._count += 1
        weight = max(1 / self._count, 1 / SMOOTHING_STEPS)
        now = time.perf_counter()
        self._tokens += weight * (tokens - self._tokens)
        self._train_seconds += weight * (seconds - self._train_seconds)
        self._step_seconds += weight * (now - self._previous - self._step_seconds)
        self._previous = now

    def _status(self, step: int, metrics: dict[str, float]) -> str:
        rate = format_value(self._tokens / max(self._train_seconds, 1e-9))
        left = format_seconds(max(self._total - step, 0) * self._step_seconds)
        values = [f"{name} {format_value(metrics[name])}" for name in HEADLINES if name in metrics]
        return "  ".join([f"step {step}/{self._total}", f"{rate} tokens/s", f"ETA {left}", *values])

    def _table(self) -> Table:
        table = Table(title="First, last and best values", title_justify="left")
        table.add_column("metric")
        for name in ("first", "last", "best"):
            table.add_column(name, justify="right")
        table.add_column("at step", justify="right")
        for key in _ordered(self._ranges)[:TABLE_ROWS]:
            values = self._ranges[key]
            best = _best(key, values)
            cells = ("–", "–") if best is None else (format_value(best[0]), str(best[1]))
            table.add_row(escape(key), format_value(values.first), format_value(values.last), *cells)
        return table


def format_value(value: float) -> str:
    """Four significant digits, thousands as k and M: 0.8125, 12.35k, 3.1M, 2e-05."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):.4g}{suffix}"
    return f"{value:.4g}"


def format_seconds(seconds: float) -> str:
    """A duration: 42s, 3m 05s, 2h 14m."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest}s"
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"


def _ordered(names: Iterable[str]) -> list[str]:
    """Evaluation first, then the well-known names in their order, then the rest as they came."""
    rank = {name: index for index, name in enumerate(HEADLINES)}
    return sorted(
        names, key=lambda name: (not name.startswith("eval "), rank.get(name.removeprefix("eval "), len(rank)))
    )


def _best(key: str, values: Range) -> tuple[float, int] | None:
    """The best value and its step; None where neither direction is better (a learning rate, an entropy)."""
    if any(word in key for word in LOWER_IS_BETTER):
        return values.low
    if any(word in key for word in HIGHER_IS_BETTER):
        return values.high
    return None
