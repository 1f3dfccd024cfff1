"""The texts of prompts and completions in either of TRL's forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Completion = str | Sequence[Mapping[str, Any]]


def completion_text(completion: Completion) -> str:
    """A plain completion as it is; of a conversational one the content of its last assistant message.

    >>> completion_text([{"role": "assistant", "content": "4"}])
    '4'

    Raises ValueError when there is no assistant message.
    """
    if isinstance(completion, str):
        return completion
    for message in reversed(completion):
        if message.get("role") == "assistant":
            return _content(message)
    raise ValueError("a conversational completion has no assistant message")


def prompt_text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """A plain prompt as it is; of a conversation the content of the last user message, "" without one.

    >>> prompt_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}])
    '2 + 2?'
    """
    if isinstance(prompt, str):
        return prompt
    return next((_content(message) for message in reversed(prompt) if message.get("role") == "user"), "")


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
