"""Online DPO. `accelerate launch recipes/online_dpo.py --config recipes/qwen2/online_dpo.yaml`

Config, prompts, model, reference, engine, rewards, algorithm, trainer: read from top to bottom, this is the method.
The rewards may be a reward model (`rewards: [reward_model:PATH]`) as well as verifiers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from trl import ModelConfig

import recipes  # noqa: F401  refuses to start when a foreign package shadows ours
from alignment.accelerator import make_accelerator
from alignment.algorithms.dpo import DpoConfig
from alignment.algorithms.online_dpo import OnlineDpo, OnlineDpoConfig
from alignment.algorithms.reference import Reference
from alignment.config import TrainConfig, parse
from alignment.models.load import load_policy, switch_dropout_off
from alignment.optim.online_merging import OnlineMergingConfig, make_merging_optimizer
from alignment.trainer import Trainer
from recipes.common import make_sampling, run, write_settings
from recipes.engines import EngineConfig
from recipes.rollouts import RolloutRecipe, load_prompts, make_engine, make_evaluation, make_score

KINDS = (RolloutRecipe, OnlineDpoConfig, DpoConfig, OnlineMergingConfig, TrainConfig, ModelConfig, EngineConfig)


def main(arguments: Sequence[str] | None = None) -> None:
    recipe, online, dpo, merging, train, model, sampler = parse(*KINDS, arguments=arguments)
    accelerator = make_accelerator(train)
    policy, tokenizer = load_policy(model)
    switch_dropout_off(policy)  # policy and reference have to be the same function at the start
    policy.to(accelerator.device)
    other = None if model.use_peft else copy.deepcopy(policy).requires_grad_(False).eval()
    reference = Reference(policy, other, train.max_tokens_per_micro_batch)

    prompts = load_prompts(recipe, tokenizer)
    sampling = make_sampling(recipe, tokenizer, train.seed, recipe.thinking_budget)
    engine = make_engine(recipe, sampler, policy.model, tokenizer, train.output_dir)
    score = make_score(recipe, prompts)
    evaluation = make_evaluation(recipe, tokenizer, engine, sampling)

    algorithm = OnlineDpo(policy, engine, prompts, score, online, dpo, sampling, reference, train.seed)
    write_settings(train.output_dir, recipe, sampler, online, dpo, merging, train, model)
    steps = train.max_steps or recipe.steps(prompts, online.prompts_per_step)
    optimizer = make_merging_optimizer(policy, train, merging)
    Trainer(accelerator, policy, tokenizer, algorithm, train, steps, evaluation, optimizer).train()


if __name__ == "__main__":
    run(main)
