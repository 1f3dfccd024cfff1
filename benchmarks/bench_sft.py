"""SFT, ours beside TRL's SFTTrainer: 8 rows of 512 tokens, or of mixed lengths, with answers of 48 tokens."""

from __future__ import annotations

from typing import Any

from benchmarks.sides import BF16, FP32, Gate, Side, compare, serve, settings_of
from benchmarks.workload import (
    Row,
    backbone_flops,
    head_flops,
    make_model,
    make_tokenizer,
    sft_rows,
    training_flops,
)

MODULE = "benchmarks.bench_sft"
SAME = {"loss": (1e-4, 0.0), "grad_norm": (1e-4, 0.0)}
ROUGHLY = {"loss": (5e-3, 0.0), "grad_norm": (3e-2, 0.0)}

FIXED = {"lengths": "fixed"}
MIXED = {"lengths": "mixed", "batches": 12}

# name, model, rows, settings of both sides ("defaults": each side's own), TRL's ways
CASES: list[tuple[str, str, dict[str, Any], dict | str, list[str]]] = [
    ("tiny fixed", "tiny", FIXED, FP32, ["shipped", "gpu selection"]),
    ("tiny mixed", "tiny", MIXED, FP32, ["shipped", "gpu selection", "padding-free"]),
    ("small fixed", "small", FIXED, FP32, ["shipped", "gpu selection"]),
    ("tiny mixed, bf16", "tiny", {**MIXED, "batches": 6}, BF16, ["shipped", "gpu selection"]),
    ("tiny fixed, defaults", "tiny", FIXED, "defaults", ["shipped"]),
]


# --- the sides, each in its own process -----------------------------------------------------------------------------


def run_ours(spec: dict[str, Any], gate: Gate) -> None:
    from alignment.models import Policy
    from benchmarks import ours

    algorithm = ours.InOrder(sft_rows(**spec["rows"]))
    policy = Policy(make_model(spec["model"], **spec.get("overrides", {})))
    ours.train(policy, ours.Gated(algorithm, gate), ours.train_config(spec["settings"]))


def run_trl(spec: dict[str, Any], gate: Gate) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer, pack_dataset

    from benchmarks import theirs

    batches = sft_rows(**spec["rows"])
    longest = max(len(row.token_ids) for rows in batches for row in rows)
    data = Dataset.from_list([_trl_row(row) for rows in batches for row in rows])
    if spec["way"] == "gpu selection":
        theirs.select_like_on_gpu()
    batch_size, extra = len(batches[0]), {"max_length": longest}
    if spec["way"] == "padding-free":
        extra = {"padding_free": True, "max_length": None}
    elif spec["way"] == "packing":
        # the one batch there is, whatever number of bins it fills
        batch_size, extra = len(pack_dataset(data, longest, "bfd")), {"packing": True, "max_length": longest}
    settings = theirs.common_arguments({**spec["settings"], **extra}, batch_size)
    settings |= {"completion_only_loss": True, "train_sampling_strategy": "sequential"}
    trainer = SFTTrainer(
        model=make_model(spec["model"], **spec.get("overrides", {})),
        args=SFTConfig(**settings),
        train_dataset=data,
        processing_class=make_tokenizer(),
    )
    theirs.train(trainer, gate)


def _trl_row(row: Row) -> dict[str, list[int]]:
    mask = [0] * (len(row.token_ids) - row.answer) + [1] * row.answer
    return {"input_ids": row.token_ids, "completion_mask": mask}


# --- the comparison -------------------------------------------------------------------------------------------------


def run_case(case: tuple, threads: int) -> dict[str, Any]:
    """Ours and all of TRL's ways on one piece of work, in turn."""
    name, model, rows, settings, ways = case
    spec = {"model": model, "rows": rows, "settings": settings_of(settings)}
    sides = [Side(way, MODULE, {"way": way, **spec}, threads) for way in ("ours", *ways)]
    varied = rows.get("batches", 1)
    warm, want = (1, 3) if model == "small" else (2, max(5, varied))
    results = compare(sides, SAME if settings is FP32 else ROUGHLY, warm, want)
    batches = sft_rows(**rows)
    made = [row for batch in batches for row in batch]
    work = backbone_flops(model, [(len(row.token_ids), 0) for row in made])
    work += head_flops(model, sum(row.answer for row in made))
    return {
        "name": name,
        "tokens": sum(len(row.token_ids) for row in made) / len(batches),
        "padded_tokens": sum(len(batch) * max(len(row.token_ids) for row in batch) for batch in batches) / len(batches),
        "scored": sum(row.answer for row in made) / len(batches),
        "useful_flops": training_flops(work) / len(batches),
        "sides": results,
    }


if __name__ == "__main__":
    serve(run_ours, run_trl)
