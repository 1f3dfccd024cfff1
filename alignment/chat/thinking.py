"""Thinking modes of Qwen3-style models: the flags `/think` and `/no_think`, and what of a response is thinking.

Qwen3 (arXiv 2505.09388, section 4.3): a flag in a user or system turn chooses the mode of the answers behind it, the
last one counts, and without a flag the model thinks. The template variable `enable_thinking=False` puts the empty block
into the prompt, whatever the flags say; after `/no_think` the model writes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from alignment.chat.messages import thinking_of
from alignment.errors import UserError

Mode = Literal["thinking", "no_think"]

OPEN, CLOSE = "<think>", "</think>"
EMPTY_BLOCK = f"{OPEN}\n\n{CLOSE}\n\n"
FLAGS: dict[Mode, str] = {"thinking": "/think", "no_think": "/no_think"}
_FLAG = re.compile(r"(?<!\S)/(no_)?think(?!\S)")
_TAIL = 16  # tokens: more than an opening tag and the white space behind it take


def last_flag(messages: Sequence[Mapping[str, Any]]) -> Mode | None:
    """The mode that the last flag of the user and system turns asks for; None without a flag.

    A flag stands alone, between white space: `/no_think` in a path or a sentence's `"/no_think"` is none.
    """
    for message in reversed(messages):
        if message["role"] in ("user", "system"):
            flags = _FLAG.findall(message.get("content") or "")
            if flags:
                return "no_think" if flags[-1] else "thinking"
    return None


def mode_of(messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any] | None = None) -> Mode:
    """The mode of the answer to these messages. arguments: the template's variables."""
    if (arguments or {}).get("enable_thinking") is False:
        return "no_think"
    return last_flag(messages) or "thinking"


def as_flags_ask(
    messages: Sequence[Mapping[str, Any]], trained: Sequence[int], arguments: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], set[int]]:
    """The messages, with the empty block before each trained answer that a flag asks not to think for; and these
    answers. With `enable_thinking=False` the block is the template's business, and there are none.

    Raises UserError when such an answer thinks.
    """
    shown = [dict(message) for message in messages]
    if arguments.get("enable_thinking") is False:
        return shown, set()
    flagged = {i for i in trained if last_flag(messages[:i]) == "no_think"}
    for i in flagged:
        if thinking_of(messages[i]):
            raise UserError(
                f"message {i + 1} thinks, although /no_think is the last flag before it: remove its thinking, or write "
                "/think behind that flag"
            )
        answer = messages[i]["content"].rpartition(CLOSE)[2].lstrip("\n")
        shown[i] = {**shown[i], "content": EMPTY_BLOCK + answer}
    return shown, flagged


def opens_thinking(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> bool:
    """Whether a prompt ends inside a thinking block, so that the response begins there."""
    return str(tokenizer.decode(list(token_ids[-_TAIL:]))).rstrip().endswith(OPEN)


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """thinking: without its tags, "" when there is none. answer: None when the thinking never ends. clean: at most one
    block, with both tags, and nothing before it."""

    thinking: str
    answer: str | None
    clean: bool


def parse_response(text: str, opened: bool = False) -> ParsedResponse:
    """Thinking and answer of a response. opened: the prompt ended in `<think>` (see `opens_thinking`).

    The answer is what follows the last `</think>`. Tags that are missing or repeated are no reason to lose it: text
    before a `</think>` is thinking even where no block was opened.

    >>> parse_response("<think>\\ntwo and two\\n</think>\\n\\n4")
    ParsedResponse(thinking='two and two', answer='4', clean=True)
    >>> parse_response("two and two</think>4")
    ParsedResponse(thinking='two and two', answer='4', clean=False)
    >>> parse_response("<think>two").answer is None
    True
    """
    whole = OPEN + text if opened else text
    before, closed, after = whole.rpartition(CLOSE)
    if OPEN in after or (closed == "" and OPEN in whole):
        return ParsedResponse(_without_tags(whole), None, False)
    clean = whole.count(OPEN) == whole.count(CLOSE) <= 1 and (not closed or before.lstrip().startswith(OPEN))
    return ParsedResponse(_without_tags(before), after.strip(), clean)


def _without_tags(text: str) -> str:
    return text.replace(OPEN, "").replace(CLOSE, "").strip()
