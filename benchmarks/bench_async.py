"""GRPO on a vLLM server, step by step and with rollouts one step ahead: seconds per step, and where they go.

    python -m benchmarks.bench_async --model FOLDER --server http://127.0.0.1:8001 [--steps 12]

The model is FOLDER's, a small one; the server is started with it (docs/vllm.md). The two runs have the same settings
and alternate in halves, so that a change of the machine's load meets both.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

import recipes.grpo
from benchmarks.rows import write_rows

ROWS = 64


def write_sums(path: Path) -> None:
    rows = [{"prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(8) for b in range(ROWS // 8)]
    write_rows(path, rows)


def one_run(folder: Path, model: str, server: str, steps: int, ahead: int, tokens: int) -> list[dict]:
    """The metrics of every step but the first, which warms up and has nothing ahead."""
    recipes.grpo.main(
        [
            *(
                "--model_name_or_path",
                model,
                "--dataset",
                str(folder / "rows.jsonl"),
                "--output_dir",
                str(folder / "run"),
            ),
            *("--engine", "vllm", "--vllm_servers", server, "--async_rollouts", str(ahead)),
            *("--max_steps", str(steps), "--prompts_per_step", "8", "--group_size", "8", "--max_tokens", str(tokens)),
            *("--curriculum", "random", "--learning_rate", "1e-5", "--entropy_coef", "1e-3", "--resume", "never"),
        ]
    )
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(folder / "run")
    trained = [line for line in lines if line["kind"] == "train"]
    return [{**line, "seconds": line["time"] - before["time"]} for before, line in pairwise(trained)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--server", required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    found: dict[int, list[dict]] = {0: [], 1: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sums(folder / "rows.jsonl")
        for ahead in (0, 1, 1, 0):
            found[ahead] += one_run(folder, options.model, options.server, options.steps, ahead, options.tokens)
    print("| rollouts | collect, s | train, s | weights, s | step, s | sampler ratio | outside [0.9, 1.1] |")
    print("|---|---|---|---|---|---|---|")
    totals = {}
    for ahead, title in ((0, "in turn"), (1, "one step ahead")):
        lines = found[ahead]

        def median(key: str, lines=lines) -> float:
            return statistics.median(line[key] for line in lines)

        totals[ahead] = median("seconds")
        times = [median("time/collect"), median("time/train"), median("time/update"), totals[ahead]]
        ratio, outside = median("sampler_ratio/mean"), median("sampler_ratio/outside")
        print(f"| {title} | {' | '.join(f'{x:.2f}' for x in times)} | {ratio:.4f} | {outside:.4f} |")
    print(f"\n{totals[0] / totals[1]:.2f} times the steps")


if __name__ == "__main__":
    main()
