"""Small SVG charts for the report: curves over steps, and pass rates with their intervals.

Colours come from the page's style sheet through classes (`c0` … `c5`), so one drawing serves light and dark.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from alignment.console import format_value
from alignment.report_series import Chart, Series, smooth

WIDTH, HEIGHT = 380, 214
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 34
MAX_POINTS = 300
OUTLIER_RATIO = 6.0


@dataclass(frozen=True, slots=True)
class Curve:
    """A series reduced to at most MAX_POINTS buckets: last step, lowest, highest and smoothed value of each."""

    steps: np.ndarray
    low: np.ndarray
    high: np.ndarray
    middle: np.ndarray
    window: int


@dataclass(frozen=True, slots=True)
class Frame:
    """Maps data to the drawing's pixels."""

    x: tuple[float, float]
    y: tuple[float, float]
    percent: bool

    def px(self, step: float) -> float:
        low, high = self.x
        return round(LEFT + (step - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def py(self, value: float) -> float:
        low, high = self.y
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)


def draw_chart(chart: Chart, chart_id: str) -> dict[str, Any]:
    """What the page needs of a chart: title, unit, last value, legend, remark, svg (markup), hover (JSON text)."""
    percent = chart.unit == "%" and all(_within_unit(series) for series in chart.series)
    frame = _frame(chart, percent)
    curves = [_reduce(series.train, frame.y) for series in chart.series]
    beyond = sum(int(np.sum((v > frame.y[1]) | (v < frame.y[0]))) for v in (s.finite_values() for s in chart.series))
    missing = sum(len(s.train) + len(s.eval) - len(s.finite_values()) for s in chart.series)
    remarks = [f"{beyond} beyond the axis"] * bool(beyond) + [f"{missing} not finite"] * bool(missing)
    body = [_axes(frame), f'<clipPath id="{chart_id}"><rect x="{LEFT}" y="{TOP - 2}"', _clip_size(), "</clipPath>"]
    body.append(f'<g clip-path="url(#{chart_id})">')
    for color, (series, curve) in enumerate(zip(chart.series, curves)):
        body += [_curve_paths(frame, curve, color), _eval_paths(frame, series, color)]
    body.append("</g>")
    label = escape(f"{chart.title} over steps", quote=True)
    return {
        "title": chart.title,
        "unit": "" if chart.unit == "%" and not percent else chart.unit,
        "last": _last_value(chart, curves, percent),
        "legend": [(color, series.key, _kinds(series)) for color, series in enumerate(chart.series)],
        "plain": len(chart.series) == 1 and not chart.series[0].eval and _says(chart.title, chart.series[0].key),
        "remark": ", ".join(remarks),
        "svg": f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(body)}</svg>',
        "hover": json.dumps(_hover(chart, curves, frame), separators=(",", ":")),
    }


def draw_intervals(stages: list[dict[str, Any]]) -> str:
    """SVG of pass rates with 95 % whiskers, one row a stage. Keys read: name, pass_rate, ci_low, ci_high (0 to 1)."""
    row, top, left, right = 34, 8, 96, 60
    height = top + row * len(stages) + 40
    limit = max(_stage_high(stage) for stage in stages)
    ticks = nice_ticks(0.0, limit or 1.0, 5)
    if ticks[-1] < limit:
        ticks.append(min(1.0, ticks[-1] + ticks[1]))
    span = ticks[-1]
    px = lambda value: round(left + value / span * (WIDTH - left - right), 1)
    parts = []
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{px(tick)} {top}V{height - 40}"/>')
        parts.append(
            f'<text class="tick" x="{px(tick)}" y="{height - 24}" text-anchor="middle">{tick * 100:.3g}</text>'
        )
    middle = (left + WIDTH - right) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{height - 6}" text-anchor="middle">pass rate, %</text>')
    for index, stage in enumerate(stages):
        y = top + row * (index + 0.5)
        name = str(stage["name"])
        short = name if len(name) <= 13 else name[:12] + "…"
        parts.append(f'<text class="name" x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(short)}</text>')
        if stage.get("ci_low") is not None and stage.get("ci_high") is not None:
            low, high = px(stage["ci_low"]), px(stage["ci_high"])
            parts.append(f'<path class="line c0" d="M{low} {y}H{high}M{low} {y - 5}v10M{high} {y - 5}v10"/>')
        parts.append(f'<circle class="dot c0" cx="{px(stage["pass_rate"])}" cy="{y}" r="5"/>')
        value = f"{stage['pass_rate'] * 100:.1f} %"
        parts.append(f'<text class="value" x="{WIDTH - 4}" y="{y + 4}" text-anchor="end">{value}</text>')
    label = "Pass rate of each stage with 95 % intervals"
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten apart) within [low, high]."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12 - math.floor(math.log10(step))) for index in range(first, last + 1)]


