"""`align inspect recipe.yaml`: shows what a recipe would train on, without training."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignment.inspect import MemoryEstimate
    from alignment.types import Prompt

NAMES = ("sft", "reward_model", "dpo", "online_dpo", "ppo", "grpo", "distill", "generate")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file of a recipe")
    parser.add_argument("--samples", type=int, default=3, help="rows or prompts to show; stands before the file")
    parser.add_argument("--recipe", choices=NAMES, help="the script it is for, known by its keys; before the file")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="--key value, as for the recipe")


def run(options: argparse.Namespace) -> int:
    """Raises UserError as the recipe would. Reads the model's configuration, not its weights."""
    from alignment.chat.template import ensure_chat_template
    from alignment.config import parse
    from alignment.models.load import load_tokenizer
    from alignment.models.load_scalar import has_head

    name, others = (options.recipe, []) if options.recipe else recipe_of(options.config, options.overrides)
    print(f"recipes/{name}.py" + f" (or --recipe {', '.join(others)})" * bool(others))
    configs = parse(*recipe_kinds()[name], arguments=["--config", options.config, *options.overrides])
    tokenizer = load_tokenizer(next(c for c in configs if hasattr(c, "model_name_or_path")).model_name_or_path or "")
    if name != "reward_model" or not has_head(tokenizer.name_or_path):
        ensure_chat_template(tokenizer)
    shown = Inspected(configs, tokenizer, options.samples)
    SHOW[name](shown)
    shown.show_spread()
    return 0


# --- which recipe -----------------------------------------------------------------------------------------------------


def recipe_kinds() -> dict[str, tuple[type, ...]]:
    """The settings of each recipe script."""
    from recipes import distill, dpo, generate, grpo, online_dpo, ppo, reward_model, sft

    return dict(
        zip(NAMES, (m.KINDS for m in (sft, reward_model, dpo, online_dpo, ppo, grpo, distill, generate)), strict=True)
    )


def recipe_of(config: str, overrides: list[str]) -> tuple[str, list[str]]:
    """The script that knows all keys of a file, and what others do: the one that the file is named after, else the
    first of NAMES. When none knows all, the nearest, which will say what is wrong with the keys."""
    from alignment.yaml_files import read_yaml

    keys = {str(key) for key in read_yaml(config)} - {"env"}
    keys |= {part[2:].split("=", 1)[0].replace("-", "_") for part in overrides if part.startswith("--")}
    known = {
        name: {f.name for kind in kinds for f in dataclasses.fields(kind)} for name, kinds in recipe_kinds().items()
    }
    fitting = [name for name in NAMES if keys <= known[name]]
    named = sorted((name for name in fitting or NAMES if name in Path(config).stem), key=len)
    if named:
        return named[-1], []
    if not fitting:
        return max(NAMES, key=lambda name: len(keys & known[name])), []
    return fitting[0], fitting[1:]


# --- what is shown ----------------------------------------------------------------------------------------------------


