"""Small real distillation runs, for tests over ranks, cuts and resumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignment.accelerator import make_accelerator
from alignment.algorithms.distill import Distill, DistillConfig, OffPolicy, OnPolicy
from alignment.algorithms.teachers import StoredTargets, Teachers
from alignment.config import TrainConfig
from alignment.models import Policy
from alignment.models.student import Student
from alignment.models.teacher import LocalTeacher
from alignment.packing import conversation, cut
from alignment.rollout import TransformersEngine
from alignment.trainer import Trainer
from alignment.types import Prompt, Sampling, Tree
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training import gradients

REAL = 500
"""Tokens that count; the models have more rows."""
TASKS = ("math", "code", "chat")

KINDS: dict[str, dict[str, Any]] = {
    "on": {"batch_size": 10, "group_size": 2},
    "off": {"batch_size": 6, "on_policy_share": 0.0, "hard_coef": 0.5, "divergence": "forward_kl"},
    "mixed": {"batch_size": 10, "on_policy_share": 0.6, "group_size": 3, "hard_coef": 0.5, "divergence": "jsd"},
    "top_k": {"batch_size": 10, "on_policy_share": 0.6, "group_size": 2, "teacher_top_k": 5},
    "stored": {"batch_size": 6, "on_policy_share": 0.0, "teacher_top_k": 5, "divergence": "forward_kl"},
    "single": {"batch_size": 2, "group_size": 2},
}


def teacher(seed: int = 9, width: int = 96, **settings) -> LocalTeacher:
    """Wider than the student, surer of itself, and with other padding."""
    model = tiny_model("qwen3", seed=seed, hidden_size=width, vocab_size=520)
    with torch.no_grad():
        model.get_output_embeddings().weight *= 20
    return LocalTeacher(Policy(model), REAL, f"teacher {seed}", f"{seed}", **{"max_tokens": 100, **settings})


def teachers(top_k: int = 0, temperature: float = 1.0) -> Teachers:
    """Two of different width; `chat` goes to the default."""
    by_task = {"math": teacher(), "default": teacher(11, 80)}
    return Teachers(by_task, REAL, top_k, temperature)


def prompts(n: int = 7) -> list[Prompt]:
    rng = np.random.default_rng(0)
    rows = [{"task": TASKS[i % 3]} for i in range(n)]
    return [Prompt(f"p{i}", [], rng.integers(5, 300, 4 + 3 * i).tolist(), rows[i]) for i in range(n)]


def rows(n: int = 13) -> tuple[list[Tree], list[str]]:
    """Conversations with an answer of some length, and their tasks; the answers of some weigh half."""
    rng = np.random.default_rng(1)
    trees = []
    for i in range(n):
        length = int(rng.integers(6, 30))
        tree = conversation(rng.integers(5, 300, length).tolist(), np.arange(length) >= length // 2)
        tree.segments[0].columns["weights"] = np.full(length, 0.5 if i % 4 == 0 else 1.0, np.float32)
        trees.append(tree)
    return trees, [TASKS[i % 3] for i in range(n)]


def make(
    folder: str = "", policy: Policy | None = None, given: Sequence[Prompt] | None = None, engine=None, **settings
) -> Distill:
    config = DistillConfig(**settings)
    policy = policy or Policy(tiny_model("qwen3", vocab_size=512))
    both = teachers(config.teacher_top_k, config.divergence_temperature)
    trees, tasks = rows()
    stored = None
    if folder:
        stored = StoredTargets(Path(folder) / "targets.bin", both)
        stored.fill(trees, tasks, lambda text: None)
    engine = engine or TransformersEngine(policy.model, tiny_tokenizer(), max_rows=6)
    sampling = Sampling(max_tokens=9, seed=2, top_k=50, stop_token_ids=tuple(range(60)))
    on_policy = OnPolicy(given or prompts(), engine, sampling)
    return Distill(Student(policy), config, both, OffPolicy(trees, tasks, stored), on_policy, seed=3)


def train_distill(
    kind: str, folder: str, steps: int = 4, save_every: int = 0, max_tokens: int = 80, policy: Policy | None = None
) -> Student:
    settings = TrainConfig(
        output_dir=folder, learning_rate=3e-3, save_every=save_every, max_tokens_per_micro_batch=max_tokens
    )
    accelerator = make_accelerator(settings)
    algorithm = make(folder if kind == "stored" else "", policy, **KINDS[kind])
    Trainer(accelerator, algorithm.student, tiny_tokenizer(), algorithm, settings, steps).train()
    return algorithm.student


def update(algorithm: Distill, step: int = 0, max_tokens: int = 10_000):
    """Loss, gradients and summed stats of one step."""
    (batch,) = algorithm.collect(step).batches
    algorithm.student.zero_grad()
    total, sums = 0.0, {}
    for micro in cut(batch.trees, max_tokens):
        loss, stats = algorithm.loss(algorithm.student, micro)
        (loss / batch.units).backward()
        total += loss.item() / batch.units
        for name, (value, count) in stats.items():
            old = sums.get(name, (0.0, 0.0))
            sums[name] = (old[0] + float(value), old[1] + float(count))
    return total, gradients(algorithm.student), {name: value / count for name, (value, count) in sums.items() if count}


def dense_loss(algorithm: Distill, batch) -> torch.Tensor:
    """The definition: ordinary forward passes of student and teacher over each sequence by itself."""
    c, student = algorithm.config, algorithm.student.policy.model
    total = torch.zeros(())
    by_tokens = {tuple(p.token_ids): p.row["task"] for p in algorithm.on_policy.prompts}
    by_tokens |= {tuple(t.segments[0].token_ids): algorithm.tasks[id(t)] for t in getattr(algorithm.rows, "trees", ())}
    for tree in batch.trees:
        guide = algorithm.teachers.of(by_tokens[tuple(tree.segments[0].token_ids)]).policy.model
        sampled = len(tree.segments) > 1
        for leaf in range(1, len(tree.segments)) if sampled else [0]:
            segment = tree.segments[leaf]
            ids = torch.tensor([tree.branch_token_ids(leaf)])
            places = ids.shape[1] - len(segment.token_ids) + np.flatnonzero(segment.scored)
            with torch.no_grad():
                p = (guide(ids).logits[0, places - 1, :REAL] / c.divergence_temperature).softmax(-1)
            logits = student(ids).logits[0, places - 1, :REAL]
            q = (logits / c.divergence_temperature).softmax(-1)
            if c.teacher_top_k:
                top = p.topk(c.teacher_top_k).indices
                p, q = (torch.cat([x.gather(1, top), 1 - x.gather(1, top).sum(-1, keepdim=True)], -1) for x in (p, q))
            m = c.jsd_beta * p + (1 - c.jsd_beta) * q
            values = {
                "forward_kl": (p * (p.log() - q.log())).sum(-1),
                "reverse_kl": (q * (q.log() - p.log())).sum(-1),
                "jsd": (c.jsd_beta * p * (p / m).log() + (1 - c.jsd_beta) * q * (q / m).log()).sum(-1),
            }[c.divergence]
            nll = -logits.log_softmax(-1)[torch.arange(len(places)), ids[0, places]]
            weights = torch.ones(len(places))
            if not sampled:
                weights = torch.tensor(segment.columns["hard_weights"][segment.scored]) / (c.hard_coef or 1.0)
                weights = weights if c.hard_coef else torch.tensor(segment.columns["soft_weights"][segment.scored])
            soft, hard = (1.0, 0.0) if sampled else (c.soft_coef, c.hard_coef)
            total = total + (weights * (soft * values + hard * nll)).sum()
    return total / batch.units
