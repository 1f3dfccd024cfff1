"""`align inspect recipe.yaml`: shows what a recipe would train on, without training."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file of an SFT or GRPO recipe")
    parser.add_argument("--samples", type=int, default=3, help="rows or prompts to show")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="--key value, as for the recipe")


def run(options: argparse.Namespace) -> int:
    """Raises UserError as the recipe would. Reads the model's configuration, not its weights."""
    from trl import ModelConfig

    from alignment.algorithms.grpo import GrpoConfig
    from alignment.chat.template import ensure_chat_template
    from alignment.config import TrainConfig, parse
    from alignment.data.load import load_rows
    from alignment.data.prompts import build_prompts
    from alignment.inspect_view import inspect_prompts, inspect_sft
    from alignment.models.load import load_config, load_tokenizer
    from alignment.yaml_files import read_yaml
    from recipes.grpo import GrpoRecipe
    from recipes.sft import SftRecipe

    arguments = ["--config", options.config, *options.overrides]
    samples_prompts = "rewards" in read_yaml(options.config)
    kinds = (GrpoRecipe, GrpoConfig) if samples_prompts else (SftRecipe,)
    recipe, *_, train, model = parse(*kinds, TrainConfig, ModelConfig, arguments=arguments)
    tokenizer = load_tokenizer(model.model_name_or_path or "")
    ensure_chat_template(tokenizer)
    rows = load_rows(recipe.dataset, recipe.dataset_split or None, recipe.max_rows or None)
    if samples_prompts:
        prompts = build_prompts(rows, tokenizer, max_prompt_length=recipe.max_prompt_length, source=recipe.dataset)
        inspect_prompts(prompts, tokenizer, max_prompt_length=recipe.max_prompt_length, samples=options.samples)
        return 0
    inspect_sft(
        rows,
        tokenizer,
        load_config(model.model_name_or_path or ""),
        max_length=recipe.max_length,
        batch_size=recipe.batch_size,
        max_tokens=train.max_tokens_per_micro_batch,
        epochs=recipe.epochs,
        overflow=recipe.overflow,
        train_on=recipe.train_on,
        empty_thinking=recipe.empty_thinking,
        bf16=train.bf16,
        gradient_checkpointing=train.gradient_checkpointing,
        samples=options.samples,
    )
    return 0
