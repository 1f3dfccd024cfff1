"""The report of a run: one HTML file that needs nothing else, and the picture of several runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignment.console import format_seconds, format_value
from alignment.metrics import read_json_lines, read_metrics
from alignment.page import write_page
from alignment.report_charts import draw_chart, draw_intervals
from alignment.report_samples import select_samples
from alignment.report_series import plan_charts, series_from_metrics

SECRET_NAMES = ("hub_token", "push_to_hub_token", "api_key", "access_token", "auth_token", "password", "secret")


@dataclass(frozen=True, slots=True)
class ReportStage:
    """A part of a run. run_dir holds metrics.jsonl, and perhaps samples.jsonl, config.json and environment.json."""

    name: str
    run_dir: Path


def write_report(path: Path, title: str, stages: list[ReportStage], summary: dict[str, Any] | None = None) -> None:
    """Writes the HTML file `path`, or leaves an older one when something fails.

    summary: `{"stages": [{"name", "pass_rate", "ci_low", "ci_high", "problems", "samples", "seconds"}, …], …}`, rates
    between 0 and 1; other plain values are listed below the table, `headline` and `headline_label` replace the
    computed ones.
    """
    folder = Path(__file__).parent
    rows = _stage_rows(summary)
    sections = [_section(stage, index) for index, stage in enumerate(stages)]
    values = {
        "title": title,
        "when": _when(sections),
        "headline": _headline(summary, rows),
        "rows": rows,
        "intervals": draw_intervals(rows) if rows else "",
        "facts": _summary_facts(summary),
        "sections": sections,
        "environment": _environment(stages),
    }
    write_page(path, folder / "report.html.jinja", folder / "report.js", values)


def find_stages(run_dir: Path, summary: dict[str, Any] | None = None) -> list[ReportStage]:
    """The run itself, if it has metrics.jsonl, and its subdirectories that have one, in the order of the summary's
    stages, otherwise by the time of their first line. Raises ValueError when there is none."""
    run_dir = Path(run_dir)
    logs = [*run_dir.glob("metrics.jsonl"), *run_dir.glob("*/metrics.jsonl")]
    if not logs:
        raise ValueError(f"no metrics.jsonl in {run_dir} or directly below it; give the output directory of a run")
    names = [row["name"] for row in (summary or {}).get("stages", [])]

    def order(log: Path) -> tuple[int, float]:
        name = log.parent.name
        lines = read_metrics(log)
        return names.index(name) if name in names else len(names), lines[0]["time"] if lines else 0.0

    return [ReportStage(log.parent.resolve().name, log.parent) for log in sorted(logs, key=order)]


def plot_summary(path: Path, summaries: Mapping[str, dict[str, Any]]) -> None:
    """PNG of pass rates with 95 % intervals after each stage. summaries: label (for instance "seed 0") to the content
    of a summary.json. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.8), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(row["name"] for summary in summaries.values() for row in summary["stages"]))
    colors = ("#2563eb", "#d97706", "#0d9488", "#9333ea", "#db2777", "#65a30d")
    for index, (label, summary) in enumerate(summaries.items()):
        rows = summary["stages"]
        shift = (index - (len(summaries) - 1) / 2) * 0.12
        x = [names.index(row["name"]) + shift for row in rows]
        rates = [100 * row["pass_rate"] for row in rows]
        below = [100 * (row["pass_rate"] - row["ci_low"]) for row in rows]
        above = [100 * (row["ci_high"] - row["pass_rate"]) for row in rows]
        color = colors[index % len(colors)]
        axes.plot(x, rates, color=color, alpha=0.3, linewidth=1.2)
        axes.errorbar(x, rates, yerr=[below, above], fmt="o", color=color, markersize=6, capsize=4, label=label)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(-0.02 * axes.get_ylim()[1], None)
    axes.set_ylabel("held-out pass rate, % (95 % interval)")
    axes.grid(axis="y", color="#d7dbe2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _section(stage: ReportStage, index: int) -> dict[str, Any]:
    """What the page shows of one stage."""
    run_dir = Path(stage.run_dir)
    lines = read_metrics(run_dir / "metrics.jsonl") if (run_dir / "metrics.jsonl").exists() else []
    samples_path = run_dir / "samples.jsonl"
    records = read_json_lines(samples_path) if samples_path.exists() else []
    charts, remarks = plan_charts(series_from_metrics(lines))
    settings = read_object(run_dir / "config.json") or {}
    return {
        "id": f"stage-{index + 1}",
        "name": stage.name,
        "facts": _run_facts(lines),
        "charts": [draw_chart(chart, f"clip-{index}-{number}") for number, chart in enumerate(charts)],
        "remarks": remarks,
        "samples": select_samples(records),
        "sample_count": len(records),
        "settings": list(_flatten(settings)),
        "times": [line["time"] for line in lines],
    }


def _run_facts(lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    train = [line for line in lines if line["kind"] == "train"]
    if not train:
        return []
    facts = [("steps", str(train[-1]["step"])), ("time", format_seconds(train[-1]["time"] - train[0]["time"]))]
    if tokens := sum(line.get("tokens", 0.0) for line in train):
        facts.append(("tokens", format_value(tokens)))
    return facts


def _stage_rows(summary: dict[str, Any] | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for row in (summary or {}).get("stages", []):
        change = row["pass_rate"] - rows[-1]["pass_rate"] if rows else None
        seconds = row.get("seconds")
        rows.append({**row, "change": change, "duration": "" if seconds is None else format_seconds(seconds)})
    return rows


def _headline(summary: dict[str, Any] | None, rows: list[dict[str, Any]]) -> dict[str, str]:
    if summary and summary.get("headline"):
        return {"value": str(summary["headline"]), "label": str(summary.get("headline_label", ""))}
    if not rows:
        return {}
    last = rows[-1]
    label = f"pass rate after {last['name']}"
    if len(rows) > 1:
        points = 100 * (last["pass_rate"] - rows[0]["pass_rate"])
        label += f", {points:+.1f} points over {rows[0]['name']} ({100 * rows[0]['pass_rate']:.1f} %)"
    return {"value": f"{100 * last['pass_rate']:.1f} %", "label": label}


def _summary_facts(summary: dict[str, Any] | None) -> list[tuple[str, str]]:
    others = {
        key: value for key, value in (summary or {}).items() if key not in ("stages", "headline", "headline_label")
    }
    return list(_flatten(others))


def _when(sections: list[dict[str, Any]]) -> str:
    times = [time for section in sections for time in section["times"]]
    if not times:
        return ""
    finished = datetime.fromtimestamp(max(times), UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{finished} · {format_seconds(max(times) - min(times))}"


def _environment(stages: list[ReportStage]) -> list[tuple[str, str]]:
    """The facts of all stages; where stages differ, every value."""
    merged: dict[str, dict[str, None]] = {}
    for stage in stages:
        for name, value in (read_object(Path(stage.run_dir) / "environment.json") or {}).items():
            merged.setdefault(name, {})[str(value)] = None
    return [(name, "; ".join(values)) for name, values in merged.items()]


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON file with one object; None when there is no such file. Raises ValueError for anything else."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); repair or remove the file") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object; repair or remove the file")
    return content


def _flatten(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """(dotted name, text) of every leaf; secrets are hidden."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, f"{name}.{key}" if name else str(key))
    elif name.rsplit(".", 1)[-1] in SECRET_NAMES and value is not None:
        yield name, "(hidden)"
    elif isinstance(value, str):
        yield name, value
    else:
        yield name, json.dumps(value, ensure_ascii=False)
