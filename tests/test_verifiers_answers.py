"""Voting keys: equal answers have one key, different answers have two, and what cannot be read has none."""

import doctest

import pytest

import verifiers.math.vote
from verifiers import NoAnswerKeyError, Verdict, answer_key, register_verifier, registry


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
