"""`python -m benchmarks [--only sft] [--case "tiny fixed"] [--threads 2]`: measures and writes the tables.

Results go to benchmarks/results/*.json as soon as a part is done, and from there into docs/performance.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.roofline import matmul_gflops
from benchmarks.sides import ROOT, Skipped, cores, wait_until_quiet
from benchmarks.tables import fill, read_results

PARTS = ("sft", "reward", "dpo", "grpo", "ppo", "distill", "head", "growth", "rollout", "merging")
RESULTS = Path(__file__).parent / "results"
DOCUMENT = ROOT / "docs" / "performance.md"
PACKAGES = ("torch", "transformers", "trl", "accelerate")


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        return names[0] if names else platform.machine()
    return platform.processor() or platform.machine()


def describe(threads: int) -> dict[str, Any]:
    """The machine, the versions and the product rates that this run's figures are held against."""
    return {
        "processor": processor(),
        "threads": threads,
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "matmul_gflops": matmul_gflops(threads),
    }


def flat(machine: dict[str, Any]) -> dict[str, Any]:
    rates = {f"{name} product, GFLOP/s": round(rate) for name, rate in machine["matmul_gflops"].items()}
    return {name: value for name, value in machine.items() if name != "matmul_gflops"} | rates


def write(name: str, content: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, action="append", help="measure these parts only")
    parser.add_argument("--case", default="", help="measure the cases whose name contains this")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables from the results")
    arguments = parser.parse_args()
    sound = arguments.tables or measure(arguments.only or list(PARTS), arguments.case, arguments.threads)
    DOCUMENT.write_text(fill(DOCUMENT.read_text(), read_results(RESULTS)))
    if not sound:
        raise SystemExit(1)


def measure(parts: list[str], case: str, threads: int) -> bool:
    """Writes each case's result as it comes; one that fails is reported and left out. True when none failed."""
    if not wait_until_quiet():
        print("other programs are using the machine: figures taken now are marked", flush=True)
    machine = describe(threads)
    write("machine", flat(machine))
    failed = []
    for part in parts:
        module = importlib.import_module(f"benchmarks.bench_{part}")
        start = time.monotonic()
        result = earlier(part, machine) if case else {"machine": machine, "cases": []}
        write(part, result)
        print(f"{part} …", flush=True)
        for one in module.CASES:
            if case not in one[0]:
                continue
            began = time.monotonic()
            try:
                done = module.run_case(one, threads)
                said = summary(done)
                result["cases"] = [c for c in result["cases"] if c["name"] != one[0]] + [done]
            except Skipped as reason:
                said = f"skipped: {reason}"
            except Exception as error:  # the others are still worth having
                failed.append(f"{part}: {one[0]}")
                said = f"failed: {error!r}"
            if not case:
                result["took_s"] = round(time.monotonic() - start)
            write(part, result)
            print(f"  {one[0]}: {said} ({time.monotonic() - began:.0f} s)", flush=True)
        print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)
    for name in failed:
        print(f"failed: {name}", flush=True)
    return not failed


def earlier(part: str, machine: dict[str, Any]) -> dict[str, Any]:
    """The part's results that are there, if they are of this machine and these packages."""
    fresh = {"machine": machine, "cases": []}
    found = read_results(RESULTS).get(part, fresh)

    def facts(result: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in result["machine"].items() if name != "matmul_gflops"}

    return found if facts(found) == facts(fresh) else fresh


def summary(case: dict[str, Any]) -> str:
    """Seconds of every side, marked when other programs ran meanwhile."""
    sides = case["sides"].items()
    text = ", ".join(f"{name} {side['seconds']:.2f} s" for name, side in sides)
    return text + " (other load)" * any(side.get("disturbed", False) for _, side in sides)


if __name__ == "__main__":
    main()
