"""The text of a completion in either of TRL's forms."""

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
            content = message.get("content") or ""
            return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    raise ValueError("a conversational completion has no assistant message")
