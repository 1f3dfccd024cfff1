"""On-policy distillation follows TRL's DistillationTrainer: loss, gradient norm, entropy and weights, step by step.

TRL samples for real; what its student's `generate` returns is written down, and comes out of a scripted engine here. So
everything from the completions to the weights is compared. Its `beta` names the divergence: 0 is the forward KL, 1 the
reverse KL, between them the generalised JSD, as here. Both divide by the completion tokens of the whole update.

Where the definitions differ: TRL's temperature is that of the sampling, too; here each has its own. TRL samples once
per prompt, so that a group here is a prompt that comes several times there.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DistillationConfig, DistillationTrainer

from alignment.algorithms.distill import Distill, DistillConfig, OnPolicy
from alignment.algorithms.teachers import DEFAULT, Teachers
from alignment.data.prompts import build_prompts
from alignment.models import Policy
from alignment.models import head as limits
from alignment.models.student import Student
from alignment.models.teacher import LocalTeacher
from alignment.types import Rollout, Sampling
from tests.parity import assert_same_curve, assert_same_weights, run_ours, trained, trl_log, trl_settings
from tests.tiny import tiny_model, tiny_tokenizer

LENGTH, STEPS = 12, 3
SIZE = len(tiny_tokenizer())
STOP = [*range(63), tiny_tokenizer().eos_token_id]
QUESTIONS = ["What is 2 + 3?", "A baker has 48 cakes and sells half of them; how many are left?", "Hi"]
ROWS = [{"id": f"q{i}", "prompt": [{"role": "user", "content": q}]} for i, q in enumerate(QUESTIONS)]

Completions = dict[tuple[int, ...], list[list[int]]]  # of each prompt


def start_model():
    """Almost uniform over its 512 tokens, so one in eight ends a completion; the others are cut at LENGTH."""
    model = tiny_model("qwen3")
    model.generation_config.eos_token_id = STOP
    return model


def teacher_model():
    """Wider than the student and surer of itself."""
    model = tiny_model("qwen3", seed=9, hidden_size=96)
    with torch.no_grad():
        model.get_output_embeddings().weight *= 20
    return model


def record_generations(model) -> list[Completions]:
    """What the model generates from now on, up to and with the first stop token."""
    generations: list[Completions] = []
    generate = model.generate

    def recording(*, input_ids, attention_mask, **rest):
        out = generate(input_ids=input_ids, attention_mask=attention_mask, **rest)
        completions: Completions = {}
        for prompt, mask, whole in zip(input_ids, attention_mask, out, strict=True):
            ids = whole[len(prompt) :].tolist()
            end = next((i for i, token in enumerate(ids) if token in STOP), LENGTH - 1)
            completions.setdefault(tuple(prompt[mask.bool()].tolist()), []).append(ids[: end + 1])
        generations.append(completions)
        return out

    model.generate = recording
    return generations


class Replay:
    """An engine that hands out recorded completions."""

    def __init__(self, generations: list[Completions]):
        self.generations = generations

    def generate(self, prompts, n, sampling, step=0):
        groups = [self.generations[step][tuple(prompt.token_ids)] for prompt in prompts]
        assert all(len(group) == n for group in groups)
        return [
            [Rollout(prompt, i, ids, [0.0] * len(ids), "", "stop", step) for i, ids in enumerate(group)]
            for prompt, group in zip(prompts, groups, strict=True)
        ]

    def load_weights(self, model, step):
        pass


def run_trl(folder, start, group_size=1, accumulate=1, **settings) -> tuple[DistillationTrainer, list[Completions]]:
    rows = [row for row in ROWS for _ in range(group_size)]
    arguments = DistillationConfig(
        **trl_settings(folder, STEPS),
        per_device_train_batch_size=len(rows) // accumulate,
        gradient_accumulation_steps=accumulate,
        max_completion_length=LENGTH,
        **settings,
    )
    student = copy.deepcopy(start)
    generations = record_generations(student)
    dataset = Dataset.from_list(rows)
    trainer = DistillationTrainer(student, teacher_model(), arguments, dataset, processing_class=tiny_tokenizer())
    trainer.train()
    return trainer, generations


def compare(folder, trl: dict[str, Any], ours: dict[str, Any], max_tokens=16384) -> list[Completions]:
    """Both runs from the same weights."""
    start, size = start_model(), trl.get("group_size", 1)
    trainer, generations = run_trl(folder / "trl", start, **trl)
    policy = Policy(copy.deepcopy(start))
    config = DistillConfig(batch_size=size * len(ROWS), group_size=size, **ours)
    local = LocalTeacher(Policy(teacher_model()), SIZE, max_tokens=max_tokens)
    teachers = Teachers({DEFAULT: local}, SIZE, config.teacher_top_k, config.divergence_temperature)
    prompts = build_prompts(ROWS, tiny_tokenizer(), max_prompt_length=100)
    on_policy = OnPolicy(prompts, Replay(generations), Sampling(max_tokens=LENGTH))
    algorithm = Distill(Student(policy), config, teachers, on_policy=on_policy)
    metrics = run_ours(folder / "ours", STEPS, algorithm.student, algorithm, max_tokens)
    assert_same_curve(metrics, trl_log(trainer))
    for a, b in zip(metrics, trl_log(trainer), strict=True):
        assert a["entropy"] == pytest.approx(b["entropy"], rel=1e-5)
    assert_same_weights(policy.model, trained(trainer), start, atol=1e-5)
    return generations


DIVERGENCES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "forward": ({"beta": 0.0}, {"divergence": "forward_kl"}),
    "reverse": ({"beta": 1.0}, {"divergence": "reverse_kl"}),
    "jsd": ({"beta": 0.3}, {"divergence": "jsd", "jsd_beta": 0.3}),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence(tmp_path, name):
    generations = compare(tmp_path, *DIVERGENCES[name])
    lengths = [len(ids) for g in generations for group in g.values() for ids in group]
    assert len(lengths) == STEPS * len(ROWS)
    assert len(set(lengths)) > 2


@pytest.mark.parametrize("name", DIVERGENCES)
def test_groups_behind_one_prompt_in_small_chunks(tmp_path, monkeypatch, name):
    """Four samples per prompt: the prompt once here, four times there."""
    monkeypatch.setattr(limits, "MAX_LOGIT_BYTES", 50 * 4 * SIZE)
    trl, ours = DIVERGENCES[name]
    compare(tmp_path, {**trl, "group_size": 4}, ours)


def test_temperature(tmp_path):
    trl, ours = DIVERGENCES["jsd"]
    compare(tmp_path, {**trl, "temperature": 0.6}, {**ours, "divergence_temperature": 0.6})


def test_gradient_accumulation_against_a_small_token_budget(tmp_path):
    trl, ours = DIVERGENCES["reverse"]
    compare(tmp_path, {**trl, "group_size": 2, "accumulate": 3}, ours, max_tokens=60)


def test_top_k_of_the_whole_vocabulary_follows_it_too(tmp_path):
    trl, ours = DIVERGENCES["forward"]
    compare(tmp_path, trl, {**ours, "teacher_top_k": SIZE})
