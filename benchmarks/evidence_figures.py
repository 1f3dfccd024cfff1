"""Figures and tables of docs/evidence.md from results/evidence_*.json: `python -m benchmarks.evidence_figures`"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import evidence_reward_model
from benchmarks.evidence_ppo import ARMS, summarise
from benchmarks.statistics import interval
from benchmarks.tables import markdown

ROOT = Path(__file__).parent.parent
RESULTS, DOCS = Path(__file__).parent / "results", ROOT / "docs"
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
    table = summarise(results)
    names = list(next(iter(table.values())))
    cells = [[f"{table[arm][name][0]:.3f} ± {table[arm][name][1]:.3f}" for arm in table] for name in names]
    return markdown(["", *table], [[name, *row] for name, row in zip(names, cells, strict=True)])


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


MAKERS: dict[str, tuple[Callable[..., None], Callable[..., str]]] = {
    "evidence_ppo": (ppo_figure, ppo_table),
    "evidence_reward_model": (reward_model_figure, reward_model_table),
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
