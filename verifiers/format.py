"""The `format` verifier: thinking block, answer tags, box and language, as a row asks for them.

Columns, all optional: `mode` ("thinking", the default, or "no_think"); `think_opened` (true when the prompt already
ends in `<think>`, so that the response starts inside the block); `answer_tags` and `boxed` (true: the answer must hold
exactly one `<answer>…</answer>`, or a `\\boxed{…}` with matched braces); `answer_language` and `thinking_language`
(codes such as en or zh: that part must not mix scripts, see `verifiers.language` for what is counted) with
`max_foreign_share` (0 to 1: how much of its words may be in other scripts; default none, but 0.3 for words in Latin
letters in a text of another script).

The score is 1 when every rule holds and 0 otherwise; the detail names the first broken rule.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from verifiers.language import language_mix, mixing
from verifiers.registry import gold_text, register_verifier
from verifiers.response import split_thinking
from verifiers.scripts import scripts_of
from verifiers.verdict import Verdict

_OPEN, _CLOSE = "<think>", "</think>"
_MODES = ("thinking", "no_think")
_BOX = re.compile(r"\\boxed\s*\{")


_LANGUAGE_COLUMNS = ("answer_language", "thinking_language", "max_foreign_share")


def _gold_in_form(gold: Any, row: Mapping[str, Any]) -> str:
    text = gold_text(gold)
    if row.get("boxed") and not _BOX.search(text):
        text = f"\\boxed{{{text}}}"
    if row.get("answer_tags"):
        text = f"<answer>{text}</answer>"
    return text if row.get("mode") == "no_think" else f"{_OPEN}\n…\n{_CLOSE}\n\n{text}"


@register_verifier(
    "format",
    optional=("mode", "think_opened", "answer_tags", "boxed", *_LANGUAGE_COLUMNS),
    gold_response=_gold_in_form,
)
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
    >>> format("<think>easy</think> The answer is 四.", {"answer_language": "en"}).detail
    "answer: 1 of 4 words in another script (Han), for instance '四'"

    Raises ValueError for an unknown mode or language and a share outside 0 to 1.
    """
    mode = row.get("mode") or "thinking"
    if mode not in _MODES:
        raise ValueError(f"column 'mode' must be one of {', '.join(_MODES)}, got {mode!r}")
    _check_language_columns(row)
    text = _OPEN + response if row.get("think_opened") else response
    broken = _thinking_rule(text) if mode == "thinking" else _no_think_rule(text)
    broken = broken or _answer_rule(text.rpartition(_CLOSE)[2], row) or _language_rule(text, row)
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


def _check_language_columns(row: Mapping[str, Any]) -> None:
    for column in ("answer_language", "thinking_language"):
        if row.get(column):
            scripts_of(row[column])
    share = row.get("max_foreign_share")
    if share is not None and not 0 <= share <= 1:
        raise ValueError(f"column 'max_foreign_share' must be in [0, 1], got {share!r}")


def _language_rule(text: str, row: Mapping[str, Any]) -> str:
    for part, content in zip(("thinking", "answer"), split_thinking(text)):
        language = row.get(f"{part}_language")
        broken = mixing(language_mix(content or "", language, row), row.get("max_foreign_share")) if language else ""
        if broken:
            return f"{part}: {broken}"
    return ""


def _is_closed(text: str, start: int) -> bool:
    """Whether the brace opened just before `start` closes again around something."""
    depth = 1
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return bool(text[start:i].strip())
    return False
