"""A GRPO step, ours beside TRL's GRPOTrainer: 8 prompts x 8 samples, prompts of 128 tokens, 64 new ones.

`step` is the whole of it, each side with its own sampler. `training` hands both sides the same completions, so that
entropy and gradient norm must agree (the loss is about 0 on the first, on-policy step).
"""

from __future__ import annotations

import itertools
import tempfile
import time
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
    reward_of,
    text_of,
    training_flops,
)

MODULE = "benchmarks.bench_grpo"
SHAPE = {"prompts": 8, "group_size": 8, "prompt_tokens": 128, "new_tokens": 64}
QUARTER = {**SHAPE, "prompts": 2}
SAME = {"loss": (0.0, 1e-5), "grad_norm": (1e-4, 0.0), "entropy": (1e-4, 0.0)}
ROUGHLY = {"grad_norm": (3e-2, 0.0), "entropy": (5e-3, 0.0)}
TRL = ["shipped", "gpu selection"]

IN_PIECES = {**SHAPE, "micro_batches": 4}

# name, model, kind, shape, beta, settings of both sides ("defaults": each side's own), TRL's ways
CASES: list[tuple[str, str, str, dict[str, int], float, dict | str, list[str]]] = [
    ("tiny training", "tiny", "training", SHAPE, 0.0, FP32, TRL),
    ("tiny training in 4 micro-batches", "tiny", "training", IN_PIECES, 0.0, FP32, ["gpu selection"]),
    ("tiny step", "tiny", "step", SHAPE, 0.0, FP32, TRL),
    ("tiny step, defaults", "tiny", "step", SHAPE, 0.0, "defaults", ["shipped"]),
    ("small step, 2 prompts", "small", "step", QUARTER, 0.0, FP32, TRL),
]


# --- ours -----------------------------------------------------------------------------------------------------------


class Timed:
    """An engine whose time is one phase of the step."""

    def __init__(self, engine, gate: Gate):
        self.engine, self.gate = engine, gate

    def generate(self, prompts, n, sampling, step=0):
        start = time.perf_counter()
        groups = self.engine.generate(prompts, n, sampling, step)
        self.gate.mark("generation", time.perf_counter() - start)
        return groups

    def load_weights(self, model, step):
        self.engine.load_weights(model, step)


class Given:
    """An engine that returns given completions with the policy's own log-probabilities."""

    def __init__(self, policy, questions: list[list[int]], answers: list[list[list[int]]]):
        from alignment.models.score import add_logprobs
        from alignment.packing import group
        from alignment.types import Segment

        trees = [group(q, [Segment(a) for a in group_]) for q, group_ in zip(questions, answers, strict=True)]
        add_logprobs(policy, trees, "logprobs", 16384)
        self.children = [tree.segments[1:] for tree in trees]

    def generate(self, prompts, n, sampling, step=0):
        from alignment.types import Rollout

        return [
            [
                Rollout(p, i, list(s.token_ids), s.columns["logprobs"].tolist(), "", "length", step)
                for i, s in enumerate(self.children[int(p.id)][:n])
            ]
            for p in prompts
        ]

    def load_weights(self, model, step):
        pass


