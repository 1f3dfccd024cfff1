"""DPO, ours beside TRL's DPOTrainer: 8 pairs, prompts of 384 tokens, branches of 64.

*with reference* scores each step's pairs under a second model, *precomputed* has done so for all pairs before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.sides import FP32, Gate, Side, compare, serve, settings_of
from benchmarks.workload import (
    EOS,
    backbone_flops,
    completions,
    head_flops,
    make_model,
    make_tokenizer,
    prompts,
    text_of,
    training_flops,
)

MODULE = "benchmarks.bench_dpo"
SHAPE = {"pairs": 8, "prompt_tokens": 384, "new_tokens": 64}
SAME = {"loss": (1e-4, 0.0), "grad_norm": (1e-4, 0.0)}
ROUGHLY = {"loss": (2e-2, 0.0), "grad_norm": (5e-2, 0.0)}
TRL = ["shipped", "gpu selection"]

# name, model, shape, precomputed, settings of both sides ("defaults": each side's own), TRL's ways
CASES: list[tuple[str, str, dict[str, int], bool, dict | str, list[str]]] = [
    ("tiny with reference", "tiny", SHAPE, False, FP32, TRL),
    ("tiny precomputed", "tiny", SHAPE, True, FP32, TRL),
    ("small precomputed, 4 pairs", "small", {**SHAPE, "pairs": 4}, True, FP32, TRL),
    ("tiny with reference, defaults", "tiny", SHAPE, False, "defaults", ["shipped"]),
]


def rows(shape: dict[str, int]) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen and rejected ids; both branches end with EOS."""
    branches = completions(shape["pairs"], 2, shape["new_tokens"] - 1)
    questions = prompts(shape["pairs"], shape["prompt_tokens"])
    return [(q, [*chosen, EOS], [*rejected, EOS]) for q, (chosen, rejected) in zip(questions, branches, strict=True)]


# --- the sides, each in its own process -----------------------------------------------------------------------------


def run_ours(spec: dict[str, Any], gate: Gate) -> None:
    from alignment.algorithms.dpo import Dpo, DpoConfig
    from alignment.algorithms.reference import Reference, precompute
    from alignment.models import Policy
    from alignment.packing import group
    from alignment.types import Segment
    from benchmarks import ours

    config = ours.train_config(spec["settings"])
    policy = Policy(make_model(spec["model"]))
    trees = [group(q, [Segment(a), Segment(b)], atomic=True) for q, a, b in rows(spec["shape"])]
    budget = config.max_tokens_per_micro_batch
    if spec["precomputed"]:
        reference = None
        precompute(trees, Reference(policy, policy, budget), Path(config.output_dir) / "reference.jsonl", "start")
    else:
        other = Policy(make_model(spec["model"], seed=1)).requires_grad_(False).eval()
        reference = Reference(policy, other, budget)
    algorithm = Dpo(trees, len(trees), 0, DpoConfig(), reference)
    ours.train(policy, ours.Gated(algorithm, gate), config)


def run_trl(spec: dict[str, Any], gate: Gate) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from benchmarks import theirs

    if spec["way"] == "gpu selection":
        theirs.select_like_on_gpu()
    texts = [
        {"prompt": text_of(q), "chosen": " " + text_of(a), "rejected": " " + text_of(b)}
        for q, a, b in rows(spec["shape"])
    ]
    settings = theirs.common_arguments(spec["settings"], len(texts))
    settings |= {"max_length": None, "precompute_ref_log_probs": spec["precomputed"]}
    trainer = DPOTrainer(
        model=make_model(spec["model"]),
        ref_model=None if spec["precomputed"] else make_model(spec["model"], seed=1),
        args=DPOConfig(**settings),
        train_dataset=Dataset.from_list(texts),
        processing_class=make_tokenizer(),
    )
    theirs.train(trainer, gate)


# --- the comparison -------------------------------------------------------------------------------------------------


def useful_flops(model: str, shape: dict[str, int], precomputed: bool) -> float:
    """The least work for a step: each prompt once, the head at the tokens of the branches; the reference is one
    forward pass more."""
    n, q, a = shape["pairs"], shape["prompt_tokens"], shape["new_tokens"]
    forward = backbone_flops(model, [(q, 0)] * n + [(a, q)] * (2 * n)) + head_flops(model, 2 * n * a)
    return training_flops(forward) + (0.0 if precomputed else forward)


def spec_of(model: str, shape: dict[str, int], precomputed: bool, settings: dict | str) -> dict[str, Any]:
    return {"model": model, "shape": shape, "precomputed": precomputed, "settings": settings_of(settings)}


def run_case(case: tuple, threads: int) -> dict[str, Any]:
    """Ours and TRL's ways on one piece of work, in turn."""
    name, model, shape, precomputed, settings, ways = case
    spec = spec_of(model, shape, precomputed, settings)
    sides = [Side(way, MODULE, {"way": way, **spec}, threads) for way in ("ours", *ways)]
    warm, want = (1, 3) if model == "small" else (2, 5)
    results = compare(sides, SAME if settings is FP32 else ROUGHLY, warm, want)
    return {"name": name, "shape": shape, "useful_flops": useful_flops(model, shape, precomputed), "sides": results}


if __name__ == "__main__":
    serve(run_ours, run_trl)