def _says(title: str, key: str) -> bool:
    """Whether the title alone names the metric."""
    return title.lower().replace(" ", "_") == key


def _kinds(series: Series) -> list[str]:
    return ["train"] * bool(series.train) + ["eval"] * bool(series.eval)


def _stage_high(stage: dict[str, Any]) -> float:
    return max(stage["pass_rate"], stage.get("ci_high") or 0.0)


def _within_unit(series: Series) -> bool:
    values = series.finite_values()
    return bool(values.min() >= 0.0 and values.max() <= 1.0)


def _clip_size() -> str:
    return f' width="{WIDTH - LEFT - RIGHT + 6}" height="{HEIGHT - TOP - BOTTOM + 4}"/>'


def _reduce(points: list[tuple[int, float]], axis: tuple[float, float]) -> Curve:
    """The curve of a series. Values beyond the axis count as its end in the smoothed line, so that one spike does not
    become a plateau."""
    steps = np.array([step for step, _ in points], dtype=np.int64)
    values = np.array([value for _, value in points], dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    inside = np.clip(values, *axis)
    window = 1 if _is_smooth(inside) else max(1, len(values) // 15) | 1
    middle = smooth(inside, window)
    buckets = np.array_split(np.arange(len(values)), min(len(values), MAX_POINTS)) if len(values) else []
    pick = lambda f, array: np.array([f(array[b]) if np.isfinite(array[b]).any() else np.nan for b in buckets])
    last = np.array([steps[b[-1]] for b in buckets], dtype=np.int64)
    return Curve(last, pick(np.nanmin, values), pick(np.nanmax, values), pick(np.nanmean, middle), window)


def _is_smooth(values: np.ndarray) -> bool:
    """A schedule or another curve without noise, which smoothing would only bend."""
    values = values[np.isfinite(values)]
    return len(values) < 3 or float(np.abs(np.diff(values, 2)).mean()) < 0.01 * float(np.ptp(values))


def _frame(chart: Chart, percent: bool) -> Frame:
    steps = [step for series in chart.series for step, _ in series.train + series.eval]
    values = np.concatenate([series.finite_values() for series in chart.series])
    low, high = float(values.min()), float(values.max())
    # One spike must not flatten the curve: with far outliers the axis covers the bulk.
    near_low, near_high = (float(v) for v in np.percentile(values, (1, 99)))
    if len(values) >= 20 and high - low > OUTLIER_RATIO * (near_high - near_low) > 0:
        bulk = near_high - near_low
        low, high = max(low, near_low - bulk / 2), min(high, near_high + bulk / 2)
    if low >= 0 and low < 0.4 * high:
        low = 0.0
    pad = (high - low) * 0.06
    bottom = low if low == 0.0 else low - pad
    top = 1.0 if percent and high <= 1.0 < high + pad else high + pad
    first, last = min(steps), max(steps)
    return Frame((first - 0.5, last + 0.5) if first == last else (first, last), (bottom, top), percent)


def _axes(frame: Frame) -> str:
    parts = []
    ticks = nice_ticks(*frame.y, 4)
    for tick, text in zip(ticks, _tick_texts(ticks, frame.percent)):
        y = frame.py(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5}" text-anchor="end">{text}</text>')
    ticks = [tick for tick in nice_ticks(*frame.x, 5) if tick == int(tick)]
    for tick, text in zip(ticks, _tick_texts(ticks, False)):
        x = frame.px(tick)
        anchor = "end" if x > WIDTH - RIGHT - 10 else "middle"
        parts.append(f'<path class="axis" d="M{x} {HEIGHT - BOTTOM}v4"/>')
        parts.append(f'<text class="tick" x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{text}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">step</text>')
    return "".join(parts)


def _tick_texts(ticks: list[float], percent: bool) -> list[str]:
    """Tick labels of one precision and size: 0.05, 0.10; 7.5k, 10k; 2e-5."""
    scale = 100.0 if percent else 1.0
    values = [tick * scale for tick in ticks]
    size = max(map(abs, values), default=0.0)
    if size >= 1e4:
        unit, suffix = next(pair for pair in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if size >= pair[0])
        return [f"{value / unit:.4g}{suffix}" if value else "0" for value in values]
    if 0 < size < 1e-3:
        return [f"{value:.4g}".replace("e-0", "e-") for value in values]
    step = values[1] - values[0] if len(values) > 1 else size or 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step, decimals) != round(step, 9):
        decimals += 1  # steps of 2.5
    return [f"{value:.{decimals}f}" for value in values]


def _curve_paths(frame: Frame, curve: Curve, color: int) -> str:
    if len(curve.steps) == 0:
        return ""
    raw_steps, raw = np.repeat(curve.steps, 2), np.stack([curve.low, curve.high], axis=1).ravel()
    if np.array_equal(curve.low, curve.high, equal_nan=True):
        raw_steps, raw = curve.steps, curve.low
    faint = f'<path class="raw c{color}" d="{_path(frame, raw_steps, raw)}"/>' if curve.window > 1 else ""
    single = f'<circle class="dot c{color}" cx="{frame.px(curve.steps[0])}" cy="{frame.py(curve.middle[0])}" r="3"/>'
    if len(curve.steps) == 1:
        return single if math.isfinite(curve.middle[0]) else ""
    return f'{faint}<path class="line c{color}" d="{_path(frame, curve.steps, curve.middle)}"/>'


def _eval_paths(frame: Frame, series: Series, color: int) -> str:
    points = [(step, value) for step, value in series.eval if math.isfinite(value)]
    if not points:
        return ""
    steps, values = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    dots = (f'<circle class="eval c{color}" cx="{frame.px(s)}" cy="{frame.py(v)}" r="3.6"/>' for s, v in points)
    return f'<path class="evalline c{color}" d="{_path(frame, steps, values)}"/>{"".join(dots)}'


def _path(frame: Frame, steps: np.ndarray, values: np.ndarray) -> str:
    """Path data with a gap at every NaN."""
    parts, pen = [], "M"
    for step, value in zip(steps, values):
        if not math.isfinite(value):
            pen = "M"
            continue
        parts.append(f"{pen}{frame.px(step):g} {frame.py(value):g}")
        pen = "L"
    return "".join(parts)


def _last_value(chart: Chart, curves: list[Curve], percent: bool) -> str:
    """The smoothed last value of a chart with one series; several would need names."""
    if len(chart.series) > 1:
        return ""
    values = curves[0].middle if len(curves[0].middle) else np.array([value for _, value in chart.series[0].eval])
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return ""
    return f"{format_value(100 * values[-1])} %" if percent else format_value(values[-1])


def _hover(chart: Chart, curves: list[Curve], frame: Frame) -> dict[str, Any]:
    """Data of the read-out: axes (in data and pixels) and, per series, steps, smoothed, lowest and highest values."""
    rounded = lambda values: [float(f"{v:.5g}") if math.isfinite(v) else None for v in values]
    series = [
        {
            "name": member.key,
            "steps": curve.steps.tolist(),
            "middle": rounded(curve.middle),
            "low": rounded(curve.low),
            "high": rounded(curve.high),
            "eval": [[step, *rounded([value])] for step, value in member.eval],
        }
        for member, curve in zip(chart.series, curves)
    ]
    box = [LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, TOP]
    return {"x": frame.x, "y": frame.y, "box": box, "percent": frame.percent, "series": series}
