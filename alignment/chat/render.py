"""Rendering a conversation as text and cutting it exactly where the model starts and stops writing.

A template is a function from messages to text that promises nothing about prefixes. What inference sees before turn i
is `render(messages[:i], add_generation_prompt=True)`; what the model has to write is the rest of
`render(messages[:i + 1])`. Every trained turn is therefore rendered as the last one, where templates keep its
thinking, and the turns are joined by the text that stands between them. Each of these steps is verified.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from alignment.chat.messages import thinking_of
from alignment.errors import UserError

# Stands for the text of a turn while looking for what a template writes behind it.
PROBE = "TURNPROBE7f3a91c4"
EMPTY_THINKING = re.compile(r"(<think>)?\s*</think>\n{0,2}")
REMEDY = "Give the tokenizer another chat_template (for instance alignment.chat.template.CHATML)"


class TemplateProblem(UserError):
    """The template fails on these messages, or what inference sees is no prefix of what would be trained."""


@dataclass(frozen=True)
class Renderer:
    """A tokenizer's chat template with fixed variables (`tools`, `enable_thinking`, ...)."""

    tokenizer: PreTrainedTokenizerBase
    arguments: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None

    def __call__(self, messages: Sequence[Mapping[str, Any]], prompt: bool = False) -> str:
        """The text of the messages, with the header of the next assistant turn behind it when `prompt` is set."""
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=prompt,
                **self.arguments,
            )
        except (TemplateError, TypeError, ValueError) as error:  # a ValueError is about tools that are no schemas
            raise TemplateProblem(f"the chat template cannot render these messages: {error}") from error
        assert isinstance(text, str)
        return text

    def ended(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text of a conversation that ends with an assistant turn, as it stands when others follow: without the
        EOS that some templates (Phi-3's) put behind the last turn's own end token."""
        return self(messages).removesuffix(
            _final_eos(self.tokenizer, self.chosen_template, str(self.tokenizer.eos_token or ""))
        )

    @property
    def chosen_template(self) -> str:
        return self.template or self.tokenizer.get_chat_template(None, self.arguments.get("tools"))


@dataclass(frozen=True)
class Piece:
    """A stretch of rendered text; `message` is the index of the trained turn it is, -1 for context."""

    text: str
    message: int = -1


def cut_turns(
    render: Renderer, messages: Sequence[Mapping[str, Any]], trained: Sequence[int], masked: Collection[int]
) -> list[Piece]:
    """Context and trained turns in alternation, ending with the last trained turn. An empty thinking block is context
    in the turns `masked`, and part of the turn in the others.

    Turns that are not trained look as the template shows them in a history. Raises TemplateProblem when the template
    renders no exact prefix, drops the thinking of a trained turn or drops its tool calls.
    """
    pieces: list[Piece] = []
    for position, i in enumerate(trained):
        before, after = _prompt_and_turn(render, messages, i)
        context = before if position == 0 else _between(render, messages, trained[position - 1], i, before)
        _check_complete(messages[i], i, after)
        empty = EMPTY_THINKING.match(after) if i in masked else None
        if empty:
            context, after = context + empty[0], after[empty.end() :]
        pieces += [Piece(context), Piece(after, i)]
    return pieces


def _prompt_and_turn(render: Renderer, messages: Sequence[Mapping[str, Any]], i: int) -> tuple[str, str]:
    if i == 0:
        raise UserError(
            "the conversation starts with an assistant message, which no prompt leads to. Put a user or system message "
            'before it, or set "train": false on it'
        )
    before, full = render(messages[:i], prompt=True), render.ended(messages[: i + 1])
    if not full.startswith(before):
        raise TemplateProblem(
            f"the chat template shows message {i + 1} behind a different text than the prompt it is generated from "
            f"(the prompt ends with {before[-40:]!r}, the conversation with {full[-60:]!r}). {REMEDY}, or make "
            "the message fit the prompt: with a thinking block where it opens one, without where enable_thinking is off"
        )
    return before, full[len(before) :]


def _between(render: Renderer, messages: Sequence[Mapping[str, Any]], last: int, i: int, before: str) -> str:
    """The text between the end of trained turn `last` and the start of trained turn `i`."""
    ended = render.ended(messages[: last + 1])
    if before.startswith(ended):
        return before[len(ended) :]
    # The template shows the earlier turn differently once others follow (it strips thinking), so what follows the
    # turn is found behind a probe that stands in its place.
    bare = {key: value for key, value in messages[last].items() if key != "reasoning_content"}
    probed = [*messages[:last], {**bare, "content": PROBE}, *messages[last + 1 :]]
    as_last = render.ended(probed[: last + 1]).split(PROBE)
    as_history = render(probed[:i], prompt=True).split(PROBE)
    fits = len(as_last) == len(as_history) == 2 and as_history[1].startswith(as_last[1])
    if not fits or not ended.endswith(as_last[1]):
        raise TemplateProblem(
            f"the chat template changes message {last + 1} beyond its thinking when message {i + 1} follows, so both "
            f'cannot be trained in one row. {REMEDY}, or train_on: last_assistant, or "train": false on message '
            f"{last + 1}"
        )
    return as_history[1][len(as_last[1]) :]


def _check_complete(message: Mapping[str, Any], i: int, turn: str) -> None:
    if thinking_of(message) not in turn:
        raise TemplateProblem(f"the chat template drops the thinking of message {i + 1}. {REMEDY}")
    for call in message.get("tool_calls", ()):
        name = (call.get("function") or call).get("name", "")
        if name not in turn:
            raise TemplateProblem(f"the chat template drops the call of tool {name!r} in message {i + 1}. {REMEDY}")
    answer = message["content"].split("</think>")[-1].strip()
    if answer not in turn:
        raise TemplateProblem(f"the chat template changes or drops the content of message {i + 1}. {REMEDY}")


def assistant_header(render: Renderer) -> str:
    """What the template writes before an assistant turn, without thinking tags; empty when nothing separates it."""
    return _header(render.tokenizer, render.chosen_template)


@functools.lru_cache(maxsize=8)
def _final_eos(tokenizer: PreTrainedTokenizerBase, template: str, eos: str) -> str:
    """EOS if the template puts it behind the last turn's end token only, else nothing."""
    render = Renderer(tokenizer, template=template)
    turn = [{"role": "user", "content": "x"}, {"role": "assistant", "content": PROBE}]
    try:
        last = render(turn).rpartition(PROBE)[2]
        followed = render([*turn, turn[0]]).rpartition(PROBE)[2]
    except TemplateProblem:
        return ""
    bare = last.removesuffix(eos)
    return eos if bare.strip() and followed.startswith(bare) and not followed.startswith(last) else ""


@functools.lru_cache(maxsize=8)
def _header(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    render, question = Renderer(tokenizer, template=template), [{"role": "user", "content": PROBE}]
    try:
        text, prompt = render(question), render(question, prompt=True)
    except TemplateProblem:
        return ""
    return prompt[len(text) :].split("<think>")[0] if prompt.startswith(text) else ""


def split_behind(text: str, header: str) -> list[str]:
    """Cut a text behind every occurrence of the header."""
    parts = text.split(header) if header else [text]
    return [part + header for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def split_empty_thinking(turn: str) -> list[str]:
    """Cut a turn behind the empty thinking block that it begins with, if it does."""
    block = EMPTY_THINKING.match(turn)
    return [block[0], turn[block.end() :]] if block else [turn]


def text_after_turn(render: Renderer) -> str:
    """What the template writes behind the content of a final assistant turn; empty when it takes no plain text."""
    try:
        text = render.ended([{"role": "user", "content": "x"}, {"role": "assistant", "content": PROBE}])
    except TemplateProblem:
        return ""
    return text.rpartition(PROBE)[2]
