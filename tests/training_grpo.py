"""A small real GRPO run with the embedded engine, for tests over ranks and resumes."""

from __future__ import annotations

import copy
import time

import numpy as np

from alignment.accelerator import make_accelerator
from alignment.algorithms.grpo import Grpo, GrpoConfig
from alignment.config import TrainConfig
from alignment.data.curriculum import Curriculum
from alignment.errors import EngineLost
from alignment.models import Policy
from alignment.rollout import TransformersEngine
from alignment.trainer import Trainer
from alignment.types import Prompt, Sampling
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training import reward_low_tokens


class Apart:
    """An engine with weights of its own, as a server has. lost: calls of `generate` from which on it cannot be reached;
    deaf: calls of `load_weights`."""

    remote = True

    def __init__(self, policy, lost=10**9, deaf=10**9):
        self.engine = TransformersEngine(copy.deepcopy(policy.model), tiny_tokenizer(), 16)
        self.lost, self.deaf, self.asked, self.loaded, self.busy = lost, deaf, 0, 0, False

    def generate(self, prompts, n, sampling, step=0):
        self.asked += 1
        if self.asked > self.lost:
            raise EngineLost("no server")
        self.busy = True
        time.sleep(0.01)
        groups = self.engine.generate(prompts, n, sampling, step)
        self.busy = False
        return groups

    def load_weights(self, model, step):
        self.loaded += 1
        assert not self.busy  # what is being sampled keeps its weights
        if self.loaded > self.deaf:
            raise EngineLost("no server takes weights")
        self.engine.load_weights(model, step)


def train_grpo(
    folder: str,
    steps: int = 4,
    save_every: int = 0,
    policy: Policy | None = None,
    score=reward_low_tokens,
    learning_rate: float = 3e-3,
    top_k: int = 50,
    remote: bool = False,
    **settings,
) -> Policy:
    config = TrainConfig(
        output_dir=folder, learning_rate=learning_rate, max_tokens_per_micro_batch=80, save_every=save_every
    )
    accelerator = make_accelerator(config)
    policy = policy or Policy(tiny_model("qwen3"))
    rng = np.random.default_rng(0)
    prompts = [Prompt(f"p{i}", [], rng.integers(5, 300, 4 + 3 * i).tolist()) for i in range(5)]
    algorithm = Grpo(
        policy,
        Apart(policy) if remote else TransformersEngine(policy.model, tiny_tokenizer(), max_rows=6),
        prompts,
        score,
        Curriculum([p.id for p in prompts], "variance", seed=0),
        GrpoConfig(**{"prompts_per_step": 3, "group_size": 4, "resample_prompts": 1, **settings}),
        Sampling(max_tokens=9, seed=2, top_k=top_k, stop_token_ids=tuple(range(60))),
    )
    Trainer(accelerator, policy, tiny_tokenizer(), algorithm, config, steps).train()
    return policy
