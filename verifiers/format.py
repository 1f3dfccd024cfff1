"""The `format` verifier: thinking block, answer tags and box, as a row asks for them.

Columns, all optional: `mode` ("thinking", the default, or "no_think"); `think_opened` (true when the prompt already
ends in `<think>`, so that the response starts inside the block); `answer_tags` and `boxed` (true: the answer must hold
exactly one `<answer>…</answer>`, or a `\\boxed{…}` with matched braces).

The score is 1 when every rule holds and 0 otherwise; the detail names the first broken rule.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from verifiers.registry import register_verifier
from verifiers.verdict import Verdict

_OPEN, _CLOSE = "<think>", "</think>"
_MODES = ("thinking", "no_think")
_BOX = re.compile(r"\\boxed\s*\{")


@register_verifier("format", optional=("mode", "think_opened", "answer_tags", "boxed"))
def format(response: str, row: Mapping[str, Any]) -> Verdict:
    r"""Exactly one thinking block, then a non-empty answer; with `mode: no_think` no block or an empty one.

    >>> format("<think>2 + 2 is 4</think>\n4", {}).status
    'pass'
    >>> format("4", {}).detail
    'the response has no <think>'
    >>> format("<think>\n\n</think>\n\n4", {"mode": "no_think"}).status
    'pass'
    >>> format(r"<think>easy</think> \boxed{4}", {"boxed": True}).status
    'pass'
    >>> format("<think>easy</think> <answer>4</answer>", {"answer_tags": True}).status
    'pass'

    Raises ValueError for an unknown mode.
    """
    mode = row.get("mode") or "thinking"
    if mode not in _MODES:
        raise ValueError(f"column 'mode' must be one of {', '.join(_MODES)}, got {mode!r}")
    text = _OPEN + response if row.get("think_opened") else response
    broken = _thinking_rule(text) if mode == "thinking" else _no_think_rule(text)
    broken = broken or _answer_rule(text.rpartition(_CLOSE)[2], row)
    return Verdict(0.0, "fail", broken) if broken else Verdict(1.0, "pass")


def _thinking_rule(text: str) -> str:
    """The first broken rule, or ""."""
    for tag in (_OPEN, _CLOSE):
        if text.count(tag) != 1:
            return f"the response has {'no' if tag not in text else 'more than one'} {tag}"
    if not text.lstrip().startswith(_OPEN):
        return f"text stands before {_OPEN}"
    thinking = text.partition(_OPEN)[2].partition(_CLOSE)
    if not thinking[1]:
        return f"{_CLOSE} stands before {_OPEN}"
    return "" if thinking[0].strip() else "the thinking block is empty"


def _no_think_rule(text: str) -> str:
    rest = re.sub(rf"\A\s*{_OPEN}\s*{_CLOSE}", "", text)
    return f"a thinking block in mode 'no_think' ({_OPEN} or {_CLOSE})" if _OPEN in rest or _CLOSE in rest else ""


def _answer_rule(answer: str, row: Mapping[str, Any]) -> str:
    if not answer.strip():
        return "nothing stands after the thinking block"
    if row.get("answer_tags"):
        content = re.search(r"<answer>(.*?)</answer>", answer, re.DOTALL)
        if answer.count("<answer>") != 1 or answer.count("</answer>") != 1 or not content or not content[1].strip():
            return "the answer needs exactly one non-empty <answer>…</answer>"
    if row.get("boxed") and not any(_is_closed(answer, match.end()) for match in _BOX.finditer(answer)):
        return r"the answer needs a \boxed{…}"
    return ""


def _is_closed(text: str, start: int) -> bool:
    """Whether the brace opened just before `start` closes again around something."""
    depth = 1
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return bool(text[start:i].strip())
    return False
