"""Supervised fine-tuning. `accelerate launch recipes/sft.py --config recipes/qwen2.5/sft.yaml`

Config, rows, model, algorithm, trainer: read from top to bottom, this is the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from trl import ModelConfig

import recipes  # noqa: F401  refuses to start when a foreign package shadows ours
from alignment.accelerator import make_accelerator
from alignment.algorithms.sft import Sft, heldout_loss
from alignment.config import TrainConfig, check_values, parse
from alignment.data.load import load_rows
from alignment.data.sft_rows import encode_sft_rows
from alignment.errors import UserError, about
from alignment.models.load import load_policy
from alignment.models.rope import RopeConfig, check_length
from alignment.packing.sequence_parallel import make_sequence_group
from alignment.trainer import Evaluation, Trainer
from recipes.common import run, write_settings


@dataclass
class SftRecipe:
    dataset: str = field(default="", metadata={"help": "Local file, folder or hub name of the training rows."})
    dataset_split: str = field(default="", metadata={"help": "Split of a hub data set or folder."})
    eval_dataset: str = field(default="", metadata={"help": "Held-out rows; empty = no evaluation."})
    eval_split: str = ""
    max_rows: int = field(default=0, metadata={"help": "Use the first rows only; 0 = all."})
    max_length: int = 2048
    overflow: Literal["truncate", "drop", "error"] = "truncate"
    train_on: Literal["all_assistant", "last_assistant"] = "all_assistant"
    empty_thinking: Literal["flagged", "masked", "scored"] = field(
        default="flagged", metadata={"help": "Which empty thinking blocks carry loss: those that /no_think asks for."}
    )
    batch_size: int = field(default=128, metadata={"help": "Rows per step, over all ranks."})
    epochs: float = 1.0
    sequence_parallel_size: int = field(
        default=1, metadata={"help": "Processes that share every packed row, for rows that do not fit one GPU."}
    )

    def __post_init__(self):
        if not self.dataset:
            raise UserError("dataset is missing: a local file, a folder or a hub name")
        check_values(self, "1 or more", "batch_size")
        check_values(self, "2 or more", "max_length")
        check_values(self, "1 or more", "sequence_parallel_size")
        check_values(self, "above 0", "epochs")
        check_values(self, "0 or more", "max_rows")


KINDS = (SftRecipe, RopeConfig, TrainConfig, ModelConfig)


def load_trees(recipe: SftRecipe, tokenizer, source: str, split: str):
    rows = load_rows(source, split or None, recipe.max_rows or None)
    with about(source):
        return encode_sft_rows(
            rows, tokenizer, recipe.max_length, recipe.overflow, recipe.train_on, recipe.empty_thinking
        )


def main(arguments: Sequence[str] | None = None) -> None:
    recipe, rope, train, model = parse(*KINDS, arguments=arguments)
    accelerator = make_accelerator(train)
    policy, tokenizer = load_policy(model, rope)
    check_length(policy.base.config, recipe.max_length)
    trees, report = load_trees(recipe, tokenizer, recipe.dataset, recipe.dataset_split)
    accelerator.print(report.summary())
    group = make_sequence_group(recipe.sequence_parallel_size, policy.base.config.num_attention_heads)
    algorithm = Sft(trees, recipe.batch_size, train.seed, group)
    evaluation = None
    if recipe.eval_dataset:
        heldout, report = load_trees(recipe, tokenizer, recipe.eval_dataset, recipe.eval_split)
        accelerator.print(f"held out: {report.summary()}")
        budget = train.max_tokens_per_micro_batch
        evaluation = Evaluation(lambda: heldout_loss(policy, heldout, budget, group), "loss", False)
    write_settings(train.output_dir, recipe, rope, train, model)
    steps = train.max_steps or max(1, round(recipe.epochs * algorithm.steps_per_epoch))
    Trainer(accelerator, policy, tokenizer, algorithm, train, steps, evaluation, group=group).train()


if __name__ == "__main__":
    run(main)
