"""Reward models. `accelerate launch recipes/reward_model.py --config recipes/qwen1/reward_model.yaml`

Config, comparisons, model, algorithm, trainer: read from top to bottom, this is the method. Qwen1's two stages are two
runs: recipes/qwen1/pmp.yaml on votes, then recipes/qwen1/reward_model.yaml from its checkpoint, head included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

import recipes  # noqa: F401  refuses to start when a foreign package shadows ours
from alignment.accelerator import make_accelerator
from alignment.algorithms.reward_model import RewardModelConfig, RewardModeling, heldout_rewards
from alignment.config import TrainConfig, check_values, parse
from alignment.data.load import load_rows
from alignment.data.pairs import pairs_from_votes
from alignment.data.preference_rows import PreferenceReport, encode_preference_rows
from alignment.data.response_groups import groups_from_responses, is_response_record
from alignment.errors import UserError, about
from alignment.models.load import switch_dropout_off
from alignment.models.load_scalar import load_scalar
from alignment.models.reward_scoring import end_token_of
from alignment.models.scalar import END_TOKEN_KEY
from alignment.trainer import Evaluation, Trainer
from alignment.types import Tree
from recipes.common import run, write_settings

Say = Callable[[str], None]


@dataclass
class RewardModelRecipe:
    dataset: str = field(
        default="", metadata={"help": "Pairs, groups with labels, scored responses, or questions with voted answers."}
    )
    dataset_split: str = field(default="", metadata={"help": "Split of a hub data set or folder."})
    eval_dataset: str = field(default="", metadata={"help": "Held-out rows; empty = no evaluation."})
    eval_split: str = ""
    max_rows: int = field(default=0, metadata={"help": "Use the first rows only; 0 = all."})
    pairs_per_question: int = field(default=10, metadata={"help": "Pairs made of one question's voted answers."})
    max_length: int = field(default=2048, metadata={"help": "Tokens of a prompt with one branch."})
    overflow: Literal["drop", "error"] = "drop"
    end_token: str = field(
        default="", metadata={"help": "Where the reward is read; default: the token that ends an assistant turn."}
    )
    head_layers: int = field(default=1, metadata={"help": "Linear layers of a fresh head, 1 or 2."})
    batch_size: int = field(default=64, metadata={"help": "Pairs or groups per step, over all ranks."})
    epochs: float = 1.0

    def __post_init__(self):
        if not self.dataset:
            raise UserError("dataset is missing: a local file, a folder or a hub name")
        check_values(self, "1 or more", "batch_size", "pairs_per_question", "head_layers")
        check_values(self, "2 or more", "max_length")
        check_values(self, "above 0", "epochs")
        check_values(self, "0 or more", "max_rows")


KINDS = (RewardModelRecipe, RewardModelConfig, TrainConfig, ModelConfig)


def load_comparisons(
    recipe: RewardModelRecipe, tokenizer: PreTrainedTokenizerBase, source: str, split: str, seed: int, say: Say
) -> tuple[list[Tree], PreferenceReport]:
    """Trees of pairs and groups; votes and sampled responses become such rows first."""
    rows = load_rows(source, split or None, recipe.max_rows or None)
    with about(source):
        if "answers" in rows[0]:
            rows, votes = pairs_from_votes(rows, recipe.pairs_per_question, seed)
            say(f"{source}: {votes.summary()}")
        elif is_response_record(rows[0]):
            rows, responses = groups_from_responses(rows)
            say(f"{source}: {responses.summary()}")
        trees, report = encode_preference_rows(rows, tokenizer, recipe.max_length, recipe.overflow, recipe.end_token)
    say(f"{source}: {report.summary()}")
    return trees, report


def main(arguments: Sequence[str] | None = None) -> None:
    recipe, reward, train, model = parse(*KINDS, arguments=arguments)
    accelerator = make_accelerator(train)
    scalar, tokenizer = load_scalar(model, "token", recipe.head_layers, train.seed)
    switch_dropout_off(scalar)  # a comparison has to be one of the same function
    recipe.end_token = end_token_of(scalar, tokenizer, recipe.end_token)
    setattr(scalar.base.config, END_TOKEN_KEY, recipe.end_token)

    say = accelerator.print
    trees, _ = load_comparisons(recipe, tokenizer, recipe.dataset, recipe.dataset_split, train.seed, say)
    evaluation = None
    if recipe.eval_dataset:
        heldout, _ = load_comparisons(recipe, tokenizer, recipe.eval_dataset, recipe.eval_split, train.seed, say)
        budget = train.max_tokens_per_micro_batch
        evaluation = Evaluation(lambda: heldout_rewards(scalar, heldout, budget), "accuracy")

    algorithm = RewardModeling(trees, recipe.batch_size, train.seed, reward)
    write_settings(train.output_dir, recipe, reward, train, model)
    steps = train.max_steps or max(1, round(recipe.epochs * algorithm.steps_per_epoch))
    Trainer(accelerator, scalar, tokenizer, algorithm, train, steps, evaluation).train()


if __name__ == "__main__":
    run(main)
