"""Reward models, ours beside TRL's RewardTrainer: 8 pairs, prompts of 192 tokens, branches of 64 or of mixed lengths.

TRL has one way here: its trainer has no vocabulary head, so nothing is selected differently on a GPU.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from benchmarks.bench_ppo import make_scalar
from benchmarks.sides import Gate, Side, compare
from benchmarks.workload import EOS, backbone_flops, make_tokenizer, random_ids, training_flops

MODULE = "benchmarks.bench_reward"
FP32 = {"bf16": False, "gradient_checkpointing": False}
BF16 = {"bf16": True, "gradient_checkpointing": False}
SHAPE = {"pairs": 8, "prompt_tokens": 192, "new_tokens": 64}
LONG = {**SHAPE, "prompt_tokens": 448}
SAME = {"loss": (1e-4, 0.0), "grad_norm": (1e-4, 0.0)}
ROUGHLY = {"loss": (2e-2, 0.0), "grad_norm": (5e-2, 0.0)}

# name, model, shape, branch lengths, settings of both sides ("defaults": each side's own)
CASES: list[tuple[str, str, dict[str, int], str, dict | str]] = [
    ("tiny", "tiny", SHAPE, "fixed", FP32),
    ("tiny, mixed lengths", "tiny", SHAPE, "mixed", FP32),
    ("tiny, prompt 448", "tiny", LONG, "fixed", FP32),
    ("small", "small", SHAPE, "fixed", FP32),
    ("tiny, bf16", "tiny", SHAPE, "fixed", BF16),
    ("tiny, defaults", "tiny", SHAPE, "fixed", "defaults"),
]

Pair = tuple[list[int], list[int], list[int]]


def pairs(shape: dict[str, int], lengths: str) -> list[Pair]:
    """Prompt, chosen and rejected ids; both branches end with EOS. `mixed`: branches of a quarter to the whole of
    `new_tokens`, prompts of half to the whole of `prompt_tokens`."""
    rng = np.random.default_rng(5)

    def ids(longest: int, shortest: int) -> list[int]:
        return random_ids(rng, longest if lengths == "fixed" else int(rng.integers(shortest, longest + 1)))

    q, a = shape["prompt_tokens"], shape["new_tokens"] - 1
    return [(ids(q, q // 2), [*ids(a, a // 4), EOS], [*ids(a, a // 4), EOS]) for _ in range(shape["pairs"])]


# --- the sides, each in its own process -----------------------------------------------------------------------------


def run_ours(spec: dict[str, Any], gate: Gate) -> None:
    from alignment.algorithms.reward_model import RewardModelConfig, RewardModeling
    from alignment.data.branches import Branch, shared_tree
    from alignment.models import ScalarModel
    from benchmarks import ours

    def branch(ids: list[int]) -> Branch:
        return Branch(np.asarray(ids, np.int32), np.arange(len(ids)) == len(ids) - 1)

    columns = [{"labels": label, "margins": 0.0, "branches": 2.0} for label in (1.0, 0.0)]
    rows = pairs(spec["shape"], spec["lengths"])
    trees = [shared_tree([branch(q + a), branch(q + b)], columns) for q, a, b in rows]
    algorithm = RewardModeling(trees, len(trees), 0, RewardModelConfig())
    model = ScalarModel(make_scalar(spec["model"], 0))
    ours.train(model, ours.Gated(algorithm, gate), ours.train_config(spec["settings"]))


def run_trl(spec: dict[str, Any], gate: Gate) -> None:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    from benchmarks import theirs

    rows = [{"chosen_ids": q + a, "rejected_ids": q + b} for q, a, b in pairs(spec["shape"], spec["lengths"])]
    settings = theirs.common_arguments(spec["settings"], len(rows)) | {"max_length": None}
    trainer = RewardTrainer(
        model=make_scalar(spec["model"], 0),
        args=RewardConfig(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(),
    )
    theirs.train(trainer, gate)


# --- the comparison -------------------------------------------------------------------------------------------------


def run_case(case: tuple, threads: int, budget_s: float = 60.0) -> dict[str, Any]:
    """Ours and TRL's on one piece of work, in turn."""
    name, model, shape, lengths, settings = case
    own = {} if settings == "defaults" else settings
    spec = {"model": model, "shape": shape, "lengths": lengths, "settings": own}
    sides = [Side(way, MODULE, {"way": way, **spec}, threads) for way in ("ours", "shipped")]
    warm, want = (1, 3) if model == "small" else (2, 5)
    results = compare(sides, SAME if settings is FP32 else ROUGHLY, warm, want, budget_s)
    rows = pairs(shape, lengths)
    segments = [part for q, a, b in rows for part in ((len(q), 0), (len(a), len(q)), (len(b), len(q)))]
    return {
        "name": name,
        "shape": shape,
        "tokens": sum(own for own, _ in segments),
        "padded_tokens": 2 * len(rows) * max(len(q) + max(len(a), len(b)) for q, a, b in rows),
        "useful_flops": training_flops(backbone_flops(model, segments)),
        "sides": results,
    }


def run(threads: int, only: str = "") -> list[dict[str, Any]]:
    return [run_case(case, threads) for case in CASES if only in case[0]]


def main() -> None:
    spec = json.loads(sys.argv[2])
    gate = Gate()
    (run_ours if spec["way"] == "ours" else run_trl)(spec, gate)


if __name__ == "__main__":
    main()
