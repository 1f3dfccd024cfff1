"""What the evidence_*.py have in common: a result for each seed that is not made again, results on disk, the table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.metrics import replace_file

RESULTS = Path(__file__).parent / "results"


def of_seeds(
    name: str, folder: Path, seeds: Sequence[int], run_seed: Callable[[Path, int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """The results of `run_seed(FOLDER/seed-N, N)` for every seed, in results/NAME.json too. Those that are in their
    seed's folder are taken from there."""
    results = []
    for seed in seeds:
        done = folder / f"seed-{seed}" / "result.json"
        if not done.is_file():
            done.parent.mkdir(parents=True, exist_ok=True)
            replace_file(done, json.dumps(run_seed(done.parent, seed)))
        results.append(json.loads(done.read_text()))
    write_results(name, results)
    return results


def write_results(name: str, results: Sequence[dict[str, Any]]) -> None:
    """To results/NAME.json, where evidence_figures.py finds them."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")


def print_table(table: Mapping[str, Mapping[str, tuple[float, float]]], digits: int) -> None:
    """A line per quantity of every arm: mean ± half of its interval."""
    for arm, columns in table.items():
        print(arm)
        for name, (mean, half) in columns.items():
            print(f"    {name:50s} {mean:{digits + 5}.{digits}f} ± {half:.{digits}f}")