class Inspected:
    """The settings of a recipe, its tokenizer, and how many rows to show."""

    def __init__(self, configs: Sequence[Any], tokenizer: PreTrainedTokenizerBase, samples: int):
        from alignment.models.load import load_config

        self.recipe, self.tokenizer, self.samples = configs[0], tokenizer, samples
        self.settings = {type(config).__name__: config for config in configs}
        self.model: Any = self.settings["ModelConfig"]
        self.train: Any = self.settings.get("TrainConfig")  # none where nothing trains
        self.config = load_config(self.model.model_name_or_path or "")
        self.estimate: MemoryEstimate | None = None
        self.micro_batches = 0.0  # of an optimizer step in one process

    def memory(self, scalar: bool = False, frozen_copies: int = 0) -> Callable[[int, int], MemoryEstimate]:
        """Of the recipe's model, for the tokens of its largest packed row and the most scored positions in one."""
        from alignment.inspect import count_adapters, estimate_memory

        def estimate(tokens: int, scored: int) -> MemoryEstimate:
            self.estimate = estimate_memory(
                self.config,
                tokens,
                scored,
                parameter_bytes=self.parameter_bytes,
                trainable_parameters=count_adapters(self.config, self.model, scalar),
                bf16=self.train.bf16,
                gradient_checkpointing=self.train.gradient_checkpointing,
                activation_offload=self.train.activation_offload,
                scalar=scalar,
                frozen_copies=0 if self.model.use_peft else frozen_copies,
            )
            return self.estimate

        return estimate

    @property
    def parameter_bytes(self) -> int:
        return 2 if self.model.dtype in ("bfloat16", "float16") else 4

    def show_spread(self) -> None:
        """Memory and traffic per GPU under every configuration, where something trains."""
        if self.estimate is None:
            return
        from rich.console import Console

        from alignment.memory_plan import model_sizes, spread_table

        own = self.estimate.activations + self.estimate.head + self.estimate.frozen_copies
        counted = (part // self.parameter_bytes for part in (self.estimate.parameters, self.estimate.gradients))
        sizes = dataclasses.replace(model_sizes(self.config), **dict(zip(("parameters", "trainable"), counted)))
        table = spread_table(sizes, own, self.train.bf16, self.parameter_bytes, self.micro_batches, self.estimate.host)
        Console(width=120).print(table)

    def show_rows(self, trees: Any, report: Any, memory: Callable[[int, int], MemoryEstimate], batch_size: int) -> None:
        """batch_size: rows per step over all processes."""
        from alignment.inspect_view import inspect_rows

        plan = inspect_rows(
            trees,
            report,
            self.tokenizer,
            memory,
            max_length=self.recipe.max_length,
            batch_size=batch_size,
            max_tokens=self.train.max_tokens_per_micro_batch,
            epochs=self.recipe.epochs,
            max_steps=self.train.max_steps,
            samples=self.samples,
        )
        self.micro_batches += plan.micro_batches_per_step

    def count_samples(self, prompts: Sequence[Prompt], prompts_per_step: float, group_size: int) -> None:
        """What a step trains of its samples, when they are as long as they can be."""
        prompt = sum(len(p.token_ids) for p in prompts) / len(prompts)
        tokens = prompts_per_step * (prompt + group_size * self.recipe.max_tokens)
        self.micro_batches += tokens / self.train.max_tokens_per_micro_batch

    def prompts(self) -> list[Prompt]:
        from recipes.rollouts import load_prompts

        return load_prompts(self.recipe, self.tokenizer)


def show_sft(shown: Inspected) -> None:
    from recipes.sft import load_trees

    recipe = shown.recipe
    trees, report = load_trees(recipe, shown.tokenizer, recipe.dataset, recipe.dataset_split)
    whole = shown.memory()

    def own_part(tokens: int, scored: int) -> MemoryEstimate:  # scored positions may all be on one rank
        return whole(-(-tokens // recipe.sequence_parallel_size), scored)

    shown.show_rows(trees, report, own_part, recipe.batch_size)
    shown.micro_batches *= recipe.sequence_parallel_size  # every rank has a part of each


def show_reward_model(shown: Inspected) -> None:
    from alignment.models.reward_scoring import end_token_in
    from recipes.reward_model import load_comparisons

    recipe = shown.recipe
    recipe.end_token = end_token_in(shown.config, shown.tokenizer, recipe.end_token)
    print(f"The reward is read at {recipe.end_token!r}")
    found = load_comparisons(recipe, shown.tokenizer, recipe.dataset, recipe.dataset_split, shown.train.seed, print)
    shown.show_rows(*found, shown.memory(scalar=True), recipe.batch_size)


def show_dpo(shown: Inspected) -> None:
    from recipes.dpo import load_pairs

    recipe = shown.recipe
    found = load_pairs(recipe, shown.tokenizer, recipe.dataset, recipe.dataset_split, print)
    shown.show_rows(*found, shown.memory(frozen_copies=int(recipe.reference == "on_the_fly")), recipe.batch_size)


def show_online_dpo(shown: Inspected) -> None:
    _show_sampling(shown, shown.settings["OnlineDpoConfig"], shown.memory(frozen_copies=1), trained=2)


def show_ppo(shown: Inspected) -> None:
    ppo = shown.settings["PpoConfig"]
    policy, value = shown.memory(frozen_copies=int(ppo.kl_coef > 0)), shown.memory(scalar=True)

    def both(tokens: int, scored: int) -> MemoryEstimate:
        shown.estimate = policy(tokens, scored) + value(tokens, scored)
        return shown.estimate

    own_backbone = shown.settings["PpoRecipe"].value_model != "head"
    _show_sampling(shown, ppo, both if own_backbone else policy, ppo.group_size, ppo.value_warmup_steps)


def show_grpo(shown: Inspected) -> None:
    grpo = shown.settings["GrpoConfig"]
    _show_sampling(shown, grpo, shown.memory(frozen_copies=int(grpo.beta > 0)), grpo.group_size)


def _show_sampling(
    shown: Inspected, settings: Any, memory: Callable[[int, int], MemoryEstimate], trained: int, warm_up: int = 0
) -> None:
    """trained: of a prompt's samples."""
    from alignment.inspect_view import inspect_episodes, inspect_prompts

    recipe, prompts = shown.recipe, shown.prompts()
    inspect_prompts(prompts, shown.tokenizer, max_prompt_length=recipe.max_prompt_length, samples=shown.samples)
    steps = shown.train.max_steps or warm_up + recipe.steps(prompts, settings.prompts_per_step)
    rewards = [f"{spec.weight:g} x {spec.name}" for spec in recipe.specs()]
    tokens = shown.train.max_tokens_per_micro_batch  # full rows of completions: the most it can be
    per_step = settings.prompts_per_step, settings.group_size
    shown.count_samples(prompts, settings.prompts_per_step / getattr(settings, "mini_batches", 1), trained)
    inspect_episodes(steps, *per_step, recipe.max_tokens, rewards, memory(tokens, tokens))


def show_distill(shown: Inspected) -> None:
    """The rows with the teacher's responses and the student's prompts, whichever there are."""
    from alignment.data.load import load_rows
    from alignment.data.sft_rows import encode_sft_rows
    from alignment.inspect_view import inspect_episodes, inspect_prompts
    from recipes.distill import load_prompts

    recipe, distill = shown.recipe, shown.settings["DistillConfig"]
    if distill.rows_per_step:
        rows = load_rows(recipe.off_policy_dataset, recipe.off_policy_split or None, recipe.max_rows or None)
        found = encode_sft_rows(rows, shown.tokenizer, recipe.max_length, recipe.overflow)
        shown.show_rows(*found, shown.memory(), distill.rows_per_step)
    if distill.prompts_per_step:
        prompts = load_prompts(recipe, distill, shown.tokenizer, None)
        inspect_prompts(prompts, shown.tokenizer, max_prompt_length=recipe.max_prompt_length, samples=shown.samples)
        steps = shown.train.max_steps or recipe.steps(prompts, distill.prompts_per_step)
        shown.count_samples(prompts, distill.prompts_per_step, distill.group_size)
        inspect_episodes(steps, distill.prompts_per_step, distill.group_size, recipe.max_tokens)


def show_generate(shown: Inspected) -> None:
    from alignment.inspect_view import inspect_prompts
    from recipes.rollouts import load_prompts

    recipe = shown.recipe
    prompts = load_prompts(recipe.rollouts(), shown.tokenizer)
    inspect_prompts(prompts, shown.tokenizer, max_prompt_length=recipe.max_prompt_length, samples=shown.samples)
    print(f"{len(prompts):,} prompts x {recipe.samples} samples of at most {recipe.max_tokens:,} tokens")


SHOW: dict[str, Callable[[Inspected], None]] = {
    "sft": show_sft,
    "reward_model": show_reward_model,
    "dpo": show_dpo,
    "online_dpo": show_online_dpo,
    "ppo": show_ppo,
    "grpo": show_grpo,
    "distill": show_distill,
    "generate": show_generate,
}
