"""The `math` verifier and math-verify on the same pairs: the two hard sets of the tests, and GSM8K's own solutions.

    python benchmarks/bench_math.py [--gsm8k gsm8k_train.jsonl.gz] [--misses]

One process, one thread, pair by pair, after one warm-up pair each. "First" is the first time a pair is seen, "again" a
second pass over the same pairs. math-verify reads the accepted answer as `$…$`, as its documentation asks, and as a box
where that gives nothing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import math_verify

from verifiers import verify

TESTS = Path(__file__).parents[1] / "tests"
Judge = Callable[[str, str], bool]


def ours(response: str, answer: str) -> bool:
    return verify("math", response, {"answer": answer}).passed


def math_verifys(response: str, answer: str) -> bool:
    gold = math_verify.parse(f"${answer}$") or math_verify.parse(rf"\boxed{{{answer}}}")
    return bool(math_verify.verify(gold, math_verify.parse(response)))


JUDGES: dict[str, Judge] = {"math": ours, "math-verify": math_verifys}


def read(path: Path) -> list[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def gsm8k_pairs(path: Path) -> list[dict[str, Any]]:
    rows = read(path)
    return [
        {"response": row["answer"], "answer": row["answer"].rpartition("####")[2].strip(), "expected": "pass"}
        for row in rows
    ]


def timed(judge: Judge, pairs: list[dict[str, Any]]) -> tuple[list[bool], list[float]]:
    verdicts, milliseconds = [], []
    for pair in pairs:
        start = time.perf_counter()
        verdicts.append(judge(pair["response"], pair["answer"]))
        milliseconds.append((time.perf_counter() - start) * 1e3)
    return verdicts, milliseconds


def report(name: str, pairs: list[dict[str, Any]], passes: int, misses: bool) -> None:
    for judge_name, judge in JUDGES.items():
        judge(r"\boxed{2\sqrt{3}}", r"\sqrt{12}")
        runs = [timed(judge, pairs) for _ in range(passes)]
        wrong = [p for p, passed in zip(pairs, runs[0][0]) if passed != (p["expected"] == "pass")]
        accepts = sum(p["expected"] == "fail" for p in wrong)
        times = " | ".join(f"{median(ms):.2f} / {sum(ms) / len(ms):.2f}" for _, ms in runs)
        right = len(pairs) - len(wrong)
        print(f"| {name} | `{judge_name}` | {right} of {len(pairs)} | {accepts} | {len(wrong) - accepts} | {times} |")
        for pair in wrong if misses else []:
            print(f"  {pair['expected']}: {pair['response']!r} for {pair['answer']!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", type=Path, help="GSM8K's training file, plain or gzipped")
    parser.add_argument("--misses", action="store_true", help="list the pairs that were judged wrongly")
    options = parser.parse_args()
    print("| pairs | verifier | right | false accepts | false rejects | first, ms median / mean | again |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name, file in (("first set", "math_hard_set.jsonl"), ("second set", "math_hard_set_2.jsonl")):
        report(name, read(TESTS / file), 2, options.misses)
    if options.gsm8k:
        report("GSM8K", gsm8k_pairs(options.gsm8k), 1, options.misses)


if __name__ == "__main__":
    main()
