"""The part of a response that is its answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_THINK_END, _THINK_START = "</think>", "<think>"
_FENCE = re.compile(r"^[ \t]*```([^\n]*)$", re.MULTILINE)


def outside_thinking(response: str) -> str | None:
    """The text after the last `</think>`, the whole response when there is no block, None when a block is unclosed.

    >>> outside_thinking("<think>hm</think> 4")
    ' 4'
    >>> outside_thinking("<think>hm") is None
    True
    """
    _, found, after = response.rpartition(_THINK_END)
    text = after if found else response
    return None if _THINK_START in text else text


def with_open_block(response: str, row: Mapping[str, Any]) -> str:
    """The response, behind a `<think>` when the prompt ended in one (column `think_opened`) and nothing closes it: then
    it is thinking from end to end.

    >>> with_open_block("hm, 4", {"think_opened": True}), with_open_block("hm</think>4", {"think_opened": True})
    ('<think>hm, 4', 'hm</think>4')
    """
    unclosed = row.get("think_opened") and _THINK_END not in response and not response.startswith(_THINK_START)
    return _THINK_START + response if unclosed else response


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of the closed fenced blocks, in order.

    >>> fenced_blocks("as\\n```json\\n{}\\n```\\n")
    [('json', '{}\\n')]
    """
    blocks = []
    opening = None
    for fence in _FENCE.finditer(text):
        if opening is None:
            opening = fence
        elif not fence[1].strip():
            language = re.match(r"[ \t]*([\w+-]*)", opening[1])
            blocks.append((language[1].lower() if language else "", text[opening.end() + 1 : fence.start()]))
            opening = None
    return blocks
