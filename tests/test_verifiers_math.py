r"""The math verifier: what is taken as the answer, statuses, hangs, threads and processes."""

import doctest
import os
import threading

import pytest

import verifiers.math
from verifiers import verify
from verifiers.math import accepted_answers
from verifiers.math.extract import extract_answer

EXTRACTED = [
    (r"\boxed{1} and then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
    (r"\boxed{\text{a} \{1, 2\}}", r"\text{a} \{1, 2\}"),
    (r"\boxed 7", "7"),
    (r"<think>\boxed{1}</think> \boxed{2}", "2"),
    ("text without the opening tag</think>The answer is 5.", "5"),
    (r"<think>\boxed{1}", None),
    (r"</think><think>\boxed{1}", None),
    (r"\boxed{1} and \boxed{2", None),
    (r"\boxed{}", None),
    ("so 5\n#### 1,234\n", "1,234"),
    ("The final answer is: 3.5. I am sure.", "3.5"),
    ("**Answer:** 72", "72"),
    ("Answer: **72**", "72"),
    ("The answer is 7.\nNo, the answer is 8.", "8"),
    (r"The value of $x$ is $\frac{3}{4}$.", r"\frac{3}{4}"),
    ("3/4", "3/4"),
    ("She has 36 * 2 = 72 clips in total.", "72"),
    ("It costs $1,200.", "$1,200"),
    ("It takes 60 minutes, or 1 hour.", "1"),
    ("It isn't 5.", None),
    ("Either 6 or 5.", None),
    ("It is $6$ or $5$.", None),
    ("It takes more than 5 hours.", None),
    ("roughly 5", None),
    ("It is ≈ 5", None),
    ("5 is not it", None),
    ("so 1 2 3 4 5", None),
    ("first 3, then 10 - 7", None),
    ("so it is x^2", None),
    ("nothing here to read", None),
    ("", None),
    ("   \n", None),
]


@pytest.mark.parametrize(("response", "answer"), EXTRACTED)
def test_the_answer_is_read_by_the_stated_rule(response, answer):
    assert extract_answer(response) == answer


def test_docstring_examples():
    assert doctest.testmod(verifiers.math).failed == 0


def test_gsm8k_solutions_pass_and_changed_numbers_do_not():
    gold = "She sold 48/2 = <<48/2=24>>24 clips in May.\nTogether 48+1200 = <<48+1200=1248>>1,248.\n#### 1,248"
    row = {"answer": gold}
    assert verify("math", gold, row).status == "pass"
    assert verify("math", r"\boxed{1248.0}", row).status == "pass"
    for wrong in ("1,249", "12480", "-1,248", "1,247", "12,48", "124,8", "1248/100", "1248.000000001", "1,2480"):
        assert verify("math", gold.replace("#### 1,248", f"#### {wrong}"), row).score == 0, wrong


def test_any_accepted_answer_is_enough():
    assert verify("math", r"\boxed{7}", {"answer": ["6", "7"]}).passed
    assert verify("math", r"\boxed{8}", {"answer": ["6", "7"]}).status == "fail"
    assert verify("math", r"\boxed{7}", {"answer": 7}).passed
    assert verify("math", r"\boxed{1/10}", {"answer": 0.1}).passed


@pytest.mark.parametrize("answer", ["", " ", [], None, True, {"a": 1}, r"\boxed{", "9^{9^{9^9}}", "1/0"])
def test_an_unusable_accepted_answer_is_unscored(answer):
    assert verify("math", r"\boxed{7}", {"answer": answer}).status == "error"


def test_accepted_answers_are_read_from_every_form():
    assert accepted_answers("work\n#### 72") == ["72"]
    assert accepted_answers([r"so \boxed{3}", 4, 0.00001]) == ["3", "4", "0.00001"]


HOSTILE = [
    "9**9**9**9", "9^{9^{9^9}}", "^".join(["2"] * 500), r"\frac{1}{" * 39 + "2" + "}" * 39, "(" * 900 + "1" + ")" * 900,
    "-" * 1900, "5" + "!" * 50, "99999!", "1e9999999", "9" * 1999,
    r"\sqrt{" * 39 + "2" + "}" * 39, "{" * 1900, "|" * 1000,
    r"\text{" * 300, "1," * 900, "x^{x^{x^{x^x}}}", "(a+b+c+d+1)^{200}",
    r"\sum_{k=1}^{99999999} \sin k", "٧٢", "\x01\x02", "\x00",
]  # fmt: skip


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_end_without_a_pass_or_an_error(answer, monkeypatch):
    monkeypatch.setattr(verifiers.math.compare._worker, "timeout_s", 2.0)
    verdict = verify("math", rf"\boxed{{{answer}}}", {"answer": "72"})
    assert verdict.status in ("fail", "unparsed", "timeout"), verdict


@pytest.mark.parametrize("piece", [r"\boxed{", r"\(", "answer ", "$", "1,111", "9", "<think>", "####", "answer\t\t\t"])
def test_long_hostile_responses_are_read_to_the_end(piece):
    # Quadratic behaviour on 200,000 characters would not come back.
    verdict = verify("math", piece * (200_000 // len(piece)), {"answer": "72"})
    assert verdict.status in ("fail", "unparsed")


def test_a_comparison_that_hangs_is_a_timeout_and_the_next_one_works(monkeypatch):
    monkeypatch.setattr(verifiers.math.compare._worker, "timeout_s", 1.0)
    hang = verify("math", r"\boxed{\sum_{k=1}^{99999999} \sin k}", {"answer": r"\sum_{k=1}^{99999998} \sin k"})
    assert (hang.status, hang.score) == ("timeout", 0.0)
    monkeypatch.setattr(verifiers.math.compare._worker, "timeout_s", 20.0)
    assert verify("math", r"\boxed{2\sqrt3}", {"answer": r"\sqrt{12}"}).passed


def test_symbolic_answers_are_checked_from_threads_and_forked_processes():
    pair, results = (r"\boxed{\sqrt{12}}", {"answer": r"2\sqrt{3}"}), []
    threads = [threading.Thread(target=lambda: results.append(verify("math", *pair).status)) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert results == ["pass"] * 4
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if verify("math", *pair).passed else 2
            verifiers.math.compare._worker.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
