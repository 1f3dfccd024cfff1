"""Voting keys: equal answers have one, different answers two, the unreadable none. Gold answers as responses."""

import doctest

import pytest

import verifiers.math.vote
from verifiers import NoAnswerKeyError, Verdict, answer_key, gold_response, register_verifier, registry, verify


def test_docstring_examples():
    assert doctest.testmod(verifiers.math.vote).failed == 0


@pytest.mark.parametrize(
    "texts",
    [
        ("0.5", r"\boxed{\frac{1}{2}}", "#### 2/4", "The answer is 0.50."),
        ("1,000", r"\boxed{10^3}", r"\boxed{x = 1000}", r"\boxed{1000\text{ cm}}"),
        (r"\boxed{\sqrt{12}}", r"\boxed{2\sqrt{3}}", r"\boxed{\frac{6}{\sqrt{3}}}"),
        (r"\boxed{x^2 - 1}", r"\boxed{(x - 1)(x + 1)}"),
        (r"\boxed{\log_2 8}", "3"),
        (r"\boxed{\{1, 2\}}", r"\boxed{2, 1}", r"\boxed{x = 1 \text{ or } x = 2}"),
        (r"\boxed{(1, \tfrac{1}{2}]}", r"\boxed{(1, 0.5]}"),
        (r"\boxed{\text{Monday}}", "The answer is Monday."),
    ],
)
def test_equal_maths_answers_have_one_key(texts):
    keys = {answer_key("math", text, {}) for text in texts}
    assert len(keys) == 1 and None not in keys


def test_different_maths_answers_have_different_keys():
    texts = [r"\frac{1}{2004!}", r"\frac{1}{2006!}", "1-1/e", "1+1/e", "4", r"4\sqrt{2}", "(1,2)", "[1,2]", "(1,2]"]
    texts += ["1,2", "x+1", "x-1", "e^{-100}", "0", "3+4i", "3-4i", r"\infty", r"-\infty", "9^{9^{9^9}}", "1/0", "1/3"]
    texts += ["0.333333333333333333333333333333", r"\text{yes}", r"\text{no}", r"\sqrt{x^2}", "x<3", "x>3"]
    keys = [answer_key("math", rf"\boxed{{{text}}}", {}) for text in texts]
    assert len(set(keys)) == len(texts)


def test_nothing_readable_is_no_vote():
    for text in ("", "<think>still thinking", r"\boxed{" + "1+" * 5000 + "1}"):
        assert answer_key("math", text, {}) is None
    assert answer_key("choice", "A or B", {"choices": ["Rome", "Paris"]}) is None
    assert answer_key("text", "<think>x</think> ", {}) is None


def test_choice_and_text_read_the_answer_as_they_compare_it():
    row = {"choices": ["Rome", "Paris"]}
    assert answer_key("choice", "(B)", row) == answer_key("choice", r"\boxed{\text{Paris}}", row) == "B"
    assert answer_key("text", "The Eiffel Tower!", {}) == answer_key("text", "eiffel tower", {})
    assert answer_key("text", "Rome", {"match": "exact"}) != answer_key("text", "rome", {"match": "exact"})


def test_a_verifier_without_an_answer_is_refused_also_behind_by_task():
    assert answer_key("by_task", "0.5", {"task": "math"}) == "1/2"
    for name, row in (("format", {}), ("by_task", {"task": "format"})):
        with pytest.raises(NoAnswerKeyError, match="'format' does not tell a response's answer"):
            answer_key(name, "x", row)


def test_ones_own_verifier_tells_its_answers(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})

    @register_verifier("last_word", answer_of=lambda response, row: response.split()[-1])
    def last_word(response, row):
        return Verdict(1.0, "pass")

    assert answer_key("last_word", "so: 7", {}) == "7"
    assert answer_key("last_word", "", {}) is None


CALL = {"name": "add", "arguments": {"a": 1}}
FENCED = "def f(x):\n    '''```'''\n    return x"


@pytest.mark.parametrize(
    ("name", "column", "row"),
    [
        ("math", "answer", {"answer": ["7", "8"]}),
        ("math", "answer", {"answer": 7}),
        ("choice", "answer", {"answer": 1, "choices": ["Rome", "Paris"]}),
        ("text", "answer", {"answer": ["the first", "another"]}),
        ("json", "answer", {"answer": {"a": [1]}}),
        ("json", "answer", {"answer": "a text"}),
        ("json", "sample", {"sample": '{"a": 1}', "schema": {"type": "object"}}),
        ("tool_call", "tool_calls", {"tool_calls": [CALL, {"function": CALL}]}),
        ("tool_call", "tool_calls", {"tool_calls": []}),
        ("format", "answer", {"answer": 7}),
        ("format", "answer", {"answer": ["7", "8"], "mode": "no_think", "boxed": True, "answer_tags": True}),
        ("all_of", "answer", {"answer": "7", "verifiers": ["math", "format"]}),
        ("all_of", "answer", {"answer": {"a": 1}, "verifiers": ["json", "format"], "answer_language": "en"}),
        ("by_task", "answer", {"task": "choice", "answer": "Paris", "choices": ["Rome", "Paris"]}),
        ("code", "solution", {"solution": FENCED, "tests": ["assert f(2) == 2"]}),
        ("code", "solution", {"solution": "print(1)", "stdio": [{"stdin": "", "stdout": "1"}], "language": "python"}),
    ],
)
def test_a_gold_answer_as_a_response_passes(name, column, row):
    assert verify(name, gold_response(name, row[column], row), row).status == "pass"


def test_an_unusable_gold_answer_gets_its_verdict_not_an_exception():
    row = {"answer": "London", "choices": ["Rome", "Paris"]}
    assert verify("choice", gold_response("choice", "London", row), row).status == "error"
    assert verify("tool_call", gold_response("tool_call", 5, {"tool_calls": 5}), {"tool_calls": 5}).status == "error"
