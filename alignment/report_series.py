"""Which curves a report shows: metric lines become series, series become charts, flat ones become a remark."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alignment.metrics import RESERVED

# (title, unit, pattern of the metric names), in display order; the first match counts.
FAMILIES = (
    ("Reward", "", r"rewards?([/_].*)?"),
    ("Pass rate", "%", r"(pass_rate|pass@\d+)([/_].*)?"),
    ("Accuracy", "%", r"accuracy([/_].*)?"),
    ("Loss", "", r"(.*[/_])?loss([/_].*)?"),
    ("Entropy", "nats", r"entropy([/_].*)?"),
    ("KL divergence", "nats", r"(approx_|ref_)?kl([/_].*)?"),
    ("Completion length", "tokens", r"(completion|response|generated)s?[/_](length|tokens)s?([/_].*)?"),
    ("Importance ratio", "", r"(importance_)?ratio([/_].*)?"),
    ("Clip fraction", "%", r"clip(ped)?([/_]?frac(tion)?)?([/_].*)?"),
    ("Learning rate", "", r"(learning_rate|lr)([/_].*)?"),
    ("Gradient norm", "", r"grad(ient)?_norm([/_].*)?"),
    ("Throughput", "tokens/s", r"tokens_per_second"),
)
MAX_SERIES = 6
SCALE_RATIO = 30.0


@dataclass(slots=True)
class Series:
    """One metric over the steps: training values, and evaluation values of the same name. Non-finite values stay."""

    key: str
    train: list[tuple[int, float]] = field(default_factory=list)
    eval: list[tuple[int, float]] = field(default_factory=list)

    def finite_values(self) -> np.ndarray:
        values = np.array([value for _, value in self.train + self.eval], dtype=np.float64)
        return values[np.isfinite(values)]


@dataclass(slots=True)
class Chart:
    """Series that share an axis."""

    title: str
    unit: str
    series: list[Series]


def series_from_metrics(lines: Iterable[dict[str, Any]]) -> dict[str, Series]:
    """Series by metric name. An evaluation metric joins the training metric of its name without "eval/" or "eval_".
    `tokens` stays out: its sum says more, and tokens per second has a curve."""
    table: dict[str, Series] = {}
    for line in lines:
        for name, value in line.items():
            if name in (*RESERVED, "tokens") or isinstance(value, bool) or not isinstance(value, float | int):
                continue
            is_eval = line.get("kind") == "eval"
            key = re.sub(r"^eval[/_]", "", name) if is_eval else name
            series = table.setdefault(key, Series(key))
            (series.eval if is_eval else series.train).append((int(line["step"]), float(value)))
    return table


def plan_charts(table: dict[str, Series]) -> tuple[list[Chart], list[str]]:
    """Charts in display order, and remarks about metrics that never change (a line says no more than the value)."""
    remarks: list[str] = []
    families: dict[tuple[int, str, str], list[Series]] = {}
    for series in table.values():
        values = series.finite_values()
        if len(values) == 0:
            remarks.append(f"{series.key}: never finite")
        elif np.all(values == values[0]):
            remarks.append(f"{series.key} = {values[0]:.6g}")
        else:
            families.setdefault(_family(series.key), []).append(series)
    charts: list[Chart] = []
    for (_, title, unit), members in sorted(families.items(), key=lambda item: item[0]):
        parts = _split_by_scale(members)
        names = [_part_title(title, part) if len(parts) > 1 else title for part in parts]
        charts += [Chart(name, unit, part) for name, part in zip(names, parts)]
    return charts, sorted(remarks)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` values, NaN where a value is not finite; gaps do not spread. Shape kept."""
    if len(values) == 0:
        return values
    finite = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(finite, values, 0.0), kernel, mode="full")
    count = np.convolve(finite.astype(np.float64), kernel, mode="full")
    start = (window - 1) // 2
    middle = slice(start, start + len(values))
    return np.where(finite, total[middle] / np.maximum(count[middle], 1.0), np.nan)


def _family(key: str) -> tuple[int, str, str]:
    for place, (title, unit, pattern) in enumerate(FAMILIES):
        if re.fullmatch(pattern, key):
            return place, title, unit
    prefix = key.split("/", 1)[0]
    title = prefix.replace("_", " ")
    return len(FAMILIES), title[:1].upper() + title[1:], ""


def _split_by_scale(members: list[Series]) -> list[list[Series]]:
    """Groups of at most MAX_SERIES whose sizes differ by less than SCALE_RATIO, so that none is a flat line."""
    size = {series.key: float(np.percentile(np.abs(series.finite_values()), 98)) or math.ulp(0.0) for series in members}
    parts: list[list[Series]] = []
    for series in sorted(members, key=lambda series: size[series.key]):
        part = parts[-1] if parts else None
        if part and len(part) < MAX_SERIES and size[series.key] <= SCALE_RATIO * size[part[0].key]:
            part.append(series)
        else:
            parts.append([series])
    order = [series.key for series in members]
    for part in parts:
        part.sort(key=lambda series: order.index(series.key))
    return sorted(parts, key=lambda part: order.index(part[0].key))


def _part_title(title: str, part: list[Series]) -> str:
    names = [re.split(r"[/]", series.key, maxsplit=1)[-1].replace("_", " ") for series in part]
    return f"{title}: {', '.join(names)}" if len(names) <= 2 else f"{title}: {names[0]} and {len(names) - 1} more"
