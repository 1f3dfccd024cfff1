"""choice, json, tool_call, text and the composed verifiers."""

import doctest
import importlib

import pytest

from verifiers import Verdict, list_verifiers, register_verifier, verifier_info, verify
from verifiers import registry as registry_module


@pytest.mark.parametrize("module", ["response", "choice", "json", "tool_call", "compose", "text"])
def test_docstring_examples(module):
    result = doctest.testmod(importlib.import_module(f"verifiers.{module}"))
    assert result.attempted > 0 and result.failed == 0


def check(name, response, row, status):
    verdict = verify(name, response, row)
    assert verdict.status == status, verdict


CITIES = {"answer": "B", "choices": ["Rome", "Paris", "Bonn"]}


@pytest.mark.parametrize(
    ("response", "status"),
    [
        ("B", "pass"), ("(b)", "pass"), ("B. Paris", "pass"), ("B) Rome", "unparsed"), ("The answer is B.", "pass"),
        ("Paris", "pass"), (r"\boxed{B}", "pass"), (r"\boxed{\text{C}}", "fail"), ("<think>B</think>A", "fail"),
        ("<think>B", "unparsed"), ("A or B", "unparsed"), ("A, B", "unparsed"), ("D", "unparsed"), ("", "unparsed"),
        ("The answer is a city on the Seine, so I am not sure", "unparsed"), ("**Answer: (B)**", "pass"),
    ],
)  # fmt: skip
def test_choice(response, status):
    check("choice", response, CITIES, status)


@pytest.mark.parametrize("row", [{"answer": "A"}, {"answer": "A", "choices": ["red", "green"]}])
@pytest.mark.parametrize(
    "response",
    [
        r"\boxed{(A) or (B)}", "(A) (B)", "(A) and B", "A. B.", "A: B", r"\boxed{A.B}", "Answer: A) or B)",
        "The answer is A or B", "The answer is (A) or (B).", "The answer is A, B.", "The answer is A/B",
        "The answer is **A** or **B**", "The answer is A or maybe B", "The answer is A. No: the answer is A or B",
        "Answer: A) red or B) green",
    ],
)  # fmt: skip
def test_an_answer_that_names_two_options_chooses_none(response, row):
    check("choice", response, row, "unparsed")


@pytest.mark.parametrize(
    "response",
    ["The answer is A, I think", "The answer is A, not B", "A) red", "(A) red", "A. red", "The answer is A."],
)
def test_one_option_with_words_around_it_is_chosen(response):
    check("choice", response, {"answer": "A"}, "pass")


def test_choice_refuses_a_row_whose_answer_is_no_option():
    check("choice", "B", {"answer": "D", "choices": ["x", "y"]}, "error")
    check("choice", "B", {"answer": 2, "choices": ["x", "y"]}, "error")


@pytest.mark.parametrize(
    ("response", "row", "status"),
    [
        ('text\n```json\n{"a": 1}\n```\n', {"schema": {"required": ["a"]}}, "pass"),
        ('{"a": 1} and more', {}, "unparsed"), ("NaN", {}, "unparsed"), ("[" * 100_000, {}, "unparsed"),
        ('{"a": 1.0}', {"answer": {"a": 1}}, "pass"), ('{"a": true}', {"answer": {"a": 1}}, "fail"),
        ("1", {"schema": {"type": "nonsense"}}, "error"), ("1", {"schema": '{"type": "integer"}'}, "pass"),
    ],
    ids=range(8),
)  # fmt: skip
def test_json(response, row, status):
    check("json", response, row, status)


NESTED = {"type": "array", "items": {"$ref": "#"}}


@pytest.mark.parametrize(
    ("response", "schema", "status"),
    [
        ("[" * 30 + "]" * 30, NESTED, "pass"), ("[" * 900 + "]" * 900, NESTED, "fail"), ("[5]", NESTED, "fail"),
        ("1e999", {"multipleOf": 0.01}, "unparsed"), ('"' + "a" * 40 + 'b"', {"pattern": "^(a+)+$"}, "timeout"),
        ("[1]", {"$ref": "#"}, "error"), ("```json\n" * 50_000, {}, "unparsed"),
    ],
    ids=range(7),
)  # fmt: skip
def test_no_json_talks_its_way_out_of_a_fail(response, schema, status):
    check("json", response, {"schema": schema}, status)


def test_edit_similarity_counts_insertions_and_deletions():
    assert verify("text", "abcd", {"answer": "bxd", "match": "edit"}).score == pytest.approx(1 - 3 / 7)
    check("text", "e o" * 6000, {"answer": "the quick brown fox " * 900, "match": "edit"}, "fail")


