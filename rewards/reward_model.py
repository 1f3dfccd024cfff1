"""A learned reward model as a reward: `reward_model:PATH`, or `{name: reward_model, path: PATH, …}` in YAML.

torch, transformers and `alignment` are imported when the reward is made, not with this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.completions import Completion
from rewards.from_verifier import RewardFn, rows_of_columns
from rewards.registry import register_reward_factory


@register_reward_factory("reward_model", optional=("tools", "chat_template_kwargs", "think_opened"))
def make_reward_model(
    path: str,
    device: str = "",
    dtype: str = "auto",
    end_token: str = "",
    max_length: int = 0,
    max_tokens: int = 16384,
) -> RewardFn:
    """A reward model's number for each completion's answer, its thinking left out.

    path: a sequence-classification checkpoint with one label, ours or others', in a folder or on the hub, or a folder
    of its LoRA adapters. device: where it runs, such as `cuda:1`; empty = the current CUDA device, which it shares with
    the policy, else the CPU. dtype: `auto` keeps the checkpoint's. end_token: where the reward is read; empty = what
    the checkpoint names, else the token that ends an assistant turn. max_length: completions that are longer together
    with their prompt are unscored; 0 = the model's own limit. max_tokens: of one packed row.

    Completions of one prompt are scored together, their prompt once. One whose thinking never ends gets the number of
    an empty answer. Through `log_metric` it reports how many
    completions were malformed or too long. Raises ValueError when the model cannot be loaded.
    """
    from alignment.errors import UserError
    from alignment.models.reward_scoring import load_scorer

    try:
        scorer = load_scorer(path, device, dtype, end_token, max_length or None, max_tokens)
    except UserError as error:
        raise ValueError(str(error)) from error

    def reward(prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        scored = scorer(prompts, completions, rows_of_columns(columns, len(completions)))
        log_metric = columns.get("log_metric")
        if log_metric is not None:
            for problem, times in scored.problems.items():
                log_metric(f"reward_model/{problem}", float(times))
        return scored.rewards

    return reward
