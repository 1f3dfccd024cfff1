"""A PPO step, ours beside the PPOTrainer of TRL 1.12, the last release that has one: policy, value, reference and
reward model of one size, one epoch, 64 completions of 64 tokens.

TRL 1.12 lives in an environment of its own: set BENCH_TRL_112 to its python (`pip install trl==1.12.0 torch psutil`).
`given` hands both sides the same completions, so that loss, entropy and the policy's gradient norm must agree on the
first step; in `step` each side samples with its own engine.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.sides import Gate, Side, Skipped, compare, serve
from benchmarks.workload import (
    CONFIGS,
    EOS,
    PAD,
    backbone_flops,
    completions,
    head_flops,
    make_model,
    make_tokenizer,
    prompts,
    training_flops,
)

MODULE = "benchmarks.bench_ppo"
TRL = "1.12"
SAME = {"loss": (1e-4, 1e-6), "grad_norm": (1e-3, 0.0), "entropy": (1e-4, 0.0)}
KL_COEF, VALUE_CLIP, VALUE_COEF, CLIP_EPS, LAM = 0.05, 0.2, 0.1, 0.2, 0.95
SHAPE = {"prompts": 64, "group_size": 1, "prompt_tokens": 128, "new_tokens": 64}
PAIRS = {**SHAPE, "prompts": 32, "group_size": 2}

CASES: list[tuple[str, str, str, dict[str, int]]] = [
    ("tiny given, 64 x 1", "tiny", "given", SHAPE),
    ("tiny step, 32 x 2", "tiny", "step", PAIRS),
    ("small step, 4 x 2", "small", "step", {**PAIRS, "prompts": 4}),
]


def make_scalar(name: str, seed: int):
    """A sequence-classification Qwen3 with random weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    torch.manual_seed(seed)
    config = Qwen3Config(**CONFIGS[name], max_position_embeddings=8192, pad_token_id=PAD, eos_token_id=EOS)
    config.num_labels = 1
    return Qwen3ForSequenceClassification(config).float()


# --- ours -----------------------------------------------------------------------------------------------------------


def run_ours(spec: dict[str, Any], gate: Gate) -> None:
    from alignment.accelerator import make_accelerator
    from alignment.algorithms.ppo import Ppo, PpoConfig
    from alignment.models import Policy, ScalarModel
    from alignment.models.actor_critic import ActorCritic
    from alignment.optim.adamw import make_optimizer
    from alignment.rollout import TransformersEngine
    from alignment.trainer import Trainer
    from alignment.types import Prompt, Sampling
    from benchmarks import ours
    from benchmarks.bench_grpo import Given, Timed

    shape = spec["shape"]
    config = ours.train_config({"max_grad_norm": 0.0})
    policy, reference = (
        Policy(make_model(spec["model"])),
        Policy(make_model(spec["model"], seed=1)).requires_grad_(False),
    )
    reward, value = ScalarModel(make_scalar(spec["model"], 2)), ScalarModel(make_scalar(spec["model"], 3), at="state")
    model = ActorCritic(policy, value)
    questions = prompts(shape["prompts"], shape["prompt_tokens"])
    given = [Prompt(str(i), [], ids) for i, ids in enumerate(questions)]
    engine: Any = TransformersEngine(policy.model, make_tokenizer(), max_rows=64)
    if spec["kind"] == "given":
        answers = completions(shape["prompts"], shape["group_size"], shape["new_tokens"])
        engine = Given(policy, questions, answers)
    settings = PpoConfig(
        prompts_per_step=shape["prompts"],
        group_size=shape["group_size"],
        value_warmup_steps=0,
        value_learning_rate=1e-5,
        clip_eps=CLIP_EPS,
        value_clip=VALUE_CLIP,
        value_coef=VALUE_COEF,
        kl_coef=KL_COEF,
        lam=LAM,
        reward_mean=False,
    )
    score = _reward_model_score(reward)
    algorithm = Ppo(
        model, Timed(engine, gate), given, score, settings, Sampling(max_tokens=shape["new_tokens"]), reference
    )
    optimizer = make_optimizer(model, config)
    accelerator = make_accelerator(config)
    gated = ours.Gated(algorithm, gate)
    Trainer(accelerator, model, make_tokenizer(), gated, config, ours.ENDLESS, optimizer=optimizer).train()


def _reward_model_score(reward):
    """Every completion by its last token, its prompt computed once."""
    import numpy as np

    from alignment.models.score import add_scalars
    from alignment.packing import group
    from alignment.types import Segment

    def score(rollouts) -> dict[str, float]:
        by_prompt: dict[str, list] = defaultdict(list)
        for r in rollouts:
            last = np.arange(len(r.token_ids)) == len(r.token_ids) - 1
            by_prompt[r.prompt.id].append((r, Segment(r.token_ids, scored=last)))
        trees = [group(pairs[0][0].prompt.token_ids, [s for _, s in pairs]) for pairs in by_prompt.values()]
        add_scalars(reward, trees, "reward", 16384)
        for r, segment in (pair for pairs in by_prompt.values() for pair in pairs):
            r.reward = float(segment.columns["reward"][-1])
        return {}

    return score


# --- TRL's ----------------------------------------------------------------------------------------------------------


