"""How time and memory grow with group size, prompt length, responses per prompt, context and vocabulary, ours and
TRL's; and ours alone with the tokens that are distilled."""

from __future__ import annotations

from typing import Any

from benchmarks import bench_distill, bench_dpo, bench_grpo, bench_reward, bench_sft
from benchmarks.sides import FP32, Side, compare

SELECTION = ("ours", "gpu selection")
Point = tuple[str, str, int, str, dict[str, Any], dict, tuple[str, ...]]


def _grpo(**changes: int) -> tuple:
    shape = {**bench_grpo.SHAPE, "prompts": 2, **changes}
    spec = {"model": "tiny", "kind": "training", "shape": shape, "beta": 0.0, "settings": FP32}
    return bench_grpo.MODULE, spec, bench_grpo.SAME, SELECTION


def _dpo(prompt_tokens: int) -> tuple:
    shape = {**bench_dpo.SHAPE, "pairs": 4, "prompt_tokens": prompt_tokens}
    return bench_dpo.MODULE, bench_dpo.spec_of("tiny", shape, False, FP32), bench_dpo.SAME, SELECTION


def _reward(responses: int = 2, prompt_tokens: int = 192) -> tuple:
    shape = {**bench_reward.SHAPE, "pairs": 2, "responses": responses, "prompt_tokens": prompt_tokens}
    spec = {"model": "tiny", "shape": shape, "lengths": "fixed", "settings": FP32}
    return bench_reward.MODULE, spec, bench_reward.SAME, ("ours", "shipped")


def _sft(overrides: dict[str, Any], **rows: int) -> tuple:
    spec = {"model": "tiny", "rows": {"lengths": "fixed", "rows": 2, **rows}, "overrides": overrides, "settings": FP32}
    return bench_sft.MODULE, spec, bench_sft.SAME, SELECTION


def _distill(tokens: int) -> tuple:
    """`tokens` of completions: their number grows, prompts and lengths do not."""
    new = bench_distill.ONE["new_tokens"]
    shape = {**bench_distill.ONE, "prompts": tokens // (4 * new), "group_size": 4}
    spec = bench_distill.spec_of("tiny", "training", shape, bench_distill.REVERSE, FP32)
    return bench_distill.MODULE, spec, bench_distill.SAME, ("ours",)


def points() -> list[Point]:
    """(name, what grows, its value, module, spec, what must agree, sides)."""
    grown = [
        *[("group size", g, _grpo(group_size=g)) for g in (2, 8, 16)],
        *[("prompt tokens of a group", n, _grpo(prompt_tokens=n)) for n in (64, 512)],
        *[("prompt tokens of a pair, DPO", n, _dpo(n)) for n in (64, 1024)],
        *[("prompt tokens of a pair, reward model", n, _reward(prompt_tokens=n)) for n in (64, 1024)],
        *[("responses per prompt, reward model", n, _reward(responses=n)) for n in (2, 4, 8)],
        *[("context", n, _sft({}, length=n)) for n in (512, 2048)],
        *[("vocabulary", v, _sft({"vocab_size": v})) for v in (4096, 32768)],
        *[("tokens distilled", n, _distill(n)) for n in (1024, 2048, 4096)],
    ]
    return [(f"{what} {value}", what, value, *rest) for what, value, rest in grown]


CASES = points()


def run_case(case: Point, threads: int) -> dict[str, Any]:
    name, what, value, module, spec, same, ways = case
    sides = [Side(way, module, {"way": way, **spec}, threads) for way in ways]
    return {"name": name, "what": what, "value": value, "sides": compare(sides, same, warm=1, want=2, budget_s=6)}
