"""How time and memory grow with group size, prompt length, context and vocabulary, ours and TRL's."""

from __future__ import annotations

from typing import Any

from benchmarks import bench_dpo, bench_grpo, bench_sft
from benchmarks.sides import Side, compare

GROUP_SIZES = (2, 4, 8, 16)
PROMPT_TOKENS = (64, 256, 1024)
PAIR_PROMPT_TOKENS = (64, 256, 1024)
CONTEXTS = (512, 1024, 2048, 4096)
VOCABULARIES = (4096, 32768, 151936)
WAYS = ("ours", "shipped", "gpu selection")


def _grpo(**changes: int) -> dict[str, Any]:
    shape = {**bench_grpo.SHAPE, "prompts": 2, **changes}
    return {"model": "tiny", "kind": "training", "shape": shape, "beta": 0.0, "settings": bench_grpo.FP32}


def _dpo(prompt_tokens: int) -> dict[str, Any]:
    shape = {**bench_dpo.SHAPE, "pairs": 4, "prompt_tokens": prompt_tokens}
    return bench_dpo.spec_of("tiny", shape, False, bench_dpo.FP32)


def _sft(rows: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    return {"model": "tiny", "rows": rows, "overrides": overrides, "settings": bench_sft.FP32}


def points() -> list[tuple[str, int, str, dict[str, Any], dict]]:
    """(what grows, its value, module, spec, what must agree)."""
    grpo, sft = bench_grpo.MODULE, bench_sft.MODULE
    out = [("group size", g, grpo, _grpo(group_size=g), bench_grpo.SAME) for g in GROUP_SIZES]
    out += [("prompt tokens", n, grpo, _grpo(prompt_tokens=n), bench_grpo.SAME) for n in PROMPT_TOKENS]
    for n in PAIR_PROMPT_TOKENS:
        out.append(("prompt tokens of a pair", n, bench_dpo.MODULE, _dpo(n), bench_dpo.SAME))
    for n in CONTEXTS:
        out.append(("context", n, sft, _sft({"lengths": "fixed", "rows": 2, "length": n}, {}), bench_sft.SAME))
    for v in VOCABULARIES:
        spec = _sft({"lengths": "fixed", "rows": 2}, {"vocab_size": v})
        out.append(("vocabulary", v, sft, spec, bench_sft.SAME))
    return out


def run(threads: int, only: str = "") -> list[dict[str, Any]]:
    cases = []
    for what, value, module, spec, same in points():
        if only not in what:
            continue
        sides = [Side(way, module, {"way": way, **spec}, threads) for way in WAYS]
        results = compare(sides, same, warm=1, want=3, budget_s=10)
        cases.append({"name": f"{what} {value}", "what": what, "value": value, "sides": results})
    return cases
