"""A small real training of a reward model, for tests over ranks and resumes."""

from __future__ import annotations

import numpy as np

from alignment.accelerator import make_accelerator
from alignment.algorithms.reward_model import RewardModelConfig, RewardModeling
from alignment.config import TrainConfig
from alignment.data.branches import Branch, shared_tree
from alignment.models.load_scalar import scalar_from_policy
from alignment.models.policy import Policy
from alignment.models.scalar import ScalarModel
from alignment.trainer import Trainer
from alignment.types import Tree
from tests.tiny import tiny_model, tiny_tokenizer


def fresh_model(arch: str = "qwen3", head_layers: int = 1) -> ScalarModel:
    return scalar_from_policy(Policy(tiny_model(arch)), shared=False, at="token", head_layers=head_layers)


def comparisons(n: int = 14, seed: int = 0, margins: bool = True) -> list[Tree]:
    """Pairs and groups of up to five: prompts of 3 to 20 tokens, branches of 1 to 12, labels of any kind."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        prompt = rng.integers(5, 300, rng.integers(3, 20))
        size = 2 if i % 3 else int(rng.integers(3, 6))
        ids = [np.append(prompt, rng.integers(5, 300, rng.integers(1, 12))) for _ in range(size)]
        labels = [1.0, 0.0, *rng.integers(0, 3, size - 2).tolist()]
        ahead = [float(margins and size == 2) * 0.1 * (i % 4), *[0.0] * (size - 1)]
        columns = [{"labels": y, "margins": m, "branches": float(size)} for y, m in zip(labels, ahead, strict=True)]
        out.append(shared_tree([Branch(b, np.arange(len(b)) == len(b) - 1) for b in ids], columns))
    return out


def train_reward_model(
    folder: str,
    steps: int = 6,
    save_every: int = 0,
    max_tokens: int = 16384,
    model: ScalarModel | None = None,
    trees: list[Tree] | None = None,
) -> ScalarModel:
    settings = TrainConfig(
        output_dir=folder, learning_rate=3e-3, save_every=save_every, max_tokens_per_micro_batch=max_tokens
    )
    accelerator = make_accelerator(settings)
    model = model or fresh_model()
    algorithm = RewardModeling(trees or comparisons(), 5, 1, RewardModelConfig(centre_coef=0.01))
    Trainer(accelerator, model, tiny_tokenizer(), algorithm, settings, steps).train()
    return model