def call(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


EXPECTED = [{"name": "f", "arguments": {"x": 1}}, {"function": {"name": "g", "arguments": '{"y": [2]}'}}]


@pytest.mark.parametrize(
    ("response", "row", "status"),
    [
        (call("f", '{"x": 1}') + call("g", '{"y": [2]}'), {"tool_calls": EXPECTED}, "pass"),
        (call("g", '{"y": [2]}') + call("f", '{"x": 1}'), {"tool_calls": EXPECTED}, "fail"),
        (call("g", '{"y": [2]}') + call("f", '{"x": 1}'), {"tool_calls": EXPECTED, "any_order": True}, "pass"),
        (call("f", '{"x": true}') + call("g", '{"y": [2]}'), {"tool_calls": EXPECTED}, "fail"),
        (call("f", '{"x": 1}') * 2, {"tool_calls": EXPECTED, "any_order": True}, "fail"),
        ("no call", {"tool_calls": []}, "pass"), (call("f", "{}"), {"tool_calls": []}, "fail"),
        (call("f", "{broken"), {"tool_calls": EXPECTED}, "unparsed"),
        ("", {"tool_calls": [{"arguments": {}}]}, "error"),
    ],
    ids=range(9),
)  # fmt: skip
def test_tool_call(response, row, status):
    check("tool_call", response, row, status)


@pytest.mark.parametrize(
    "response", ["<tool_call>{", "x<tool_call>" * 50_000, "</tool_call>", call("f", "{}") + "<tool_call>"]
)
def test_a_call_that_is_not_closed_is_not_no_call(response):
    check("tool_call", response, {"tool_calls": []}, "unparsed")
    check("tool_call", response, {"tool_calls": [{"name": "f", "arguments": {}}]}, "unparsed")


@pytest.mark.parametrize(
    ("response", "row", "status"),
    [
        ("Paris", {"answer": "paris."}, "pass"), ("Paris", {"answer": "paris", "match": "exact"}, "fail"),
        ("It is Paris, I think", {"answer": "Paris", "match": "contains"}, "pass"),
        ("comparison", {"answer": "paris", "match": "contains"}, "fail"),
        ("the cat sat on the mat", {"answer": "the cat sat on the mat", "match": "bleu"}, "pass"),
        ("the cat sat on the mat", {"answer": "a dog ran in a park", "match": "chrf", "threshold": 0.5}, "fail"),
        ("<think>Paris", {"answer": "Paris"}, "unparsed"), ("a b", {"min_words": 3}, "fail"),
        ("a b", {"contains": ["a", "c"]}, "fail"), ("ab", {"pattern": "a"}, "fail"), ("ab", {"pattern": "(a"}, "error"),
        ("a" * 60 + "b", {"pattern": "(a+)+c"}, "timeout"), ("a", {}, "error"),
        ("a", {"answer": "a", "match": "?"}, "error"),
        ("!", {"answer": "?"}, "fail"),
    ],
    ids=range(15),
)  # fmt: skip
def test_text(response, row, status):
    check("text", response, row, status)


@pytest.fixture
def four(monkeypatch):
    monkeypatch.setattr(registry_module, "_registered", dict(registry_module._registered))
    outcomes = {"good": (1.0, "pass"), "half": (0.5, "fail"), "mute": (0.0, "unparsed"), "sick": (None, "error")}
    for name, outcome in outcomes.items():
        register_verifier(name)(lambda response, row, outcome=outcome: Verdict(*outcome))


@pytest.mark.parametrize(
    ("name", "parts", "score", "status"),
    [
        ("all_of", ["good", "good"], 1.0, "pass"), ("all_of", ["good", "half"], 0.5, "fail"),
        ("all_of", ["good", "sick"], None, "error"), ("all_of", ["half", "sick"], 0.5, "fail"),
        ("all_of", ["good", "mute"], 0.0, "unparsed"), ("any_of", ["half", "good"], 1.0, "pass"),
        ("any_of", ["sick", "good"], 1.0, "pass"), ("any_of", ["half", "sick"], None, "error"),
        ("any_of", ["half", "mute"], 0.5, "fail"), ("weighted", {"good": 3, "half": 1}, 0.875, "fail"),
        ("weighted", {"good": 1, "sick": 0}, None, "error"), ("weighted", {"good": 2}, 1.0, "pass"),
        ("weighted", {"good": 0}, None, "error"), ("all_of", ["goo"], None, "error"), ("any_of", [], None, "error"),
    ],
)  # fmt: skip
def test_composition(four, name, parts, score, status):
    verdict = verify(name, "x", {"verifiers": parts})
    assert (verdict.score, verdict.status) == (score, status), verdict


def test_by_task_reads_the_verifier_from_the_row(four):
    check("by_task", "4", {"task": "math", "answer": 4}, "pass")
    check("by_task", "4", {"task": "half"}, "fail")
    assert "did you mean 'math'" in verify("by_task", "4", {"task": "maths", "answer": 4}).detail


def test_every_builtin_is_registered_by_the_module_that_the_registry_names():
    for name in list_verifiers():
        info = verifier_info(name)
        assert info.name == name and info.fn.__doc__