def run_ours(spec: dict[str, Any], gate: Gate) -> None:
    import copy

    from alignment.algorithms.grpo import Grpo, GrpoConfig
    from alignment.data.curriculum import Curriculum
    from alignment.models import Policy
    from alignment.rollout import TransformersEngine
    from alignment.types import Prompt, Sampling
    from benchmarks import ours

    shape = spec["shape"]
    tokens = shape["prompts"] * (shape["prompt_tokens"] + shape["group_size"] * shape["new_tokens"])
    cut = {"max_tokens_per_micro_batch": tokens // shape["micro_batches"]} if "micro_batches" in shape else {}
    config = ours.train_config({**spec["settings"], **cut})
    policy = Policy(make_model(spec["model"]))
    questions = prompts(shape["prompts"], shape["prompt_tokens"])
    given = [Prompt(str(i), [], ids) for i, ids in enumerate(questions)]
    if spec["kind"] == "training":
        answers = completions(shape["prompts"], shape["group_size"], shape["new_tokens"])
        engine: Any = Given(policy, questions, answers)
    else:
        engine = TransformersEngine(policy.model, make_tokenizer(), max_rows=shape["prompts"] * shape["group_size"])
    reference = copy.deepcopy(policy).requires_grad_(False).eval() if spec["beta"] else None

    def score(rollouts) -> dict[str, float]:
        for rollout in rollouts:
            rollout.reward = reward_of(rollout.token_ids)
        return {}

    algorithm = Grpo(
        policy,
        Timed(engine, gate),
        given,
        score,
        Curriculum([p.id for p in given], "random", seed=0),
        GrpoConfig(prompts_per_step=shape["prompts"], group_size=shape["group_size"], beta=spec["beta"]),
        Sampling(max_tokens=shape["new_tokens"], stop_token_ids=(EOS,)),
        reference,
        config.max_tokens_per_micro_batch,
    )
    ours.train(policy, ours.Gated(algorithm, gate), config)


# --- TRL's ----------------------------------------------------------------------------------------------------------


def run_trl(spec: dict[str, Any], gate: Gate) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks import theirs

    shape = spec["shape"]
    questions = prompts(shape["prompts"], shape["prompt_tokens"])
    if spec["way"] == "gpu selection":
        theirs.select_like_on_gpu()
    micro_batches = shape.get("micro_batches", 1)
    settings = {
        **theirs.common_arguments(spec["settings"], shape["prompts"] * shape["group_size"] // micro_batches),
        "gradient_accumulation_steps": micro_batches,
        "num_generations": shape["group_size"],
        "max_completion_length": shape["new_tokens"],
        "beta": spec["beta"],
    }
    model = make_model(spec["model"])
    if spec["beta"]:  # TRL loads its reference from where the model came from
        folder = tempfile.mkdtemp(prefix="bench-model-")
        model.save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs.time_generation(model, gate)

    def reward(prompts, completions, completion_ids, **columns) -> list[float]:
        before = gate.elapsed()
        gate.mark("collect", before)  # generation, and scoring under the reference
        return [reward_of(ids) for ids in completion_ids]

    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(**settings),
        train_dataset=Dataset.from_dict({"prompt": [text_of(q) for q in questions]}),
        processing_class=make_tokenizer(),
        rollout_func=_given_rollouts(questions, shape) if spec["kind"] == "training" else None,
    )
    theirs.train(trainer, gate)


def _given_rollouts(questions: list[list[int]], shape: dict[str, int]):
    answers = completions(shape["prompts"], shape["group_size"], shape["new_tokens"])
    number = {text_of(q): i for i, q in enumerate(questions)}

    def rollouts(prompts, trainer) -> dict[str, Any]:
        counters: dict[str, Any] = defaultdict(itertools.count)
        ids = [answers[number[p]][next(counters[p])] for p in prompts]
        return {"prompt_ids": [questions[number[p]] for p in prompts], "completion_ids": ids, "logprobs": None}

    return rollouts


# --- the comparison -------------------------------------------------------------------------------------------------


def useful_flops(model: str, shape: dict[str, int], kind: str, beta: float) -> float:
    """The least work for a step: each prompt once, the head at the new tokens; generation is one forward pass more,
    and so is the reference."""
    p, g, q, n = (shape[name] for name in ("prompts", "group_size", "prompt_tokens", "new_tokens"))
    forward = backbone_flops(model, [(q, 0)] * p + [(n, q)] * (p * g)) + head_flops(model, p * g * n)
    return training_flops(forward) + forward * ((kind == "step") + bool(beta))


def run_case(case: tuple, threads: int) -> dict[str, Any]:
    """Ours and TRL's ways on one piece of work, in turn."""
    name, model, kind, shape, beta, settings, ways = case
    spec = {"model": model, "kind": kind, "shape": shape, "beta": beta, "settings": settings_of(settings)}
    sides = [Side(way, MODULE, {"way": way, **spec}, threads) for way in ("ours", *ways)]
    same = {} if kind == "step" else SAME if settings is FP32 else ROUGHLY
    results = compare(sides, same, warm=1 if model == "small" else 2, want=3, budget_s=90)
    for result in results.values():
        phases, seconds = result["phases"], result["seconds"]
        generation = phases.get("generation", 0.0)
        result["phases"] = {
            "generation": generation,
            "scoring": max(0.0, phases["collect"] - generation),
            "training": seconds - phases["collect"],
        }
    return {
        "name": name,
        "kind": kind,
        "shape": shape,
        "useful_flops": useful_flops(model, shape, kind, beta),
        "sides": results,
    }


if __name__ == "__main__":
    serve(run_ours, run_trl)
