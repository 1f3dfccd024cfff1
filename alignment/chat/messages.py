"""Checking messages and deciding which turns are trained."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from alignment.errors import UserError

TrainOn = Literal["all_assistant", "last_assistant"]

THINKING = re.compile(r"<think>(.*?)</think>", re.DOTALL)
CONTROL_KEYS = ("weight", "train")


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Messages without empty fields, their content as text (a list of text parts is joined).

    Raises UserError for anything that is not a list of {"role": str, "content": str | None, ...}.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(f"messages must be a non-empty list of {{role, content}}, got {_short(messages)}")
    return [_check_message(i, message) for i, message in enumerate(messages, 1)]


def _check_message(number: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        hint = " (rename from/value to role/content)" if isinstance(message, Mapping) and "from" in message else ""
        raise UserError(f"message {number} must be an object with a role and a content, got {_short(message)}{hint}")
    kept = {key: value for key, value in message.items() if value is not None}
    content = kept.get("content")
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        kept["content"] = "".join(part["text"] for part in content)
    elif not isinstance(content, str | None):
        raise UserError(f"the content of message {number} must be text, got {_short(content)}")
    if content is None:
        if not kept.get("tool_calls") and not kept.get("reasoning_content"):
            raise UserError(f"message {number} ({kept['role']}) has neither content nor tool calls")
        kept["content"] = ""
    return kept


def turn_weights(messages: Sequence[Mapping[str, Any]], train_on: TrainOn) -> list[float]:
    """The loss weight of every message: 0 for all but the trained assistant turns.

    `weight` (default 1) scales a turn, `train: false` switches it off. Raises UserError for a weight that is negative
    or not a number, and for either key where it would have no effect: on a message that is not the assistant's.
    """
    assistant = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if train_on not in ("all_assistant", "last_assistant"):
        raise UserError(f"train_on must be all_assistant or last_assistant, got {train_on!r}")
    trained = set(assistant if train_on == "all_assistant" else assistant[-1:])
    weights = []
    for i, message in enumerate(messages):
        weight, train = message.get("weight", 1.0), message.get("train", True)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise UserError(f"the weight of message {i + 1} must be a number >= 0, got {weight!r}")
        if not isinstance(train, bool):
            raise UserError(f"`train` of message {i + 1} must be true or false, got {train!r}")
        if message["role"] != "assistant" and (message.get("weight") or message.get("train")):
            raise UserError(
                f"message {i + 1} ({message['role']}) asks to be trained, but only assistant messages carry loss"
            )
        weights.append(float(weight) if i in trained and train else 0.0)
    return weights


def without_control_keys(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in CONTROL_KEYS}


def thinking_of(message: Mapping[str, Any]) -> str:
    """The thinking text of an assistant message, from `reasoning_content` or the first closed block of its content."""
    if message.get("reasoning_content"):
        return message["reasoning_content"].strip()
    match = THINKING.search(message["content"])
    return match[1].strip() if match else ""


def template_arguments(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row hands to its template: the columns `tools` (JSON schemas) and `chat_template_kwargs` (variables).

    Either may be given as JSON text, as data sets with columns of one type need it.
    """
    arguments = template_variables(row)
    tools = _from_json(row, "tools", list)
    if tools:
        arguments["tools"] = tools
    return arguments


def template_variables(row: Mapping[str, Any]) -> dict[str, Any]:
    """The column `chat_template_kwargs` alone, without the variables that are null."""
    variables = _from_json(row, "chat_template_kwargs", dict) or {}
    return {key: value for key, value in variables.items() if value is not None}


def _from_json(row: Mapping[str, Any], column: str, kind: type) -> Any:
    value = row.get(column)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise UserError(f"column {column} is not valid JSON: {error}") from error
    if value is not None and not isinstance(value, kind):
        raise UserError(f"column {column} must hold a {kind.__name__}, got {_short(value)}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
