"""On-policy distillation, ours beside TRL's DistillationTrainer and its GKDTrainer, which makes all logits.

8 prompts of 128 tokens, 64 new ones, 1 or 8 samples each; TRL samples once per prompt, so there a prompt comes as often
as it has samples. `step` is the whole of it, each side with its own sampler. `training` hands all sides the same
completions, so that loss, gradient norm and entropy must agree.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
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

MODULE = "benchmarks.bench_distill"
ONE = {"prompts": 8, "group_size": 1, "prompt_tokens": 128, "new_tokens": 64}
EIGHT = {**ONE, "group_size": 8}
EIGHT_OF_TWO = {**EIGHT, "prompts": 2}
SAME = {"loss": (1e-4, 0.0), "grad_norm": (1e-4, 0.0), "entropy": (1e-4, 0.0)}
SAME_GKD = {"loss": (1e-4, 0.0), "grad_norm": (1e-4, 0.0)}
ROUGHLY = {"loss": (2e-2, 0.0), "grad_norm": (5e-2, 0.0)}
TRL = ["shipped", "gpu selection"]
REVERSE, JSD = 1.0, 0.5

TEACHERS: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1152},
    "small": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 2304},
}
"""About twice the student."""

# name, model, kind, shape, TRL's beta, settings of all sides ("defaults": each side's own), TRL's ways
CASES: list[tuple[str, str, str, dict[str, int], float, dict | str, list[str]]] = [
    ("tiny training, 1 sample", "tiny", "training", ONE, REVERSE, FP32, TRL),
    ("tiny training, 8 samples", "tiny", "training", EIGHT, REVERSE, FP32, TRL),
    ("tiny training, 2 prompts of 8 samples, JSD", "tiny", "training", EIGHT_OF_TWO, JSD, FP32, ["gpu selection"]),
    ("tiny step, 2 prompts of 8 samples, defaults", "tiny", "step", EIGHT_OF_TWO, REVERSE, "defaults", ["shipped"]),
    ("small training, 1 sample", "small", "training", ONE, REVERSE, FP32, TRL),
    ("small training beside GKD", "small", "training", ONE, REVERSE, FP32, ["gkd"]),
]


def sequences(shape: dict[str, int]) -> tuple[list[list[int]], list[list[list[int]]]]:
    """The prompts, and the completions that all sides are given."""
    answers = completions(shape["prompts"], shape["group_size"], shape["new_tokens"])
    return prompts(shape["prompts"], shape["prompt_tokens"]), answers


def make_teacher(name: str):
    return make_model(name, seed=1, **TEACHERS[name])


# --- ours -----------------------------------------------------------------------------------------------------------


class Given:
    """An engine that returns given completions."""

    def __init__(self, answers: list[list[list[int]]]):
        self.answers = answers

    def generate(self, prompts, n, sampling, step=0):
        from alignment.types import Rollout

        return [
            [Rollout(p, i, ids, [0.0] * len(ids), "", "length", step) for i, ids in enumerate(self.answers[int(p.id)])]
            for p in prompts
        ]

    def load_weights(self, model, step):
        pass


def run_ours(spec: dict[str, Any], gate: Gate) -> None:
    from alignment.algorithms.distill import Distill, DistillConfig, OnPolicy
    from alignment.algorithms.teachers import DEFAULT, Teachers
    from alignment.models import Policy
    from alignment.models.student import Student
    from alignment.models.teacher import LocalTeacher
    from alignment.rollout import TransformersEngine
    from alignment.types import Prompt, Sampling
    from benchmarks import ours
    from benchmarks.bench_grpo import Timed

    shape, config = spec["shape"], ours.train_config(spec["settings"])
    policy = Policy(make_model(spec["model"]))
    questions, answers = sequences(shape)
    size = shape["prompts"] * shape["group_size"]
    given: Any = Given(answers)
    engine = given if spec["kind"] == "training" else TransformersEngine(policy.model, make_tokenizer(), max_rows=size)
    local = LocalTeacher(
        Policy(make_teacher(spec["model"])),
        policy.base.config.vocab_size,
        max_tokens=config.max_tokens_per_micro_batch,
    )
    algorithm = Distill(
        Student(policy),
        DistillConfig(
            batch_size=size,
            group_size=shape["group_size"],
            divergence="reverse_kl" if spec["beta"] == REVERSE else "jsd",
            jsd_beta=JSD,
        ),
        Teachers({DEFAULT: local}, local.vocabulary),
        on_policy=OnPolicy(
            [Prompt(str(i), [], ids) for i, ids in enumerate(questions)],
            Timed(engine, gate),
            Sampling(max_tokens=shape["new_tokens"], stop_token_ids=(EOS,)),
        ),
    )
    ours.train(algorithm.student, ours.Gated(algorithm, gate), config)  # type: ignore[arg-type]


# --- TRL's ----------------------------------------------------------------------------------------------------------


def run_trl(spec: dict[str, Any], gate: Gate) -> None:
    from benchmarks import theirs

    if spec["way"] == "gpu selection":
        theirs.select_like_on_gpu()
    student = make_model(spec["model"])
    if spec["kind"] == "training":
        _give(student, spec["shape"])
    theirs.time_generation(student, gate)
    settings = theirs.common_arguments(spec["settings"], spec["shape"]["prompts"] * spec["shape"]["group_size"])
    settings["beta"] = spec["beta"]
    make = _gkd_trainer if spec["way"] == "gkd" else _distillation_trainer
    theirs.train(make(student, make_teacher(spec["model"]), spec["shape"], settings), gate)


def _distillation_trainer(student, teacher, shape: dict[str, int], settings: dict[str, Any]):
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    texts = [text_of(q) for q in prompts(shape["prompts"], shape["prompt_tokens"]) for _ in range(shape["group_size"])]
    return DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(max_completion_length=shape["new_tokens"], **settings),
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=make_tokenizer(),
    )


def _gkd_trainer(student, teacher, shape: dict[str, int], settings: dict[str, Any]):
    import torch
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    questions, answers = sequences(shape)
    rows = [(q, a) for q, group in zip(questions, answers, strict=True) for a in group]

    def collate(batch) -> dict[str, torch.Tensor]:
        """Rows of equal length; the labels only tell how many tokens there will be."""
        questions = torch.tensor([rows[x["row"]][0] for x in batch])
        answers = torch.tensor([rows[x["row"]][1] for x in batch])
        ids = torch.cat([questions, answers], dim=1)
        labels = torch.cat([torch.full_like(questions, -100), answers], dim=1)
        masks = {"attention_mask": torch.ones_like(ids), "prompt_attention_mask": torch.ones_like(questions)}
        return {"input_ids": ids, "labels": labels, "prompts": questions, **masks}

    arguments = {"lmbda": 1.0, "temperature": 1.0, "max_new_tokens": shape["new_tokens"], "max_length": None}
    return GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=GKDConfig(**settings, **arguments),
        data_collator=collate,
        train_dataset=Dataset.from_dict({"row": list(range(len(rows)))}),
        processing_class=make_tokenizer(),
    )


def _give(model, shape: dict[str, int]) -> None:
    """Let `generate` return the given completions instead of new ones."""
    import torch
    from transformers.generation import GenerateDecoderOnlyOutput

    questions, answers = sequences(shape)
    number = {tuple(q): i for i, q in enumerate(questions)}

    def generate(*, input_ids, attention_mask, return_dict_in_generate=False, **rest):
        counters: dict[int, Any] = defaultdict(itertools.count)
        rows = [number[tuple(row[mask.bool()].tolist())] for row, mask in zip(input_ids, attention_mask, strict=True)]
        new = torch.tensor([answers[i][next(counters[i])] for i in rows])
        whole = torch.cat([input_ids, new], dim=1)
        return GenerateDecoderOnlyOutput(sequences=whole) if return_dict_in_generate else whole

    model.generate = generate


# --- the comparison -------------------------------------------------------------------------------------------------


def useful_flops(model: str, shape: dict[str, int], kind: str) -> float:
    """The least work for a step: each prompt once, the heads at the new tokens; the teacher is one forward pass, and so
    is generation."""
    p, g, q, n = (shape[name] for name in ("prompts", "group_size", "prompt_tokens", "new_tokens"))
    segments, positions = [(q, 0)] * p + [(n, q)] * (p * g), p * g * n

    def forward(**overrides: int) -> float:
        return backbone_flops(model, segments, **overrides) + head_flops(model, positions, **overrides)

    return training_flops(forward()) + forward(**TEACHERS[model]) + forward() * (kind == "step")


def spec_of(model: str, kind: str, shape: dict[str, int], beta: float, settings: dict | str) -> dict[str, Any]:
    return {"model": model, "kind": kind, "shape": shape, "beta": beta, "settings": settings_of(settings)}


def run_case(case: tuple, threads: int) -> dict[str, Any]:
    """Ours and TRL's ways on one piece of work, in turn."""
    name, model, kind, shape, beta, settings, ways = case
    spec = spec_of(model, kind, shape, beta, settings)
    sides = [Side(way, MODULE, {"way": way, **spec}, threads) for way in ("ours", *ways)]
    exact = SAME_GKD if "gkd" in ways else SAME
    same = {} if kind == "step" else exact if settings is FP32 else ROUGHLY
    warm, want = (1, 2) if model == "small" else (2, 3)
    results = compare(sides, same, warm, want, budget_s=90)
    flops = useful_flops(model, shape, kind)
    return {"name": name, "kind": kind, "shape": shape, "useful_flops": flops, "sides": results}


if __name__ == "__main__":
    serve(run_ours, run_trl)
