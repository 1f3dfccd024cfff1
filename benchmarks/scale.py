"""Every method under every configuration against one process: "Proof" in docs/scale.md.

python -m benchmarks.scale [--output runs/scale] [--steps 12] [--methods sft,dpo,…] [--configurations ddp,…] [--ranks 2]

Two processes on this machine, tiny models, 12 steps. Prints the table as Markdown and keeps it in
benchmarks/results/scale.json (scale_4.json for four ranks): the largest difference of any metric (relative to
max(1, |value|)) and of the saved weights, and what rank 0 holds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from alignment.memory_plan import ModelSizes, spread
from alignment.metrics import read_metrics

METHODS = "sft,sft_moe,reward_model,dpo,online_dpo,ppo,grpo,distill"
CONFIGURATIONS = "ddp,zero1,zero2,fsdp2,zero3,zero3_offload"
REFUSED = ("ppo", "zero3_offload")
"""Value warm-up needs an optimizer that leaves parameters out; DeepSpeed's on the CPU does not."""
WIDTH = 64
"""Of the tiny models."""
RESULTS = Path(__file__).parent / "results"


def start(output: Path, configurations: list[str], methods: list[str], steps: int, ranks: int) -> None:
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"] if ranks > 1 else []
    command = [sys.executable, "-m", *launcher, "tests.sharded_runs", str(output)]
    command += [",".join(configurations), ",".join(methods), str(steps)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def curve_difference(one: Path, other: Path) -> float:
    """The largest relative difference of any metric of any step; not of times, which have no equal."""
    a, b = (read_metrics(folder / "metrics.jsonl", "train") for folder in (one, other))
    pairs = []
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        timed = {"kind", "tokens_per_second", *(name for name in x if name.startswith("time"))}
        pairs += [(x[name], y[name]) for name in x.keys() - timed]
    return max(abs(x - y) / max(1.0, abs(x)) for x, y in pairs)


def weight_difference(one: Path, other: Path) -> float:
    worst = 0.0
    for file in sorted(one.glob("*/model.safetensors")):
        a, b = load_file(file), load_file(other / file.relative_to(one))
        assert a.keys() == b.keys(), file
        worst = max(worst, *(float((a[n] - b[n]).abs().max()) for n in a))
    return worst


def row(output: Path, method: str, configuration: str, ranks: int) -> dict[str, float | str]:
    single, folder = output / method / "single", output / method / configuration
    held = json.loads((folder / "shares.json").read_text())
    sizes = ModelSizes(held["all_parameters"], held["all_updated"], 0, 0, WIDTH)
    return {
        "method": method,
        "configuration": configuration,
        "curve": curve_difference(single, folder),
        "weights": weight_difference(single, folder),
        "parameters": held["parameters"] / held["all_parameters"],
        "optimizer": held["updated"] / held["all_updated"],
        "bytes": held["bytes"],
        "formula": spread(sizes, configuration, ranks).between_steps,  # type: ignore[arg-type]
    }


def table(rows: list[dict]) -> str:
    lines = ["| method | configuration | metrics | saved weights | parameters | optimizer state |"]
    lines += ["|---|---|---:|---:|---:|---:|"]
    for r in rows:
        shares = f"{r['parameters']:.0%} | {r['optimizer']:.0%}"
        lines.append(f"| {r['method']} | {r['configuration']} | {r['curve']:.1e} | {r['weights']:.1e} | {shares} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/scale"))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--configurations", default=CONFIGURATIONS)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    methods, configurations = options.methods.split(","), options.configurations.split(",")
    pairs = [(m, c) for m in methods for c in configurations if (m, c) != REFUSED]
    start(options.output, ["single"], methods, options.steps, 1)
    for some in ([c for c in configurations if c != REFUSED[1]], [c for c in configurations if c == REFUSED[1]]):
        run = [m for m in methods if all((m, c) in pairs for c in some)]
        if some and run:
            start(options.output, some, run, options.steps, options.ranks)
    rows = [row(options.output, m, c, options.ranks) for m, c in pairs]
    name = "scale.json" if options.ranks == 2 else f"scale_{options.ranks}.json"
    (RESULTS / name).write_text(
        json.dumps({"steps": options.steps, "ranks": options.ranks, "rows": rows}, indent=1) + "\n"
    )
    print(table(rows))


if __name__ == "__main__":
    main()
