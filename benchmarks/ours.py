"""Our side of a comparison: the trainer as a recipe builds it, with a gate after each step."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from alignment.accelerator import make_accelerator
from alignment.algorithms.sft import Sft
from alignment.config import TrainConfig
from alignment.models import Policy
from alignment.packing import conversation
from alignment.trainer import Trainer
from alignment.types import Algorithm, Batch, Episode, PackedBatch, Tree
from benchmarks.sides import Gate
from benchmarks.workload import Row, make_tokenizer

ENDLESS = 10**6


class Gated:
    """An algorithm that stops at the gate before its first step and after every step."""

    def __init__(self, algorithm: Algorithm, gate: Gate):
        self.algorithm, self.gate = algorithm, gate

    def collect(self, step: int) -> Episode:
        if step == 0:
            self.gate.ready()
        start = time.perf_counter()
        episode = self.algorithm.collect(step)
        self.gate.mark("collect", time.perf_counter() - start)
        return episode

    def loss(self, model, micro: PackedBatch):
        return self.algorithm.loss(model, micro)

    def after_update(self, step: int, metrics: Mapping[str, float]) -> None:
        self.algorithm.after_update(step, metrics)
        named = {name: metrics[name] for name in ("loss", "grad_norm", "entropy") if name in metrics}
        self.gate.step(**named)

    def state_dict(self) -> dict[str, Any]:
        return self.algorithm.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.algorithm.load_state_dict(state)


class InOrder(Sft):
    """SFT over given batches, in their order and around again."""

    def __init__(self, batches: list[list[Row]]):
        trees = [trees_of(rows) for rows in batches]
        super().__init__([tree for batch in trees for tree in batch], len(trees[0]), seed=0)
        self.batches = [Batch(batch, sum(tree.scored_tokens for tree in batch)) for batch in trees]

    def collect(self, step: int) -> Episode:
        return Episode([self.batches[step % len(self.batches)]])


def train_config(settings: dict[str, Any]) -> TrainConfig:
    """What both sides share (AdamW's betas, learning rate), and `settings`."""
    shared = {"learning_rate": 1e-5, "adam_beta2": 0.999, "resume": "never"}
    return TrainConfig(output_dir=tempfile.mkdtemp(prefix="bench-ours-"), **{**shared, **settings})


def train(policy: Policy, algorithm: Algorithm, config: TrainConfig) -> None:
    """Runs until the parent says stop."""
    accelerator = make_accelerator(config)
    Trainer(accelerator, policy, make_tokenizer(), algorithm, config, ENDLESS).train()


def trees_of(rows: list[Row]) -> list[Tree]:
    return [conversation(r.token_ids, np.arange(len(r.token_ids)) >= len(r.token_ids) - r.answer) for r in rows]
