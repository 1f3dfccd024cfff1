"""Offline DPO. `accelerate launch recipes/dpo.py --config recipes/qwen2.5/dpo.yaml`

Config, pairs, model, reference, algorithm, trainer: read from top to bottom, this is the method.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

import recipes  # noqa: F401  refuses to start when a foreign package shadows ours
from alignment.accelerator import make_accelerator
from alignment.algorithms.dpo import Dpo, DpoConfig, check_pairs, heldout_pairs
from alignment.algorithms.reference import Reference, precompute
from alignment.config import TrainConfig, check_values, parse
from alignment.data.load import load_rows
from alignment.data.preference_rows import PreferenceReport, encode_preference_rows
from alignment.distributed import rank, world_size
from alignment.errors import UserError, about
from alignment.fingerprint import fingerprint, weights_fingerprint
from alignment.models import Policy
from alignment.models.load import load_policy, switch_dropout_off
from alignment.optim.online_merging import OnlineMergingConfig, make_merging_optimizer
from alignment.trainer import Evaluation, Trainer
from alignment.types import Tree
from recipes.common import run, write_settings


@dataclass
class DpoRecipe:
    dataset: str = field(default="", metadata={"help": "Rows with `prompt`, `chosen` and `rejected`."})
    dataset_split: str = field(default="", metadata={"help": "Split of a hub data set or folder."})
    eval_dataset: str = field(default="", metadata={"help": "Held-out pairs; empty = no evaluation."})
    eval_split: str = ""
    max_rows: int = field(default=0, metadata={"help": "Use the first rows only; 0 = all."})
    max_length: int = field(default=2048, metadata={"help": "Tokens of a prompt with either of its branches."})
    overflow: Literal["truncate", "drop", "error"] = "truncate"
    batch_size: int = field(default=128, metadata={"help": "Pairs per step, over all ranks."})
    epochs: float = 1.0
    reference: Literal["precompute", "on_the_fly"] = field(
        default="precompute",
        metadata={"help": "Score all pairs once before training, or those of each step (a second model unless LoRA)."},
    )
    reference_file: str = field(default="", metadata={"help": "Default: reference_logprobs.jsonl in output_dir."})

    def __post_init__(self):
        if not self.dataset:
            raise UserError("dataset is missing: a local file, a folder or a hub name")
        check_values(self, "1 or more", "batch_size")
        check_values(self, "2 or more", "max_length")
        check_values(self, "above 0", "epochs")
        check_values(self, "0 or more", "max_rows")


KINDS = (DpoRecipe, DpoConfig, OnlineMergingConfig, TrainConfig, ModelConfig)


def load_pairs(
    recipe: DpoRecipe, tokenizer: PreTrainedTokenizerBase, source: str, split: str, say: Callable[[str], None]
) -> tuple[list[Tree], PreferenceReport]:
    rows = load_rows(source, split or None, recipe.max_rows or None)
    with about(source):
        trees, report = encode_preference_rows(rows, tokenizer, recipe.max_length, recipe.overflow)
    say(f"{source}: {report.summary()}")
    check_pairs(trees, scored=False)
    return trees, report


def make_reference(recipe: DpoRecipe, train: TrainConfig, policy: Policy, use_peft: bool) -> Reference:
    """The starting model: with LoRA the base of the policy, on the fly a copy of it, and before training itself."""
    other = None if use_peft else policy
    if recipe.reference == "on_the_fly" and not use_peft:
        other = copy.deepcopy(policy).requires_grad_(False).eval()
    return Reference(policy, other, train.max_tokens_per_micro_batch)


def main(arguments: Sequence[str] | None = None) -> None:
    recipe, dpo, merging, train, model = parse(*KINDS, arguments=arguments)
    accelerator = make_accelerator(train)
    policy, tokenizer = load_policy(model)
    switch_dropout_off(policy)  # policy and reference have to be the same function at the start
    trees, _ = load_pairs(recipe, tokenizer, recipe.dataset, recipe.dataset_split, accelerator.print)
    heldout: list[Tree] = []
    if recipe.eval_dataset:
        heldout, _ = load_pairs(recipe, tokenizer, recipe.eval_dataset, recipe.eval_split, accelerator.print)

    policy.to(accelerator.device)
    reference = make_reference(recipe, train, policy, model.use_peft)
    with accelerator.autocast():
        if recipe.reference == "precompute":
            path = Path(recipe.reference_file or Path(train.output_dir) / "reference_logprobs.jsonl")
            # new adapters are off in the reference, those of model_name_or_path are part of it
            start = fingerprint(weights_fingerprint(policy, adapters=not model.use_peft), train.bf16)
            precompute([*trees, *heldout], reference, path, start, accelerator.print)
        else:
            reference(heldout[rank() :: world_size()])

    evaluation = None
    if heldout:
        budget = train.max_tokens_per_micro_batch
        evaluation = Evaluation(lambda: heldout_pairs(policy, heldout, dpo, budget), "rewards/accuracies")
    on_the_fly = reference if recipe.reference == "on_the_fly" else None
    algorithm = Dpo(trees, recipe.batch_size, train.seed, dpo, on_the_fly)
    write_settings(train.output_dir, recipe, dpo, merging, train, model)
    steps = train.max_steps or max(1, round(recipe.epochs * algorithm.steps_per_epoch))
    optimizer = make_merging_optimizer(policy, train, merging)
    Trainer(accelerator, policy, tokenizer, algorithm, train, steps, evaluation, optimizer).train()


if __name__ == "__main__":
    run(main)
