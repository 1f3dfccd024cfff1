"""A small real PPO run with the embedded engine, for tests over ranks and resumes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from alignment.accelerator import make_accelerator
from alignment.algorithms.ppo import Ppo, PpoConfig
from alignment.config import TrainConfig
from alignment.models import Policy, ScalarModel
from alignment.models.actor_critic import ActorCritic
from alignment.optim.adamw import make_optimizer
from alignment.rollout import TransformersEngine
from alignment.trainer import Trainer
from alignment.types import Prompt, Sampling
from tests.tiny import tiny_config, tiny_model, tiny_tokenizer
from tests.training import reward_low_tokens, rows


def tiny_actor_critic(arch: str = "qwen3", shared: bool = False) -> ActorCritic:
    policy = Policy(tiny_model(arch))
    config = copy.deepcopy(tiny_config(arch, num_labels=1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        value = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    if shared:
        value.model = policy.base.base_model
    return ActorCritic(policy, ScalarModel(value, at="state"))


def make_ppo(model: ActorCritic, score=reward_low_tokens, sampling: dict[str, Any] | None = None, **settings) -> Ppo:
    rng = np.random.default_rng(0)
    prompts = [Prompt(f"p{i}", [], rng.integers(5, 300, 4 + 3 * i).tolist()) for i in range(6)]
    defaults = {"prompts_per_step": 3, "group_size": 2, "value_warmup_steps": 2, "value_learning_rate": 5e-3}
    reference = copy.deepcopy(model.policy).requires_grad_(False)
    return Ppo(
        model,
        TransformersEngine(model.policy.model, tiny_tokenizer(), max_rows=6),
        prompts,
        score,
        PpoConfig(**{**defaults, **settings}),
        Sampling(**{"max_tokens": 9, "seed": 2, "top_p": 0.9, "stop_token_ids": tuple(range(60)), **(sampling or {})}),
        reference,
        pretraining=rows(8, seed=3),
        max_tokens=400,
    )


def train_ppo(
    folder: str,
    steps: int = 5,
    save_every: int = 0,
    model=None,
    algorithm=None,
    learning_rate: float = 3e-3,
    **settings,
) -> ActorCritic:
    config = TrainConfig(
        output_dir=folder, learning_rate=learning_rate, max_tokens_per_micro_batch=80, save_every=save_every
    )
    accelerator = make_accelerator(config, some_parameters_rest=True)
    model = model or tiny_actor_critic()
    algorithm = algorithm or make_ppo(model, **settings)
    optimizer = make_optimizer(model, config, {"value": algorithm.config.value_learning_rate})
    Trainer(accelerator, model, tiny_tokenizer(), algorithm, config, steps, optimizer=optimizer).train()
    return model
