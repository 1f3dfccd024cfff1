"""A tiny model that has learned by heart to ask a calculator and to answer from what it says, for tests of episodes."""

from __future__ import annotations

import functools
from typing import Any

import torch

from alignment.chat.masks import encode_messages
from alignment.data.prompts import build_prompts
from alignment.models import Policy
from alignment.packing import cut
from alignment.types import Prompt, Segment, Tree
from tests.tiny import tiny_model, tiny_tokenizer

PROBLEMS = {"12 * 12": "144", "17 * 4": "68", "48 - 24": "24"}


def question(expression: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"What is {expression}?"}]


def dialogue(expression: str, result: str) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": expression}}}
    return [
        *question(expression),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": result},
        {"role": "assistant", "content": f"The answer is {result}."},
    ]


def prompts(**columns: Any) -> list[Prompt]:
    rows = [{"id": f"q{i}", "prompt": question(e), "answer": PROBLEMS[e], **columns} for i, e in enumerate(PROBLEMS)]
    return build_prompts(rows, tiny_tokenizer(), max_prompt_length=500)


@functools.cache
def _trained_weights(**overrides: Any) -> dict[str, torch.Tensor]:
    tokenizer, policy = tiny_tokenizer(), Policy(tiny_model("qwen3", seed=1, **overrides))
    chats = [encode_messages(tokenizer, dialogue(*problem)) for problem in PROBLEMS.items()]
    (micro,) = cut([Tree([Segment(chat.token_ids, scored=chat.loss_mask)]) for chat in chats], 10_000)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=4e-3)
    for _ in range(90):
        loss = -policy(micro).logprobs_N.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    return {name: p.detach().clone() for name, p in policy.model.state_dict().items()}


def calling_model(**overrides: Any):
    """A model that calls the calculator for every problem, mostly. Each call gives a model of its own."""
    model = tiny_model("qwen3", seed=1, **overrides)
    model.load_state_dict(_trained_weights(**overrides))
    return model
