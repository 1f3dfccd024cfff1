"""The `code` verifier: row forms, limits, and what counts as whose fault."""

from __future__ import annotations

import doctest

import pytest

import verifiers.code
from tests.code_sandbox import backend, judge
from verifiers.code import code, compare, extract
from verifiers.code.extract import extract_code
from verifiers.code.task import read_task
from verifiers.sandbox import SandboxError
from verifiers.sandbox.job import Limits

__all__ = ["backend"]  # a fixture

ADD = "def add(a, b):\n    return a + b"
ADD_CASES = {
    "entry_point": "add",
    "cases": [{"args": [1, 2], "expected": 3}, {"kwargs": {"a": 5, "b": 5}, "expected": 10}],
}


def test_docstring_examples_hold():
    for module in (verifiers.code, extract, compare):
        result = doctest.testmod(module)
        assert result.attempted > 0 and result.failed == 0


# Extraction


def test_last_block_outside_thinking_counts():
    response = "<think>\n```python\na = 1\n```\n</think>\n```python\na = 2\n```\ntext\n```python\na = 3\n```"
    assert extract_code(response) == "a = 3\n"


def test_block_inside_an_unfinished_thinking_block_does_not_count():
    assert extract_code("<think>\n```python\na = 1\n```") is None


def test_a_program_before_an_unfinished_thinking_block_is_not_the_answer_yet():
    assert extract_code("```python\na = 1\n```\n<think>or rather") is None


def test_a_block_in_a_list_is_set_in_with_it():
    response = '1. So:\n    ```python\n    def f():\n        return """\n        ```\n        """\n    ```\n2. Done.'
    assert extract_code(response) == 'def f():\n    return """\n    ```\n    """\n'


def test_sample_output_after_the_program_is_not_the_program():
    assert extract_code("```python\na = 1\n```\nIt prints:\n```text\n1\n```") == "a = 1\n"


def test_longer_fence_may_hold_a_shorter_one():
    assert extract_code('````python\nx = """\n```\n"""\n````') == 'x = """\n```\n"""\n'


def test_windows_line_ends_close_a_block():
    assert extract_code("```python\r\na = 1\r\n```\r\nDone.\r\n") == "a = 1\r\n"


@pytest.mark.parametrize("line", ["```" + "a" * 300_000 + "`", "```" + " " * 300_000 + "`", "```x`\n" * 50_000])
def test_endless_repetition_is_read_in_linear_time(line):
    assert extract_code(line) is None
    assert extract_code(f"{line}\n```python\na = 1\n```") == "a = 1\n"


@pytest.mark.parametrize("response", ["", "def add(a, b): return a + b", "```python\n\n```", "<think>never ends"])
def test_response_without_code_is_unparsed(response):
    verdict = code(response, ADD_CASES)
    assert (verdict.status, verdict.score) == ("unparsed", 0.0)


# Row forms


def test_cases_compare_values():
    assert judge(ADD, ADD_CASES).status == "pass"
    assert judge("def add(a, b):\n    return 3", ADD_CASES).status == "fail"


@pytest.mark.parametrize(
    ("returned", "expected", "status"),
    [
        ("1", 1, "pass"),
        ("True", 1, "fail"),
        ("1.0", 1, "fail"),
        ("1", 1.0, "fail"),
        ("0.1 + 0.2", 0.3, "pass"),
        ("0.3001", 0.3, "fail"),
        ("float('nan')", float("nan"), "pass"),
        ("(1, 2)", [1, 2], "pass"),
        ("[1, 2]", (1, 2), "fail"),
        ("{1, 2}", [1, 2], "fail"),
        ("{'a': [1]}", {"a": [1]}, "pass"),
        ("{1: 2}", {"1": 2}, "fail"),
        ("{True: 2}", {1: 2}, "fail"),
        ("'1'", 1, "fail"),
        ("2 ** 100", 2**100, "pass"),
        ("None", None, "pass"),
        ("b'x'", b"x", "pass"),
        ("'\\ud800'", "\ud800", "pass"),
        ("__import__('collections').Counter('aab')", {"a": 2, "b": 1}, "pass"),
        ("__import__('decimal').Decimal('1.50')", 1.5, "fail"),
    ],
)
def test_values_compare_with_strict_types(returned, expected, status):
    row = {"entry_point": "f", "cases": [{"args": [], "expected": expected}]}
    assert judge(f"def f():\n    return {returned}", row).status == status


def test_tolerance_is_the_rows():
    row = {"entry_point": "f", "cases": [{"expected": 1.0}], "tolerance": 0.1}
    assert judge("def f(): return 1.05", row).status == "pass"
    assert judge("def f(): return 1.2", row).status == "fail"


