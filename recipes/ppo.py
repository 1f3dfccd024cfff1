"""PPO with value warm-up and a pretraining term. `accelerate launch recipes/ppo.py --config recipes/qwen1/ppo.yaml`

Config, four models (policy, value, reference, reward), prompts, engine, algorithm, trainer: read from top to bottom,
this is the method. The reward model is one of the rewards: `rewards: [reward_model:PATH]`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

import recipes  # noqa: F401  refuses to start when a foreign package shadows ours
from alignment.accelerator import make_accelerator
from alignment.algorithms.ppo import Ppo, PpoConfig
from alignment.config import TrainConfig, check_values, parse
from alignment.data.load import load_rows
from alignment.data.sft_rows import encode_sft_rows
from alignment.errors import UserError, about
from alignment.models import Policy, ScalarModel
from alignment.models.actor_critic import ActorCritic
from alignment.models.load import load_policy, switch_dropout_off
from alignment.models.load_scalar import load_scalar, scalar_from_policy
from alignment.models.teacher import first_difference
from alignment.optim.online_merging import OnlineMergingConfig, make_merging_optimizer
from alignment.trainer import Trainer
from alignment.types import Tree
from recipes.common import make_sampling, run, write_settings
from recipes.engines import EngineConfig
from recipes.rollouts import RolloutRecipe, load_prompts, make_engine, make_evaluation, make_score


@dataclass
class PpoRecipe:
    value_model: str = field(
        default="policy",
        metadata={"help": "policy: a copy of its backbone; head: a head on the policy; or a (reward) model's name."},
    )
    ptx_dataset: str = field(default="", metadata={"help": "Pretraining text (column `text`) for ptx_coef > 0."})
    ptx_split: str = ""
    ptx_max_length: int = 1024

    def __post_init__(self):
        check_values(self, "2 or more", "ptx_max_length")


KINDS = (RolloutRecipe, PpoRecipe, PpoConfig, OnlineMergingConfig, TrainConfig, ModelConfig, EngineConfig)


def load_value(
    recipe: PpoRecipe, model: ModelConfig, policy: Policy, tokenizer: PreTrainedTokenizerBase
) -> ScalarModel:
    """The value model, read at the state before each token. Raises UserError when its tokens are not the policy's."""
    if recipe.value_model in ("policy", "head"):
        return scalar_from_policy(policy, shared=recipe.value_model == "head")
    config = replace(model, model_name_or_path=recipe.value_model, model_revision="main")
    value, own = load_scalar(config, at="state")
    difference = first_difference(tokenizer, own, "policy", "value model")
    if difference:
        raise UserError(
            f"value_model: {recipe.value_model} would misread the policy's tokens. {difference}. Name a model with the "
            "policy's tokenizer, or take `value_model: policy`"
        )
    return value


def load_pretraining(recipe: PpoRecipe, tokenizer: PreTrainedTokenizerBase) -> list[Tree]:
    rows = load_rows(recipe.ptx_dataset, recipe.ptx_split or None)
    with about(recipe.ptx_dataset):
        trees, report = encode_sft_rows([{"text": row.get("text")} for row in rows], tokenizer, recipe.ptx_max_length)
    print(f"pretraining text: {report.summary()}", flush=True)
    return trees


def main(arguments: Sequence[str] | None = None) -> None:
    rollouts, recipe, ppo, merging, train, model, sampler = parse(*KINDS, arguments=arguments)
    accelerator = make_accelerator(train, some_parameters_rest=bool(ppo.value_warmup_steps))
    policy, tokenizer = load_policy(model)
    actor_critic = ActorCritic(policy, load_value(recipe, model, policy, tokenizer))
    switch_dropout_off(actor_critic)  # a ratio has to compare the same function
    reference = None
    if ppo.kl_coef and not model.use_peft:
        reference = copy.deepcopy(policy).requires_grad_(False).eval().to(accelerator.device)
    actor_critic.to(accelerator.device)

    prompts = load_prompts(rollouts, tokenizer)
    sampling = make_sampling(rollouts, tokenizer, train.seed, rollouts.thinking_budget)
    engine = make_engine(rollouts, sampler, policy.model, tokenizer, train.output_dir)
    score = make_score(rollouts, prompts)
    pretraining = load_pretraining(recipe, tokenizer) if ppo.ptx_coef and recipe.ptx_dataset else []
    evaluation = make_evaluation(rollouts, tokenizer, engine, sampling)
    budget = train.max_tokens_per_micro_batch
    algorithm = Ppo(actor_critic, engine, prompts, score, ppo, sampling, reference, pretraining, budget)
    write_settings(train.output_dir, rollouts, sampler, recipe, ppo, merging, train, model)
    steps = train.max_steps or ppo.value_warmup_steps + rollouts.steps(prompts, ppo.prompts_per_step)
    optimizer = make_merging_optimizer(actor_critic, train, merging, {"value": ppo.value_learning_rate})
    Trainer(accelerator, actor_critic, tokenizer, algorithm, train, steps, evaluation, optimizer).train()


if __name__ == "__main__":
    run(main)
