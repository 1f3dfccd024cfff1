"""Tool calls in Qwen's format: reading them from an assistant turn, and the tokens that answer them.

A turn calls tools in blocks `<tool_call>{"name": …, "arguments": {…}}</tool_call>` outside its thinking. What follows
the turn is whatever the chat template writes: the tools' outputs and the header of the next turn. The turn's own tokens
stay as they were sampled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignment.chat.masks import encode_prompt
from alignment.chat.messages import template_arguments
from alignment.chat.render import PROBE, Renderer, TemplateProblem, assistant_header, split_behind
from alignment.chat.thinking import parse_response
from alignment.chat.tokens import tokenize_pieces
from alignment.errors import UserError, shorten
from alignment.types import Prompt

_BLOCK = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """error: why the block could not be read, else ""."""

    name: str
    arguments: Mapping[str, Any]
    error: str = ""


def offered_tools(row: Mapping[str, Any]) -> list[str]:
    """The names of the tools that a row's column `tools` (JSON schemas, bare or under `function`) offers the model.

    Raises UserError for a schema without a name.
    """
    names = []
    for schema in template_arguments(row).get("tools", []):
        function = (schema.get("function") or schema) if isinstance(schema, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str):
            raise UserError(f"column tools needs schemas of functions, each with a name, got {shorten(schema)}")
        names.append(name)
    return names


def read_calls(turn: str, opened: bool = False) -> list[ToolCall]:
    """The calls of an assistant turn, in order. Blocks inside the thinking call nothing.

    opened: the prompt ended in `<think>`.

    >>> read_calls('<think>so</think><tool_call>\\n{"name": "add", "arguments": {"a": 1}}\\n</tool_call>')
    [ToolCall(name='add', arguments={'a': 1}, error='')]
    """
    answer = parse_response(turn, opened).answer
    return [_read_call(block) for block in _BLOCK.findall(answer or "")]


def _read_call(block: str) -> ToolCall:
    try:
        call = json.loads(block)
        name, arguments = call["name"], call.get("arguments") or {}
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        return ToolCall("", {}, f"the call is no JSON object with a name and arguments ({reason})")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return ToolCall("", {}, "the call needs a name (text) and arguments (an object)")
    return ToolCall(name, arguments)


def turn_message(turn: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    """The turn as a message, with its readable calls in `tool_calls` (TRL's format) and not in its text."""
    if not calls or any(call.error for call in calls):
        return {"role": "assistant", "content": turn}
    functions = [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]
    head = turn.rpartition("</think>")
    content = head[0] + head[1] + _BLOCK.sub("", head[2]).rstrip()
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"type": "function", "function": function} for function in functions],
    }


class ToolResponses:
    """The tokens between a sampled turn of one prompt and the next one.

    Raises UserError for a prompt whose tokens are not its messages in the tokenizer's template, and for a template that
    cannot show tool messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Prompt):
        self.tokenizer, self.prompt = tokenizer, prompt
        self.render = Renderer(tokenizer, self._arguments())
        self.header = assistant_header(self.render)
        # the text of tokens that structure a conversation must not reach the model from a tool
        self.structure = sorted({*_TAGS, *(token.content for token in tokenizer.added_tokens_decoder.values())})

    def can_follow(self, last_token: int, ends_turn: bool) -> bool:
        """Whether the template goes on behind a turn whose last token is this one. ends_turn: it is a stop token, which
        then has to be the one that the template ends turns with."""
        return not ends_turn or self._after(["x"]).startswith(self._text_of(last_token))

    def ids(self, last_token: int, ends_turn: bool, outputs: Sequence[str]) -> list[int]:
        """What follows such a turn, for the outputs of its calls. Behind one that a stop string ended, the template's
        end of turn comes first."""
        after, end = self._after(outputs), self._text_of(last_token)
        rest = after.removeprefix(end) if ends_turn else after
        pieces = tokenize_pieces(self.tokenizer, [end, *split_behind(rest, self.header)])
        return [i for ids in pieces[1:] for i in ids]

    def _after(self, outputs: Sequence[str]) -> str:
        """The text from the end of a turn to where the next one begins."""
        tools = [{"role": "tool", "content": self.harmless(output)} for output in outputs]
        text = self.render([*self.prompt.messages, {"role": "assistant", "content": PROBE}, *tools], prompt=True)
        _, found, after = text.rpartition(PROBE)
        if not found:
            raise TemplateProblem("the chat template drops an assistant turn that tool messages follow")
        return after

    def _text_of(self, token: int) -> str:
        return str(self.tokenizer.decode([token]))

    def harmless(self, output: str) -> str:
        """An output that spells no token with a meaning for the conversation's structure."""
        for token in self.structure:
            output = output.replace(token, f"{token[0]} {token[1:]}")
        return output

    def _arguments(self) -> dict[str, Any]:
        """The template's variables that the prompt was made with."""
        own = template_arguments(self.prompt.row)
        for more in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
            arguments = {**more, **own}
            if encode_prompt(self.tokenizer, self.prompt.messages, template_arguments=arguments) == list(
                self.prompt.token_ids
            ):
                return arguments
        raise UserError(
            f"prompt {self.prompt.id}: its tokens are not its messages in the tokenizer's chat template, so tool "
            "messages cannot continue it. Make prompts with build_prompts"
        )