def test_entry_point_may_be_a_method():
    row = {**ADD_CASES, "entry_point": "Solution.add"}
    assert judge("class Solution:\n    def add(self, a, b):\n        return a + b", row).status == "pass"


def test_check_function_with_helpers_of_the_prompt():
    prompt = 'def double(x):\n    return 2 * x\n\ndef halve(x):\n    """Inverse of double."""\n'
    row = {"prompt": prompt, "entry_point": "halve", "test": "def check(c):\n    assert c(double(7)) == 7\n"}
    assert judge("def halve(x):\n    return x // 2", row).status == "pass"
    assert judge("    return x // 2", row).status == "pass"  # a continuation of the prompt
    cheat = "def double(x):\n    return x\n\ndef halve(x):\n    return x"
    assert judge(cheat, row).status == "fail"  # the tests use the prompt's own helper


def test_the_functions_header_may_stand_in_a_fenced_block_of_the_prompt():
    prompt = "Complete it:\n```python\nimport math\n\ndef area(r):\n    ...\n```\nThanks."
    row = {"prompt": prompt, "entry_point": "area", "test": "def check(c):\n    assert c(0) == 0.0\n"}
    assert judge("    return math.pi * r * r", row).status == "pass"
    assert judge("def area(r):\n    return math.pi * r * r", row).status == "pass"
    assert judge("def other(): pass", row).status == "fail"


@pytest.mark.parametrize("fence", ["", "```"])
def test_a_complete_function_in_the_prompt_is_not_the_answer(fence):
    prompt = f"{fence}\ndef area(r):\n    return 3.0 * r * r\n{fence}\n"
    row = {"prompt": prompt, "entry_point": "area", "test": "def check(c):\n    assert c(1) == 3.0\n"}
    assert judge("pass", row).status == "fail"
    assert judge("def area(r):\n    return r * r * 3.0", row).status == "pass"


