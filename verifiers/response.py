"""The part of a response that is its answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_THINK_END, _THINK_START = "</think>", "<think>"
_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)


def split_thinking(response: str, think_opened: bool = False) -> tuple[str, str | None]:
    """The thinking and the answer, which is what follows the last `</think>` and None when a block is not closed.

    >>> split_thinking("<think>hm</think> 4"), split_thinking("4"), split_thinking("<think>hm")
    (('hm', ' 4'), ('', '4'), ('hm', None))
    """
    before, closed, after = response.rpartition(_THINK_END)
    if closed and _THINK_START not in after:
        return before.replace(_THINK_START, "", 1), after
    if think_opened or _THINK_START in response:
        return response.replace(_THINK_START, "", 1), None
    return "", response


def outside_thinking(response: str) -> str | None:
    """The answer alone, see split_thinking.

    >>> outside_thinking("<think>hm</think> 4")
    ' 4'
    """
    return split_thinking(response)[1]


def with_open_block(response: str, row: Mapping[str, Any]) -> str:
    """The response, behind a `<think>` when the prompt ended in one (column `think_opened`) and nothing closes it: then
    it is thinking from end to end.

    >>> with_open_block("hm, 4", {"think_opened": True}), with_open_block("hm</think>4", {"think_opened": True})
    ('<think>hm, 4', 'hm</think>4')
    """
    unclosed = row.get("think_opened") and _THINK_END not in response and not response.startswith(_THINK_START)
    return _THINK_START + response if unclosed else response


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """(first word after the fence in lower case, content) of every fenced block, as CommonMark reads them: an unclosed
    one ends with the text, and one that is set in, as in a list, has its content set in as far.

    >>> fenced_blocks("1. as\\n    ```JSON\\n    {}\\n    ```\\n~~~\\nend")
    [('json', '{}\\n'), ('', 'end')]
    """
    blocks = []
    position = 0
    while opening := _FENCE.search(text, position):
        indent, fence, info = opening.groups()
        if "`" in info:  # code within a line
            position = opening.end()
            continue
        deepest = max(3, len(indent))
        closing = re.compile(rf"^[ \t]{{0,{deepest}}}{re.escape(fence[0])}{{{len(fence)},}}[ \t\r]*$", re.MULTILINE)
        end = closing.search(text, opening.end())
        content = text[opening.end() + 1 : end.start() if end else len(text)]
        if indent:
            content = re.sub(rf"^[ \t]{{1,{len(indent)}}}", "", content, flags=re.MULTILINE)
        blocks.append(("".join(info.lower().split()[:1]), content))
        position = end.end() if end else len(text)
    return blocks
