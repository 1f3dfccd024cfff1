"""Reading the tool calls of a turn."""

import doctest

import pytest

import alignment.chat.tool_calls
from alignment.chat.tool_calls import read_calls, turn_message


def test_docstring_examples():
    assert doctest.testmod(alignment.chat.tool_calls).failed == 0


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ("The answer is 5.", []),
        ('<tool_call>{"name": "a", "arguments": {"x": 1}}</tool_call>', [("a", {"x": 1}, False)]),
        ('So\n<tool_call>\n{"name": "a"}\n</tool_call>\n<tool_call>{"name": "b", "arguments": "{}"}</tool_call>',
         [("a", {}, False), ("b", {}, False)]),
        ('<think><tool_call>{"name": "a"}</tool_call></think>no call', []),
        ('<think>so far <tool_call>{"name": "a"}</tool_call>', []),
        ('<tool_call>{"name": "a"}', [("a", {}, False)]),
        ("<tool_call>{'name': 'a'}</tool_call>", [("", {}, True)]),
        ('<tool_call>["a"]</tool_call>', [("", {}, True)]),
        ('<tool_call>{"arguments": {}}</tool_call>', [("", {}, True)]),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', [("", {}, True)]),
        ('<tool_call>{"name": "a", "arguments": [1]}</tool_call>', [("", {}, True)]),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", [("", {}, True)]),
    ],
)  # fmt: skip
def test_calls_are_read(turn, expected):
    assert [(c.name, dict(c.arguments), bool(c.error)) for c in read_calls(turn)] == expected


def test_a_turn_as_a_message_keeps_its_thinking_and_takes_the_calls_out():
    turn = '<think>so</think>\n\nI ask.\n<tool_call>{"name": "a"}</tool_call>'
    message = turn_message(turn, read_calls(turn))
    assert message["content"] == "<think>so</think>\n\nI ask."
    assert message["tool_calls"] == [{"type": "function", "function": {"name": "a", "arguments": {}}}]
    broken = "<tool_call>{</tool_call>"
    assert turn_message(broken, read_calls(broken)) == {"role": "assistant", "content": broken}
