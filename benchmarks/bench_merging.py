"""Online merging beside torch's fused AdamW: seconds and memory of the optimizer alone, for 27 million parameters.

A step is eight optimizer steps, each on one of four gradients in turn: a cycle of eight is in it once. Memory is
what the optimizer takes beyond weights and gradients: moments, tau, the cache of a cycle, temporaries.
"""

from __future__ import annotations

import ctypes
from typing import Any

from benchmarks.sides import Gate, Side, compare, serve

MODULE = "benchmarks.bench_merging"
STEPS = 8
ADAMW = "AdamW (fused)"

# name, settings of OnlineMergingConfig
WAYS: list[tuple[str, dict[str, Any]]] = [
    (ADAMW, {"merge": "none"}),
    ("OnDARE, p = 5e-4", {"merge": "ondare", "merge_keep": 5e-4}),
    ("OnDARE, p = 0.01", {"merge": "ondare"}),
    ("OnDARE, p = 0.01, tau in bfloat16", {"merge": "ondare", "merge_dtype": "bfloat16"}),
    ("OnDARE, p = 0.01, K = 8", {"merge": "ondare", "merge_every": 8}),
    ("OnDARE, p = 1", {"merge": "ondare", "merge_keep": 1.0}),
    ("OnTIES, p = 0.01", {"merge": "onties"}),
    ("OnTIES, p = 0.01, K = 8", {"merge": "onties", "merge_every": 8}),
]

CASES = [(f"{STEPS} optimizer steps", WAYS)]


def run_side(settings: dict[str, Any], gate: Gate) -> None:
    import torch

    from alignment.config import TrainConfig
    from alignment.optim.adamw import make_optimizer, parameter_groups
    from alignment.optim.online_merging import OnlineMerging, OnlineMergingConfig
    from benchmarks.workload import WORDS, make_model

    model = make_model("small", vocab_size=WORDS)
    train = TrainConfig(output_dir="unused", weight_decay=0.1)
    config = OnlineMergingConfig(merge_base_model="made up", **settings)
    # one gradient forever would make all of Adam's updates equally large, and ranking them unlike what it is
    gradients = [[torch.randn_like(p) * 1e-3 for p in model.parameters()] for _ in range(4)]
    ctypes.CDLL(None).malloc_trim(0)  # memory that making the model left behind would hide the optimizer's
    gate.ready()  # what comes after it is the optimizer's
    optimizer: torch.optim.Optimizer
    if config.merge == "none":
        optimizer = make_optimizer(model, train)
    else:
        names = {p: n for n, p in model.named_parameters()}
        groups = [
            {**group, "params": [(names[p], p) for p in group["params"]]}
            for group in parameter_groups(model, train, {})
        ]
        dtype = getattr(torch, config.merge_dtype)
        vectors = {n: torch.empty(p.shape, dtype=dtype).normal_(0, 1e-3) for n, p in model.named_parameters()}
        optimizer = OnlineMerging(groups, vectors, config, 0, lr=train.learning_rate)
        del vectors  # the optimizer lets go of those that it has cut down
    while True:
        for step in range(STEPS):
            for p, gradient in zip(model.parameters(), gradients[step % 4]):
                p.grad = gradient
            optimizer.step()
        gate.step()


def run_case(case: tuple, threads: int) -> dict[str, Any]:
    """All optimizers in turn."""
    name, ways = case
    sides = [Side(way, MODULE, settings, threads) for way, settings in ways]
    return {"name": name, "steps": STEPS, "sides": compare(sides, {}, warm=1, want=4, budget_s=60)}


if __name__ == "__main__":
    serve(run_side)