def test_asserts_find_the_function_by_their_own_text():
    row = {"tests": ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'"]}
    assert judge(ADD, row).status == "pass"


def test_standard_modules_in_asserts_are_the_real_ones():
    row = {"tests": ["assert math.isclose(f(), 2.5)", "assert set(f2()) == {1}"]}
    fake = "class math:\n    isclose = lambda *a: True\nset = lambda *a: {1}\n"
    assert judge(fake + "def f(): return 0.0\ndef f2(): return [2]", row).status == "fail"
    assert judge("def f(): return 2.5\ndef f2(): return [1, 1]", row).status == "pass"


def test_setup_runs_before_the_asserts():
    row = {"setup": "import math\nTAU = 2 * math.pi", "tests": ["assert abs(f() - TAU) < 1e-9"]}
    assert judge("import math\ndef f(): return 2 * math.pi", row).status == "pass"


def test_work_in_place_reaches_the_tests():
    row = {"entry_point": "f", "test": "def check(f):\n    x = [2, 1]\n    f(x)\n    assert x == [1, 2]\n"}
    assert judge("def f(x): x.sort()", row).status == "pass"
    assert judge("def f(x): sorted(x)", row).status == "fail"


def test_expected_exceptions_arrive_by_their_type():
    test = "def check(f):\n    try:\n        f()\n    except ValueError:\n        return\n    assert False\n"
    row = {"entry_point": "f", "test": test}
    assert judge("class Own(ValueError): pass\ndef f(): raise Own('x')", row).status == "pass"
    assert judge("def f(): raise KeyError('x')", row).status == "fail"
    assert judge("def f(): return 1", row).status == "fail"


STACK = """
class Node:
    def __init__(self, value): self.value, self.next = value, None
class Stack:
    def __init__(self, items=()): self.items = list(items)
    def push(self, item): self.items.append(item); return self
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __getitem__(self, i): return self.items[i]
    def __str__(self): return f'Stack({self.items})'
    def __add__(self, other): return Stack(self.items + other.items)
def evens():
    n = 0
    while True:
        yield n
        n += 2
"""


@pytest.mark.parametrize(
    "test",
    [
        "s = Stack(); s.push(1).push(2); assert s.pop() == 2 and len(s) == 1",
        "assert list(Stack([3, 4])) == [3, 4]",
        "assert 4 in Stack([3, 4])",
        "assert Stack([3, 4])[1] == 4",
        "assert str(Stack([3])) == 'Stack([3])'",
        "assert (Stack([1]) + Stack([2])).items == [1, 2]",
        "n = Node(5); n.next = Node(6); assert n.next.value == 6",
        "s = Stack(); assert s.push(1) == s and isinstance(s, Stack) and not isinstance(s, Node)",
        "e = evens(); assert [next(e) for _ in range(3)] == [0, 2, 4]",
        "from itertools import islice; assert list(islice(evens(), 3)) == [0, 2, 4]",
    ],
)
def test_objects_travel_as_handles(test):
    assert judge(STACK, {"tests": [test]}).status == "pass"


@pytest.mark.parametrize(
    "test", ["assert len(Stack([3, 4])) == 3", "assert list(Stack([3])) == [4]", "assert Stack([3])"]
)
def test_handles_can_fail_a_test(test):
    assert judge(STACK, {"tests": [test]}).status == "fail"


def test_guarded_example_code_does_not_run():
    assert judge(ADD + "\nif __name__ == '__main__':\n    add(int(input()), 1)", ADD_CASES).status == "pass"


def test_stdio_compares_whole_output():
    row = {"stdio": [{"stdin": "2\n3\n", "stdout": "5\n"}, {"stdin": "1 \n1\n", "stdout": "2"}]}
    assert judge("print(int(input()) + int(input()))", row).status == "pass"
    assert judge("print(5)", row).status == "fail"


def test_stdio_of_many_lines_does_not_block():
    text = "x" * 79 + "\n"
    row = {"stdio": [{"stdin": text * 20000, "stdout": text * 20000}], "time_limit_s": 20}
    assert judge("import sys\nsys.stdout.write(sys.stdin.read())", row).status == "pass"


# Scores and statuses


def test_partial_credit_counts_tests():
    row = {**ADD_CASES, "partial_credit": True}
    assert judge("def add(a, b):\n    return 3", row).score == 0.5
    row = {"tests": ["assert add(1, 2) == 3", "assert add(2, 2) == 5", "assert add(0, 0) == 0"], "partial_credit": True}
    assert judge(ADD, row).score == pytest.approx(2 / 3)
    row = {"stdio": [{"stdin": "", "stdout": "1"}, {"stdin": "", "stdout": "2"}], "partial_credit": True}
    assert judge("print(1)", row).score == 0.5


def test_limits_are_the_rows():
    row = {"stdio": [{"stdin": "", "stdout": ""}], "time_limit_s": 0.3, "memory_limit_mb": 32}
    assert judge("while True: pass", row).status == "timeout"
    verdict = judge("x = bytearray(64 << 20)", row)
    assert verdict.status == "fail" and "32 MiB of memory" in verdict.detail


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "exactly one of"),
        ({"tests": ["assert 1"], "cases": [{"expected": 1}], "entry_point": "f"}, "exactly one of"),
        ({"test": "def check(c): pass"}, "entry_point"),
        ({"tests": "assert f() == 1"}, "'tests' must be a list"),
        ({"entry_point": "f", "cases": [{"args": []}]}, "'expected'"),
        ({"stdio": [{"stdin": ""}]}, "'stdio'[0]"),
        ({"stdio": [{"stdin": "", "stdout": ""}], "language": "cobol"}, "'language'"),
        ({"stdio": [{"stdin": "", "stdout": ""}], "time_limit_s": -1}, "'time_limit_s'"),
        ({"tests": ["assert ("]}, "does not compile"),
        ({"entry_point": "f", "test": "x = 1"}, "no function 'check'"),
        ({"entry_point": "f", "test": "import no_such_module"}, "no_such_module"),
        ({"tests": ["assert f(lambda: 1) == 1"]}, "only plain data"),
        ({"tests": ["assert f() == 1"], "language": "java"}, "code_weak"),
    ],
)
def test_fault_of_the_row_is_an_error_and_unscored(row, message):
    language = row.get("language", "python")
    verdict = judge("def f(*a):\n    return 1", row, language)
    assert verdict.status == "error" and verdict.score is None and message in verdict.detail, verdict


def test_machine_without_a_sandbox_is_an_error(monkeypatch):
    def refuse():
        raise SandboxError("no sandbox tier works on this machine")

    monkeypatch.setattr("verifiers.code.current_backend", refuse)
    verdict = judge(ADD, ADD_CASES)
    assert verdict.status == "error" and "no sandbox tier" in verdict.detail


def test_time_limits_of_rows_become_limits():
    task = read_task({"tests": ["assert 1"], "time_limit_s": 3, "memory_limit_mb": 99})
    assert (task.limits.wall_s, task.limits.cpu_s, task.limits.memory_mb) == (3, 3, 99)
    assert task.limits.output_mb == Limits().output_mb
