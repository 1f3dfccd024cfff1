"""Figures and tables of docs/evidence.md from results/evidence_*.json: `python -m benchmarks.evidence_figures`"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import evidence_distill, evidence_reward_model, evidence_thinking
from benchmarks.evidence import RESULTS
from benchmarks.evidence_ppo import ARMS, summarise
from benchmarks.sides import ROOT
from benchmarks.statistics import interval
from benchmarks.tables import markdown

DOCS = ROOT / "docs"
COLOURS = dict(zip(ARMS, ("#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2"), strict=True))


def curve(axes: plt.Axes, runs: Sequence[Sequence[float]], label: str, colour: str) -> None:
    """Mean over seeds by step, with its 95 % interval as a band."""
    steps = range(1, len(runs[0]) + 1)
    middle = [interval(values) for values in zip(*runs, strict=True)]
    axes.plot(steps, [m for m, _ in middle], label=label, color=colour)
    axes.fill_between(steps, [m - h for m, h in middle], [m + h for m, h in middle], color=colour, alpha=0.15, lw=0)


def ppo_figure(results: list[dict[str, Any]], path: Path) -> None:
    """Explained variance by step; text loss against pass rate; entropy with and without truncated sampling."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    by_arm = {arm: [r for r in results if r["arm"] == arm] for arm in ARMS}
    for arm in ("PPO", "no value warm-up"):
        label = "value warm-up" if arm == "PPO" else arm
        curve(left, [r["explained_variance"] for r in by_arm[arm]], label, COLOURS[arm])
    left.set(title="Explained variance of the value", xlabel="policy step")
    for arm in ("PPO", "with ptx", "Online Merging"):
        last = [(r["evaluations"][-1], r["evaluations"][0]) for r in by_arm[arm]]
        rate, rate_half = interval([end["pass_rate"] for end, _ in last])
        rise, rise_half = interval([end["text_loss"] - start["text_loss"] for end, start in last])
        middle.errorbar(100 * rate, rise, rise_half, 100 * rate_half, "o", label=arm, color=COLOURS[arm], capsize=3)
    middle.axhline(0, color="grey", lw=0.8)
    middle.set(title="Tax: rise of the loss on plain text", xlabel="held-out pass rate, %", ylabel="nats per token")
    for arm in ("PPO", "top-p 1.0"):
        label = "top-p 0.9" if arm == "PPO" else arm
        curve(right, [r["reward"] for r in by_arm[arm]], label, COLOURS[arm])
    right.set(title="Training reward by top-p", xlabel="policy step")
    for axes in (left, middle, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def ppo_table(results: list[dict[str, Any]]) -> str:
    """A line per quantity, a column per arm, mean ± half of the 95 % interval."""
    return _columns(summarise(results), 3)


def reward_model_figure(results: list[dict[str, Any]], path: Path) -> None:
    """Held-out accuracy of each arm with its interval, the seeds as points."""
    table = evidence_reward_model.summarise(results)
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    for place, arm in enumerate(evidence_reward_model.ARMS):
        mean, half = table[arm]
        seeds = [100 * sum(r["right"][arm]) / len(r["right"][arm]) for r in results]
        axes.plot(seeds, [place] * len(seeds), "o", color="#4269d0", alpha=0.3, ms=5, mew=0)
        axes.errorbar(100 * mean, place, xerr=100 * half, fmt="o", color="#4269d0", capsize=3)
    axes.set_yticks(range(len(evidence_reward_model.ARMS)), list(evidence_reward_model.ARMS))
    axes.invert_yaxis()
    axes.axvline(50, color="grey", lw=0.8)
    axes.set(xlabel="held-out pairs in the right order, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def reward_model_table(results: list[dict[str, Any]]) -> str:
    """A line per arm: mean ± half of the 95 % interval, and what a first stage adds to the same fine-tuning."""
    table = evidence_reward_model.summarise(results)
    gains = {first: table[f"{first} - {second}"] for first, second in evidence_reward_model.GAINS}
    rows = []
    for arm in evidence_reward_model.ARMS:
        gain = f"{100 * gains[arm][0]:+.1f} ± {100 * gains[arm][1]:.1f}" if arm in gains else ""
        rows.append([arm, f"{100 * table[arm][0]:.1f} ± {100 * table[arm][1]:.1f}", gain])
    return markdown(["first stage, share of preferences", "accuracy, %", "gain, points"], rows)


def distill_figure(results: list[dict[str, Any]], path: Path) -> None:
    """Pass rate by what was spent until then: operations, and seconds of a CPU."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
    start = interval([100 * r["start"] for r in results])[0]
    teacher = interval([100 * r["teacher"] for r in results])[0]
    colours = dict(zip(evidence_distill.ARMS, COLOURS.values(), strict=False))
    for axes, (cost, unit, name) in zip(
        panels, (("flops", 1e12, "TFLOP of training and sampling"), ("cpu_seconds", 1, "CPU seconds")), strict=True
    ):
        for arm, colour in colours.items():
            places = list(zip(*(r["arms"][arm] for r in results), strict=True))
            x = [interval([e[cost] / unit for e in place])[0] for place in places]
            y = [interval([100 * e["pass_rate"] for e in place]) for place in places]
            axes.plot([0, x[0]], [start, y[0][0]], color=colour, lw=0.8, ls=":")
            axes.errorbar(x, [m for m, _ in y], [h for _, h in y], fmt="o-", ms=4, capsize=3, color=colour, label=arm)
        axes.axhline(teacher, color="grey", lw=0.8, ls="--")
        axes.set(xlabel=name, xlim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].text(0, teacher, " teacher", va="bottom", fontsize=8, color="grey")
    panels[0].set(ylabel="held-out pass rate, %")
    panels[1].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def distill_table(results: list[dict[str, Any]]) -> str:
    """A line per quantity, a column per arm."""
    return _columns(evidence_distill.summarise(results), 1)


def thinking_figure(results: list[dict[str, Any]], path: Path) -> None:
    """Accuracy by budget, and mode following by kind of test, before and after fusion."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", width_ratios=(1, 1.25))
    colours = dict(zip(evidence_thinking.MODELS, ("#9498a0", "#4269d0"), strict=True))
    kinds = sorted(results[0]["after"]["modes"])
    for shift, (model, colour) in zip((-0.18, 0.18), colours.items(), strict=True):
        budgets = [point["budget"] for point in results[0][model]["budgets"] if point["budget"] is not None]
        rates = [
            interval([100 * p["pass_rate"] for r in results for p in r[model]["budgets"] if p["budget"] == budget])
            for budget in (*budgets, None)
        ]
        *limited, free = rates
        left.errorbar(
            budgets, [m for m, _ in limited], [h for _, h in limited], fmt="o-", ms=4, capsize=3, color=colour,
            label=f"{model} fusion",
        )  # fmt: skip
        left.axhline(free[0], color=colour, lw=0.8, ls="--")
        shares = [interval([100 * r[model]["modes"][kind] for r in results]) for kind in kinds]
        places = [i + shift for i in range(len(kinds))]
        right.barh(places, [m for m, _ in shares], 0.34, xerr=[h for _, h in shares], color=colour, label=model)
    left.set(xlabel="thinking budget, tokens (dashed: none)", ylabel="held-out accuracy, %", ylim=(0, None))
    left.legend(frameon=False)
    right.set_yticks(range(len(kinds)), kinds, fontsize=8)
    right.invert_yaxis()
    right.set(xlabel="tests with the mode that is asked for, %")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def thinking_table(results: list[dict[str, Any]]) -> str:
    """A line per quantity, before and after."""
    return _columns(evidence_thinking.summarise(results), 1)


def _columns(table: dict[str, dict[str, tuple[float, float]]], digits: int) -> str:
    names = list(next(iter(table.values())))
    rows = [[name, *(_cell(*table[arm][name], digits) for arm in table)] for name in names]
    return markdown(["", *table], rows)


def _cell(mean: float, half: float, digits: int) -> str:
    """Without an interval for a single seed; empty where a seed has no figure."""
    if math.isnan(mean):
        return ""
    return f"{mean:.{digits}f}" if math.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"


MAKERS: dict[str, tuple[Callable[..., None], Callable[..., str]]] = {
    "evidence_ppo": (ppo_figure, ppo_table),
    "evidence_reward_model": (reward_model_figure, reward_model_table),
    "evidence_distill": (distill_figure, distill_table),
    "evidence_thinking": (thinking_figure, thinking_table),
}


def main() -> None:
    page = DOCS / "evidence.md"
    text = page.read_text()
    for name, (figure, table) in MAKERS.items():
        source = RESULTS / f"{name}.json"
        if not source.is_file():
            continue
        results = json.loads(source.read_text())
        figure(results, DOCS / f"{name}.png")
        filled = f"<!-- table: {name} -->\n{table(results)}\n<!-- end -->"
        text = re.sub(rf"<!-- table: {name} -->\n.*?<!-- end -->", lambda _, f=filled: f, text, flags=re.DOTALL)
    page.write_text(text)


if __name__ == "__main__":
    main()
