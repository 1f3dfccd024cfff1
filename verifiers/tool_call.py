"""The `tool_call` verifier: the calls that a response makes, by name and arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from verifiers.json import same_json
from verifiers.registry import register_verifier
from verifiers.response import outside_thinking
from verifiers.verdict import Verdict

_START, _END = "<tool_call>", "</tool_call>"


def _gold_calls(gold: Any, row: Mapping[str, Any]) -> str:
    return "\n".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in gold)


@register_verifier("tool_call", columns=("tool_calls",), optional=("any_order",), gold_response=_gold_calls)
def tool_call(response: str, row: Mapping[str, Any]) -> Verdict:
    """Exactly the expected `<tool_call>{"name": …, "arguments": {…}}</tool_call>` blocks.

    `tool_calls`: a list of {"name", "arguments"}; an empty list means that no call may be made. The order counts unless
    `any_order` is true.

    >>> row = {"tool_calls": [{"name": "add", "arguments": {"a": 1, "b": 2}}]}
    >>> tool_call('<tool_call>{"name": "add", "arguments": {"b": 2, "a": 1}}</tool_call>', row).status
    'pass'
    >>> tool_call('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>', row).status
    'fail'
    >>> tool_call("It is 3.", row).detail
    '0 calls instead of 1'

    Raises ValueError when the row's calls are not of that form.
    """
    expected = [_read_call(call, "column 'tool_calls'") for call in row["tool_calls"]]
    text = outside_thinking(response)
    if text is None:
        return Verdict(0.0, "unparsed", "the thinking block is not closed")
    try:
        calls = [_read_call(json.loads(block), "a call") for block in _blocks(text)]
    except (ValueError, RecursionError) as error:
        return Verdict(0.0, "unparsed", f"a tool call is not readable: {error}")
    if len(calls) != len(expected):
        return Verdict(0.0, "fail", f"{len(calls)} calls instead of {len(expected)}")
    for call in calls:
        candidates = expected if row.get("any_order") else expected[:1]
        match = next((other for other in candidates if same_json(list(call), list(other))), None)
        if match is None:
            return Verdict(0.0, "fail", f"the call of {call[0]!r} with {json.dumps(call[1])[:200]} is not expected")
        expected.remove(match)
    return Verdict(1.0, "pass")


def _blocks(text: str) -> list[str]:
    """What stands between the tags. Raises ValueError for a tag without its partner."""
    parts = text.split(_START)
    if _END in parts[0] or any(part.count(_END) != 1 for part in parts[1:]):
        raise ValueError(f"a {_START} or {_END} stands alone")
    return [part.partition(_END)[0] for part in parts[1:]]


def _read_call(call: Any, where: str) -> tuple[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"{where} must be an object with a name and arguments, got {call!r}"[:200])
    arguments = function.get("arguments") or {}
    return function["name"], json.loads(arguments) if isinstance(arguments, str) else arguments
