"""Small real DPO runs, offline and online, for tests over ranks and resumes."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np

from alignment.accelerator import make_accelerator
from alignment.algorithms.dpo import Dpo, DpoConfig
from alignment.algorithms.online_dpo import OnlineDpo, OnlineDpoConfig
from alignment.algorithms.reference import Reference, precompute
from alignment.config import TrainConfig
from alignment.models import Policy
from alignment.packing import group
from alignment.rollout import TransformersEngine
from alignment.trainer import Trainer
from alignment.types import Prompt, Rollout, Sampling, Segment, Tree
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training import reward_rollouts, share_below


def pairs(n: int = 12, seed: int = 0) -> list[Tree]:
    """Prompts of 3 to 20 tokens, branches of 1 to 12."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        prompt, *branches = (rng.integers(5, 300, rng.integers(*span)).tolist() for span in ((3, 20), (1, 12), (1, 12)))
        out.append(group(prompt, [Segment(b) for b in branches], atomic=True))
    return out


def frozen(policy: Policy) -> Policy:
    return copy.deepcopy(policy).requires_grad_(False).eval()


def train_dpo(
    folder: str,
    steps: int = 6,
    save_every: int = 0,
    max_tokens: int = 16384,
    trees: list[Tree] | None = None,
    config: DpoConfig | None = None,
    policy: Policy | None = None,
    precomputed: bool = False,
    batch_size: int = 4,
) -> Policy:
    """Offline, with the reference on the fly or precomputed into a file of the run."""
    settings = TrainConfig(
        output_dir=folder, learning_rate=3e-3, save_every=save_every, max_tokens_per_micro_batch=max_tokens
    )
    accelerator = make_accelerator(settings)
    policy = policy or Policy(tiny_model("qwen3"))
    trees = pairs() if trees is None else trees
    reference = Reference(policy, policy if precomputed else frozen(policy), max_tokens)
    if precomputed:
        precompute(trees, reference, Path(folder) / "reference.jsonl", "start")
    algorithm = Dpo(trees, batch_size, 1, config or DpoConfig(), None if precomputed else reference)
    Trainer(accelerator, policy, tiny_tokenizer(), algorithm, settings, steps).train()
    return policy


def count_low_tokens(rollouts: list[Rollout]) -> dict[str, float]:
    """Reward: the share of tokens below 256, in steps of a third; some samples are unscored, some prompts tie."""
    return reward_rollouts(rollouts, lambda r: None if r.token_ids[0] % 5 == 0 else round(3 * share_below(256, r)) / 3)


def train_online(
    folder: str, steps: int = 4, save_every: int = 0, max_tokens: int = 80, policy: Policy | None = None
) -> Policy:
    settings = TrainConfig(
        output_dir=folder, learning_rate=1e-3, save_every=save_every, max_tokens_per_micro_batch=max_tokens
    )
    accelerator = make_accelerator(settings)
    policy = policy or Policy(tiny_model("qwen3"))
    rng = np.random.default_rng(0)
    prompts = [Prompt(f"p{i}", [], rng.integers(5, 300, 4 + 3 * i).tolist()) for i in range(7)]
    algorithm = OnlineDpo(
        policy,
        TransformersEngine(policy.model, tiny_tokenizer(), max_rows=6),
        prompts,
        count_low_tokens,
        OnlineDpoConfig(prompts_per_step=5, group_size=3),
        DpoConfig(),
        Sampling(max_tokens=9, seed=2, stop_token_ids=tuple(range(60))),
        Reference(policy, frozen(policy), max_tokens),
        seed=3,
    )
    Trainer(accelerator, policy, tiny_tokenizer(), algorithm, settings, steps).train()
    return policy
