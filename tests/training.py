"""A small real training run, for tests that train in this process or start, kill and compare processes.

python -m tests.training OUTPUT_DIR [steps] [save_every] [max_tokens] prints a hash of the final weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from alignment.accelerator import make_accelerator
from alignment.algorithms.sft import Sft
from alignment.config import TrainConfig
from alignment.models import Policy
from alignment.packing import conversation
from alignment.packing.sequence_parallel import ALONE
from alignment.trainer import Trainer
from alignment.types import Rollout, Tree
from tests.tiny import tiny_model, tiny_tokenizer


def rows(n: int = 24, seed: int = 0) -> list[Tree]:
    """Conversations of 8 to 40 tokens whose second half carries loss."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        length = int(rng.integers(8, 40))
        scored = np.arange(length) >= length // 2
        out.append(conversation(rng.integers(5, 300, length).tolist(), scored))
    return out


def reward_rollouts(rollouts: list[Rollout], reward: Callable[[Rollout], float | None]) -> dict[str, float]:
    """What a runner with one reward called "low" does."""
    for r in rollouts:
        r.reward = reward(r)
        r.reward_terms = {"low": r.reward}
    scored = [r.reward for r in rollouts if r.reward is not None]
    means = {"rewards/low": sum(scored) / len(scored)} if scored else {}
    return means | {"unscored/low": float(len(rollouts) - len(scored))}


def share_below(limit: int, rollout: Rollout) -> float:
    return float(np.mean([t < limit for t in rollout.token_ids]))


def reward_low_tokens(rollouts: list[Rollout]) -> dict[str, float]:
    """Reward: the share of tokens below 100; some samples have no signal, some are unscored."""
    return reward_rollouts(rollouts, lambda r: None if r.token_ids[0] % 11 == 0 else share_below(100, r))


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def weights_hash(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def train(output_dir: str, steps: int = 6, algorithm=None, policy=None, group=ALONE, **settings) -> Policy:
    defaults = {"learning_rate": 1e-2, "weight_decay": 0.1, "lr_schedule": "cosine", "warmup_steps": 2}
    config = TrainConfig(output_dir=output_dir, **{**defaults, **settings})
    accelerator = make_accelerator(config)
    policy = policy or Policy(tiny_model("qwen3", attention_dropout=0.0 if os.environ.get("TESTS_NO_DROPOUT") else 0.1))
    algorithm = algorithm or Sft(rows(), 5, 1, group)
    Trainer(accelerator, policy, tiny_tokenizer(), algorithm, config, steps, group=group).train()
    return policy


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, steps, save_every, max_tokens = [*sys.argv[1:], "6", "1", "16384"][:4]
    bf16 = bool(os.environ.get("TESTS_BF16"))
    policy = train(
        folder, int(steps), save_every=int(save_every), max_tokens_per_micro_batch=int(max_tokens), bf16=bf16
    )
    if int(os.environ.get("RANK", 0)) == 0:
        Path(folder, "hash.json").write_text(json.dumps(weights_hash(policy)))
