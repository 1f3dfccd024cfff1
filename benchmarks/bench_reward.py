"""Reward models, ours beside TRL's RewardTrainer: 8 pairs, prompts of 192 tokens, branches of 64 or of mixed lengths.

TRL has one way here: its trainer has no vocabulary head, so nothing is selected differently on a GPU. Of more than two
ranked responses it takes every pair as a row.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from benchmarks.bench_ppo import make_scalar
from benchmarks.sides import FP32, Gate, Side, compare, serve, settings_of
from benchmarks.workload import EOS, backbone_flops, make_tokenizer, random_ids, training_flops

MODULE = "benchmarks.bench_reward"
SHAPE = {"pairs": 8, "prompt_tokens": 192, "new_tokens": 64}
LONG = {**SHAPE, "prompt_tokens": 448}
SAME = {"loss": (1e-4, 0.0), "grad_norm": (1e-4, 0.0)}
ROUGHLY = {"loss": (2e-2, 0.0), "grad_norm": (5e-2, 0.0)}

# name, model, shape, branch lengths, settings of both sides ("defaults": each side's own)
CASES: list[tuple[str, str, dict[str, int], str, dict | str]] = [
    ("tiny", "tiny", SHAPE, "fixed", FP32),
    ("tiny, mixed lengths", "tiny", SHAPE, "mixed", FP32),
    ("tiny, prompt 448", "tiny", LONG, "fixed", FP32),
    ("tiny, defaults", "tiny", SHAPE, "fixed", "defaults"),
]

Ranked = tuple[list[int], list[list[int]]]


def comparisons(shape: dict[str, int], lengths: str) -> list[Ranked]:
    """A prompt's ids and those of its responses, the best first (two, or `responses`), each ending with EOS. `mixed`:
    responses of a quarter to the whole of `new_tokens`, prompts of half to the whole of `prompt_tokens`."""
    rng = np.random.default_rng(5)

    def ids(longest: int, shortest: int) -> list[int]:
        return random_ids(rng, longest if lengths == "fixed" else int(rng.integers(shortest, longest + 1)))

    q, a = shape["prompt_tokens"], shape["new_tokens"] - 1
    n = shape.get("responses", 2)
    return [(ids(q, q // 2), [[*ids(a, a // 4), EOS] for _ in range(n)]) for _ in range(shape["pairs"])]


# --- the sides, each in its own process -----------------------------------------------------------------------------


def run_ours(spec: dict[str, Any], gate: Gate) -> None:
    from alignment.algorithms.reward_model import RewardModelConfig, RewardModeling
    from alignment.data.branches import Branch, shared_tree
    from alignment.models import ScalarModel
    from benchmarks import ours

    def branch(ids: list[int]) -> Branch:
        return Branch(np.asarray(ids, np.int32), np.arange(len(ids)) == len(ids) - 1)

    n = spec["shape"].get("responses", 2)
    columns = [{"labels": float(n - place), "margins": 0.0, "branches": float(n)} for place in range(n)]
    rows = comparisons(spec["shape"], spec["lengths"])
    trees = [shared_tree([branch(q + a) for a in ranked], columns) for q, ranked in rows]
    algorithm = RewardModeling(trees, len(trees), 0, RewardModelConfig())
    model = ScalarModel(make_scalar(spec["model"], 0))
    ours.train(model, ours.Gated(algorithm, gate), ours.train_config(spec["settings"]))


def run_trl(spec: dict[str, Any], gate: Gate) -> None:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    from benchmarks import theirs

    rows = [
        {"chosen_ids": q + a, "rejected_ids": q + b}
        for q, ranked in comparisons(spec["shape"], spec["lengths"])
        for a, b in itertools.combinations(ranked, 2)
    ]
    settings = theirs.common_arguments(spec["settings"], len(rows)) | {"max_length": None}
    trainer = RewardTrainer(
        model=make_scalar(spec["model"], 0),
        args=RewardConfig(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(),
    )
    theirs.train(trainer, gate)


# --- the comparison -------------------------------------------------------------------------------------------------


def run_case(case: tuple, threads: int) -> dict[str, Any]:
    """Ours and TRL's on one piece of work, in turn."""
    name, model, shape, lengths, settings = case
    spec = {"model": model, "shape": shape, "lengths": lengths, "settings": settings_of(settings)}
    sides = [Side(way, MODULE, {"way": way, **spec}, threads) for way in ("ours", "shipped")]
    warm, want = (1, 3) if model == "small" else (2, 5)
    results = compare(sides, SAME if settings is FP32 else ROUGHLY, warm, want)
    rows = comparisons(shape, lengths)
    segments = [part for q, ranked in rows for part in ((len(q), 0), *((len(a), len(q)) for a in ranked))]
    return {
        "name": name,
        "shape": shape,
        "tokens": sum(own for own, _ in segments),
        "padded_tokens": 2 * len(rows) * max(len(q) + max(map(len, ranked)) for q, ranked in rows),
        "useful_flops": training_flops(backbone_flops(model, segments)),
        "sides": results,
    }


if __name__ == "__main__":
    serve(run_ours, run_trl)
