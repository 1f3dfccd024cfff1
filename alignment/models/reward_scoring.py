"""A reward model that scores completions: batched, packed, the prompt of a group once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from trl import ModelConfig

from alignment.chat.template import NO_TEMPLATE, stop_token_ids
from alignment.data.branches import Branch, BranchEncoder, Turns, shared_tree
from alignment.errors import UserError
from alignment.models.load_scalar import has_head, load_scalar
from alignment.models.scalar import END_TOKEN_KEY, ScalarModel
from alignment.models.score import add_scalars
from alignment.types import Tree

_COLUMN = "reward"


def end_token_of(model: ScalarModel, tokenizer: PreTrainedTokenizerBase, asked: str = "") -> str:
    """The token at which the reward is read: the one asked for, else the one that the checkpoint names, else the one
    with which the chat template ends an assistant turn, EOS without a template."""
    return end_token_in(model.base.config, tokenizer, asked)


def end_token_in(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, asked: str = "") -> str:
    """The same from the model's configuration alone."""
    named = asked or getattr(config, END_TOKEN_KEY, None)
    return named or str(tokenizer.convert_ids_to_tokens(stop_token_ids(tokenizer)[-1]))


@dataclass(slots=True)
class Scored:
    """rewards: one per completion, None where there is none. problems: what was wrong with how many of them."""

    rewards: list[float | None]
    problems: dict[str, int] = field(default_factory=dict)


class RewardScorer:
    """Rewards of completions, the same numbers as in training and in evaluation.

    max_length: longer branches (in tokens) are not scored. max_tokens: of one packed row; it sets memory, not numbers.
    """

    def __init__(
        self,
        model: ScalarModel,
        tokenizer: PreTrainedTokenizerBase,
        end_token: str = "",
        max_length: int | None = None,
        max_tokens: int = 16384,
    ):
        self.model = model.requires_grad_(False).eval()
        self.encoder = BranchEncoder(tokenizer, end_token_of(model, tokenizer, end_token))
        limit = getattr(model.base.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = max_length or limit
        self.max_tokens = max_tokens

    def __call__(
        self, prompts: Sequence[Turns], completions: Sequence[Turns], rows: Sequence[Mapping[str, Any]] | None = None
    ) -> Scored:
        """prompts, completions: messages or text, one of each per sample. rows: what else a sample's row holds
        (`tools` and `chat_template_kwargs` are read). Samples of one prompt share it wherever they stand.
        Raises UserError for messages when the tokenizer has no chat template."""
        texts = all(isinstance(turns, str) for turns in (*prompts, *completions))
        if not texts and self.encoder.tokenizer.chat_template is None:
            raise UserError(NO_TEMPLATE)
        given = rows or [{}] * len(completions)
        groups: dict[str, list[tuple[int, Branch]]] = {}
        scored = Scored([None] * len(completions))
        for i, (prompt, completion, row) in enumerate(zip(prompts, completions, given, strict=True)):
            try:
                (branch,) = self.encoder.encode(prompt, [completion], row)
            except UserError:
                problem = "malformed"
            else:
                problem = "too_long" if self.max_length and len(branch.token_ids) > self.max_length else ""
            if problem:
                scored.problems[problem] = scored.problems.get(problem, 0) + 1
            else:
                groups.setdefault(json.dumps(prompt, sort_keys=True, default=str), []).append((i, branch))
        # nothing is compared within a group, so that its branches need not stand in one row
        trees = [
            (replace(shared_tree([b for _, b in members]), atomic=False), [i for i, _ in members])
            for members in groups.values()
        ]
        add_scalars(self.model, [tree for tree, _ in trees], _COLUMN, self.max_tokens)
        for tree, places in trees:
            for place, reward in zip(places, _read(tree), strict=True):
                scored.rewards[place] = reward
        return scored


def _read(tree: Tree) -> list[float]:
    return [
        float(segment.columns[_COLUMN][np.flatnonzero(segment.scored)[0]])
        for segment in tree.segments
        if segment.scored is not None
    ]


def load_scorer(
    path: str,
    device: str = "",
    dtype: str = "auto",
    end_token: str = "",
    max_length: int | None = None,
    max_tokens: int = 16384,
) -> RewardScorer:
    """A scorer from a sequence-classification checkpoint: a folder or a hub name.

    device: empty = the current CUDA device, else the CPU. dtype: `auto` keeps the checkpoint's. Raises UserError for a
    checkpoint without a head, and as load_scalar does.
    """
    if not has_head(path):
        raise UserError(f"{path} is a language model without a reward head; train one with recipes/reward_model.py")
    model, tokenizer = load_scalar(ModelConfig(model_name_or_path=path, dtype=dtype))
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model.to(where)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise UserError(f"device: {where!r} cannot be used: {error}") from error
    return RewardScorer(model, tokenizer, end_token, max_length, max_tokens)