def run_trl(spec: dict[str, Any], gate: Gate) -> None:
    import trl
    from datasets import Dataset
    from trl.experimental.ppo import PPOTrainer

    assert trl.__version__.startswith(TRL), f"TRL {trl.__version__}: PPO needs {TRL}"
    shape, name = spec["shape"], spec["model"]
    questions = [q for q in prompts(shape["prompts"], shape["prompt_tokens"]) for _ in range(shape["group_size"])]
    trainer = PPOTrainer(
        args=_trl_arguments(shape),
        processing_class=make_tokenizer(),
        model=make_model(name),
        ref_model=make_model(name, seed=1),
        reward_model=make_scalar(name, 2),
        value_model=make_scalar(name, 3),
        train_dataset=Dataset.from_dict({"input_ids": questions}),
    )
    _replace_generation(spec, gate)
    _stop_at_gate(trainer, gate)
    trainer.train()


def _trl_arguments(shape: dict[str, int]):
    from trl.experimental.ppo import PPOConfig

    rows = shape["prompts"] * shape["group_size"]
    return PPOConfig(
        output_dir=tempfile.mkdtemp(prefix="bench-trl-"),
        per_device_train_batch_size=rows,
        total_episodes=rows * 10**5,
        num_ppo_epochs=1,
        num_mini_batches=1,
        response_length=shape["new_tokens"],
        local_rollout_forward_batch_size=rows,
        num_sample_generations=0,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        kl_coef=KL_COEF,
        cliprange=CLIP_EPS,
        cliprange_value=VALUE_CLIP,
        vf_coef=VALUE_COEF,
        lam=LAM,
        temperature=1.0,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
    )


def _replace_generation(spec: dict[str, Any], gate: Gate) -> None:
    """Marks the seconds of TRL's `batch_generation`, or of the given completions in its place, as a phase."""
    import trl.experimental.ppo.ppo_trainer as ppo_trainer

    generate = ppo_trainer.batch_generation if spec["kind"] == "step" else _given_responses(spec["shape"])

    def timed(*args):
        start = time.perf_counter()
        out = generate(*args)
        gate.mark("generation", time.perf_counter() - start)
        return out

    ppo_trainer.batch_generation = timed


def _given_responses(shape: dict[str, int]):
    """In the place of TRL's `batch_generation`: the given completions, with the policy's logits."""
    import torch

    answers = completions(shape["prompts"], shape["group_size"], shape["new_tokens"])
    number = {tuple(q): i for i, q in enumerate(prompts(shape["prompts"], shape["prompt_tokens"]))}

    def given(model, queries, *rest):
        counters: dict[int, Any] = defaultdict(itertools.count)
        numbers = [number[tuple(q)] for q in queries.tolist()]
        responses = torch.tensor([answers[i][next(counters[i])] for i in numbers])
        both = torch.cat([queries, responses], 1)
        return both, model(both).logits[:, queries.shape[1] - 1 : -1]

    return given


def _stop_at_gate(trainer, gate: Gate) -> None:
    """At the gate before the first step and after every step; the policy's gradient norm is taken on the first."""
    import torch
    from transformers import TrainerCallback

    policy, step, norms = trainer.model.policy, trainer.optimizer.step, []

    def with_norm(*args, **kwargs):
        if not norms:
            norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in policy.parameters()])))
        return step(*args, **kwargs)

    class Stops(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            gate.ready()

        def on_log(self, args, state, control, logs=None, **kwargs):
            loss = logs["loss/policy_avg"] + VALUE_COEF * logs["loss/value_avg"]
            gate.step(loss=loss, grad_norm=norms[0], entropy=logs["policy/entropy_avg"])

    trainer.optimizer.step = with_norm
    trainer.add_callback(Stops())


# --- the comparison -------------------------------------------------------------------------------------------------


def useful_flops(model: str, shape: dict[str, int], kind: str) -> float:
    """The least work for a step: each prompt once. Policy and value are trained (value: a forward pass more, for the
    advantages), reference and reward read once, generation is one forward pass more."""
    p, g, q, n = (shape[name] for name in ("prompts", "group_size", "prompt_tokens", "new_tokens"))
    backbone = backbone_flops(model, [(q, 0)] * p + [(n, q)] * (p * g))
    language_model = backbone + head_flops(model, p * g * n)
    passes = training_flops(language_model) + training_flops(backbone) + 2 * backbone + language_model
    return passes + (language_model if kind == "step" else 0.0)


def run_case(case: tuple, threads: int) -> dict[str, Any]:
    name, model, kind, shape = case
    python = os.environ.get("BENCH_TRL_112", "")
    if not Path(python).is_file():
        raise Skipped("BENCH_TRL_112: set it to the python of an environment with trl==1.12.0 (see bench_ppo.py)")
    spec = {"model": model, "kind": kind, "shape": shape}
    ours = Side("ours", MODULE, {"way": "ours", **spec}, threads)
    theirs = Side(TRL, MODULE, {"way": TRL, **spec}, threads, python=python)
    results = compare([ours, theirs], SAME if kind == "given" else {}, warm=1, want=2, budget_s=90)
    for result in results.values():
        generation = result["phases"].get("generation", 0.0)
        rest = result["seconds"] - generation
        result["phases"] = {"generation": generation, "scoring": 0.0, "training": rest}
    return {"name": name, "shape": shape, "useful_flops": useful_flops(model, shape, kind), "sides": results}


if __name__ == "__main__":
    serve(run_ours, run_trl)
