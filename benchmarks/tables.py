"""Turns results/*.json into the tables of docs/performance.md.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; `fill` replaces what is between.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

DASH = "–"


def fill(document: str, results: dict[str, dict[str, Any]]) -> str:
    """The document with every table made anew. Raises KeyError for an unknown table."""

    def table(match: re.Match) -> str:
        name = match[1]
        if name in OVERVIEWS:
            return f"<!-- table: {name} -->\n{OVERVIEWS[name](results)}\n<!-- end -->"
        make = TABLES[name]
        if not results.get(name, {}).get("cases", name == "machine"):
            return f"<!-- table: {name} -->\nNot measured.\n<!-- end -->"
        place = elsewhere(results[name].get("machine", {}), results["machine"])
        return f"<!-- table: {name} -->\n{make(results[name])}{place}\n<!-- end -->"

    return re.sub(r"<!-- table: (\S+) -->\n.*?<!-- end -->", table, document, flags=re.DOTALL)


def elsewhere(machine: dict[str, Any], page: dict[str, Any]) -> str:
    """A line below a table that was taken on another machine than the page names."""
    processor = machine.get("processor")
    if processor in (None, page.get("processor")):
        return ""
    rate = machine.get("matmul_gflops", {}).get("float32")
    at = f", {rate:.0f} GFLOP/s in float32" if rate else ""
    return f"\n\nTaken on another machine: {processor}, {machine.get('threads')} threads{at}."


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ratio(theirs: float, ours: float) -> str:
    return f"{theirs / ours:.1f}×"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _gigabytes(megabytes: float) -> str:
    return f"{megabytes / 1024:.2f}"


def _share(case: dict, side: dict, machine: dict) -> str:
    """Useful work per second over the rate of a large product in the type that was trained in."""
    dtype = "bfloat16" if "bf16" in case["name"] else "float32"
    if "default" in case["name"]:
        return DASH
    return f"{case['useful_flops'] / side['seconds'] / 1e9 / machine['matmul_gflops'][dtype]:.0%}"


def _name(case: dict, side: str) -> str:
    disturbed = " (other load)" if case["sides"][side].get("disturbed") else ""
    return ("**ours**" if side == "ours" else f"TRL {side}") + disturbed


def steps_table(result: dict) -> str:
    """One line per side: time, CPU time, share of the matmul rate, memory, and how much more TRL needs."""
    rows = []
    for case in result["cases"]:
        ours = case["sides"]["ours"]
        for i, (name, side) in enumerate(case["sides"].items()):
            rows.append(
                [
                    case["name"] if i == 0 else "",
                    _name(case, name),
                    _seconds(side["seconds"]),
                    _seconds(side["cpu_seconds"]),
                    _share(case, side, result["machine"]),
                    _gigabytes(side["peak_mb"]),
                    _gigabytes(side["working_mb"]),
                    "" if i == 0 else ratio(side["seconds"], ours["seconds"]),
                    "" if i == 0 else ratio(side["peak_mb"], ours["peak_mb"]),
                ]
            )
    head = ["work", "side", "s/step", "CPU s", "of matmul rate", "peak GB", "working GB", "time", "memory"]
    return markdown(head, rows)


def grpo_table(result: dict) -> str:
    """The steps table with its phases."""
    rows = []
    for case in result["cases"]:
        ours = case["sides"]["ours"]
        for i, (name, side) in enumerate(case["sides"].items()):
            phases = [side["phases"][p] for p in ("generation", "scoring", "training")]
            rows.append(
                [
                    case["name"] if i == 0 else "",
                    _name(case, name),
                    _seconds(side["seconds"]),
                    *[_seconds(p) if p >= 0.005 else DASH for p in phases],
                    _seconds(side["cpu_seconds"]),
                    _share(case, side, result["machine"]),
                    _gigabytes(side["peak_mb"]),
                    "" if i == 0 else ratio(side["seconds"], ours["seconds"]),
                    "" if i == 0 else ratio(side["phases"]["training"], ours["phases"]["training"]),
                    "" if i == 0 else ratio(side["peak_mb"], ours["peak_mb"]),
                ]
            )
    head = ["work", "side", "s/step", "generation", "scoring", "training", "CPU s", "of matmul rate", "peak GB"]
    return markdown([*head, "time", "training", "memory"], rows)


Aim = tuple[str, str, str, str, str, float]
AIMS: list[Aim] = [
    # work, part, case, TRL's side, what, aimed at
    ("SFT, vocabulary 4,096, fixed lengths", "sft", "tiny fixed", "shipped", "time", 2.0),
    ("", "sft", "tiny fixed", "gpu selection", "time", 1.3),
    ("SFT, vocabulary 4,096, mixed lengths", "sft", "tiny mixed", "shipped", "time", 5.0),
    ("", "sft", "tiny mixed", "gpu selection", "time", 3.5),
    ("SFT, vocabulary 151,936, fixed lengths", "sft", "small fixed", "shipped", "time", 7.0),
    ("", "sft", "small fixed", "gpu selection", "time", 1.3),
    ("reward model", "reward", "tiny", "shipped", "time", 2.2),
    ("DPO with a reference", "dpo", "tiny with reference", "shipped", "time", 3.5),
    ("", "dpo", "tiny with reference", "gpu selection", "time", 2.5),
    ("DPO, vocabulary 151,936", "dpo", "small precomputed, 4 pairs", "shipped", "time", 10.0),
    ("GRPO step", "grpo", "tiny step", "shipped", "time", 4.0),
    ("GRPO training", "grpo", "tiny training", "gpu selection", "time", 3.5),
    ("GRPO step, vocabulary 151,936", "grpo", "small step, 2 prompts", "shipped", "time", 7.0),
    ("PPO step", "ppo", "tiny step, 32 x 2", "1.12", "time", 5.0),
    ("PPO step, vocabulary 151,936", "ppo", "small step, 4 x 2", "1.12", "time", 5.0),
    ("distillation, 8 samples per prompt", "distill", "tiny training, 8 samples", "shipped", "time", 2.0),
    ("distillation, 1 sample per prompt", "distill", "tiny training, 1 sample", "shipped", "time", 1.5),
    ("distillation, vocabulary 151,936", "distill", "small training beside GKD", "gkd", "memory", 3.0),
    ("rollouts, full length", "rollout", "tiny full", "generate", "time", 3.5),
    ("rollouts, mixed lengths", "rollout", "tiny mixed", "generate", "time", 4.5),
]


def aims_table(results: dict[str, dict]) -> str:
    """Every aim that was measured. The last column is the time ratio if ours ran at the rate of a large product."""
    rows = []
    for work, part, name, side, what, aim in AIMS:
        case = next((c for c in results.get(part, {}).get("cases", []) if c["name"] == name), None)
        if case is None:
            continue
        ours, theirs = case["sides"]["ours"], case["sides"][side]
        key = {"time": "seconds", "memory": "peak_mb"}[what]
        cells = [work, f"{side}, {what}", f"{aim}×", ratio(theirs[key], ours[key]), DASH]
        if what == "time" and "useful_flops" in case:
            rate = results[part]["machine"]["matmul_gflops"]["float32"]
            cells[-1] = ratio(theirs["seconds"], case["useful_flops"] / rate / 1e9)
        rows.append(cells)
    return markdown(["work", "against", "aimed at", "measured", "at the product rate"], rows)


def parts_table(results: dict[str, dict]) -> str:
    """How long each part took to measure."""
    took = {name: result["took_s"] for name, result in results.items() if "took_s" in result}
    rows = [[name, f"{seconds / 60:.1f}"] for name, seconds in took.items()]
    return markdown(["part", "minutes"], [*rows, ["all", f"{sum(took.values()) / 60:.0f}"]])


def head_table(result: dict) -> str:
    rows = []
    for case in result["cases"]:
        for i, (name, side) in enumerate(case["sides"].items()):
            share = _share(case, side, result["machine"])
            values = [_seconds(side["seconds"]), _seconds(side["cpu_seconds"]), share, f"{side['extra_mb']:.0f}"]
            rows.append([case["name"] if i == 0 else "", name, *values])
    return markdown(["work", "way", "s", "CPU s", "of matmul rate", "extra MiB"], rows)


def growth_table(result: dict) -> str:
    """Seconds and working memory of each side as one quantity grows; a dash where a side has no such way."""
    names = list(dict.fromkeys(name for case in result["cases"] for name in case["sides"]))
    rows, before = [], ""
    for case in result["cases"]:
        found = [case["sides"].get(name) for name in names]
        cells = [text for side in found for text in _time_and_memory(side)]
        cells += [ratio(side["seconds"], found[0]["seconds"]) if side else DASH for side in found[1:]]
        rows.append([case["what"] if case["what"] != before else "", f"{case['value']:,}", *cells])
        before = case["what"]
    head = ["grows", "value"] + [f"{name} {unit}" for name in names for unit in ("s", "GB")]
    return markdown(head + [f"time, {name}" for name in names[1:]], rows)


def _time_and_memory(side: dict | None) -> tuple[str, str]:
    return (_seconds(side["seconds"]), _gigabytes(side["working_mb"])) if side else (DASH, DASH)


def rollout_table(result: dict) -> str:
    """One line per side: tokens per second, time, memory."""
    rows = []
    for case in result["cases"]:
        ours = case["sides"]["ours"]
        for i, (name, side) in enumerate(case["sides"].items()):
            disturbed = " (other load)" if side.get("disturbed") else ""
            rows.append(
                [
                    case["name"] if i == 0 else "",
                    ("**ours**" if name == "ours" else f"`{name}`") + disturbed,
                    f"{side['tokens_per_second']:,.0f}",
                    _seconds(side["seconds"]),
                    _seconds(side["cpu_seconds"]),
                    _gigabytes(side["peak_mb"]),
                    "" if i == 0 else ratio(side["seconds"], ours["seconds"]),
                    "" if i == 0 else ratio(side["cpu_seconds"], ours["cpu_seconds"]),
                ]
            )
    return markdown(["work", "side", "tokens/s", "s", "CPU s", "peak GB", "time", "CPU time"], rows)


def merging_table(result: dict) -> str:
    """One line per optimizer, held against the first."""
    rows = []
    for case in result["cases"]:
        first = next(iter(case["sides"].values()))
        for name, side in case["sides"].items():
            disturbed = " (other load)" if side.get("disturbed") else ""
            per_step = [f"{1000 * side[key] / case['steps']:.0f}" for key in ("seconds", "cpu_seconds")]
            ratios = [ratio(side[key], first[key]) for key in ("seconds", "cpu_seconds", "working_mb")]
            rows.append([name + disturbed, *per_step, f"{side['working_mb']:.0f}", *ratios])
    return markdown(["optimizer", "ms", "CPU ms", "MiB", "time", "CPU time", "memory"], rows)


def machine_table(result: dict) -> str:
    rows = [[name, str(value)] for name, value in result.items()]
    return markdown(["machine", "value"], rows)


TABLES: dict[str, Callable[[dict], str]] = {
    "sft": steps_table,
    "dpo": steps_table,
    "reward": steps_table,
    "grpo": grpo_table,
    "ppo": grpo_table,
    "distill": steps_table,
    "head": head_table,
    "growth": growth_table,
    "rollout": rollout_table,
    "merging": merging_table,
    "machine": machine_table,
}

OVERVIEWS: dict[str, Callable[[dict[str, dict]], str]] = {"aims": aims_table, "parts": parts_table}
"""Tables made from several parts."""
