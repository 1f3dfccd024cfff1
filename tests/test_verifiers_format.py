"""The format verifier's rules, one broken at a time."""

import doctest

import pytest

import verifiers.format
from verifiers import verify


def test_docstring_examples():
    assert doctest.testmod(verifiers.format).failed == 0


HELD = [
    ("<think>a</think>b", {}),
    ("\n<think>\na\n</think>\n\nb", {"mode": "thinking"}),
    ("a</think>b", {"think_opened": True}),
    ("b", {"mode": "no_think"}),
    ("<think>\n\n</think>\n\nb", {"mode": "no_think"}),
    (r"<think>a</think>\boxed{\frac{1}{2}}", {"boxed": True}),
    ("<think>a</think><answer>b</answer>", {"answer_tags": True}),
    ("<think>a</think>b", {"boxed": None, "mode": None}),
]
BROKEN = [
    ("b", {}, "no <think>"),
    ("<think>a", {}, "no </think>"),
    ("a</think>b", {}, "no <think>"),
    ("<think>a</think><think>c</think>b", {}, "more than one <think>"),
    ("<think>a</think></think>b", {}, "more than one </think>"),
    ("x<think>a</think>b", {}, "text stands before"),
    ("</think><think>b", {}, "text stands before"),
    ("<think> \n</think>b", {}, "empty"),
    ("<think>a</think> \n", {}, "nothing stands after"),
    ("", {"mode": "no_think"}, "nothing stands after"),
    ("<think>a</think>b", {"mode": "no_think"}, "no_think"),
    ("<think></think>b<think></think>", {"mode": "no_think"}, "no_think"),
    (r"<think>\boxed{1}</think>b", {"boxed": True}, "boxed"),
    (r"<think>a</think>\boxed{1", {"boxed": True}, "boxed"),
    (r"<think>a</think>\boxed{}", {"boxed": True}, "boxed"),
    ("<think><answer>b</answer></think>b", {"answer_tags": True}, "<answer>"),
    ("<think>a</think><answer> </answer>", {"answer_tags": True}, "<answer>"),
    ("<think>a</think><answer>b</answer><answer>c</answer>", {"answer_tags": True}, "<answer>"),
]


@pytest.mark.parametrize(("response", "row"), HELD)
def test_a_response_that_keeps_every_rule_passes(response, row):
    verdict = verify("format", response, row)
    assert (verdict.status, verdict.score) == ("pass", 1.0), verdict


@pytest.mark.parametrize(("response", "row", "detail"), BROKEN)
def test_the_broken_rule_is_named(response, row, detail):
    verdict = verify("format", response, row)
    assert (verdict.status, verdict.score) == ("fail", 0.0) and detail in verdict.detail, verdict


def test_an_unknown_mode_is_an_error_of_the_row():
    assert verify("format", "b", {"mode": "no-think"}).status == "error"
