"""`code`: runs a response's program in the sandbox against the row's tests.

The program is the last fenced block in the row's language outside the thinking block, else the last without a language,
else the last. A row has one of four forms:

- `entry_point` + `test`: source that defines `check(candidate)` (HumanEval; `prompt` holds the function's header)
- `tests`: a list of assert statements (MBPP); `setup` is source that runs before them
- `entry_point` + `cases`: `[{"args": [...], "kwargs": {...}, "expected": ...}]`; values compared with strict types,
  floats within `tolerance` (1e-6, relative or absolute). `entry_point` may be `Class.method`
- `stdio`: `[{"stdin": ..., "stdout": ...}]`; the whole output is compared line by line, ignoring white space at the
  ends of lines and blank lines at the end

Optional columns: `language` (python, javascript, c, c++, java, bash; all but python need `stdio`), `time_limit_s` (10;
per run of the program), `memory_limit_mb` (512), `partial_credit` (score = passed / total).

Expected values never enter the candidate's jail. In the first two forms the tests run in a second jail and call the
candidate remotely; see `verifiers/sandbox/testing.py` for what they can and cannot do with its objects.
`code_weak` runs tests and program in one interpreter, for formats that leave no other way; its verdicts can be forged,
and say so.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from verifiers.code.check import Result, check
from verifiers.code.extract import as_fenced, extract_code
from verifiers.code.languages import MissingTool
from verifiers.code.task import RowError, Task, read_task
from verifiers.code.weak import check_weak
from verifiers.registry import register_verifier
from verifiers.sandbox import Backend, Sandbox, SandboxError
from verifiers.verdict import Verdict

_lock = threading.Lock()
_backend: Backend | None = None
_COLUMNS = ("entry_point", "test", "tests", "cases", "stdio", "setup", "prompt", "language")
_OPTIONAL = (*_COLUMNS, "time_limit_s", "memory_limit_mb", "tolerance", "partial_credit")


def use_backend(backend: Backend | None) -> None:
    """Run code on `backend` from now on; None returns to a sandbox on this machine, started at the first use."""
    global _backend
    with _lock:
        _backend = backend


def current_backend() -> Backend:
    """The backend set by `use_backend`, else the servers of ALIGN_SANDBOX_URLS (comma-separated, with the token of
    ALIGN_SANDBOX_TOKEN), else a sandbox on this machine. Raises SandboxError when there is none."""
    global _backend
    with _lock:
        if _backend is None:
            _backend = _default_backend()
        return _backend


def _default_backend() -> Backend:
    urls = [url.strip() for url in os.environ.get("ALIGN_SANDBOX_URLS", "").split(",") if url.strip()]
    if not urls:
        return Sandbox()
    from verifiers.sandbox.remote import RemoteSandbox

    return RemoteSandbox(urls, os.environ.get("ALIGN_SANDBOX_TOKEN", ""))


def _gold_program(gold: str, row: Mapping[str, Any]) -> str:
    return as_fenced(gold, row.get("language") or "python")


@register_verifier("code", optional=_OPTIONAL, gold_response=_gold_program)
def code(response: str, row: Mapping[str, Any]) -> Verdict:
    r"""Runs the program of the response in a sandbox against the row's tests.

    >>> row = {"entry_point": "add", "cases": [{"args": [1, 2], "expected": 3}]}
    >>> code("```python\ndef add(a, b):\n    return a + b\n```", row).status
    'pass'
    >>> code("```python\ndef add(a, b):\n    return True\n```", row).detail
    '0 of 1 tests; case 1: wrong value of type bool'
    >>> code("```python\nprint(int(input()) ** 2)\n```", {"stdio": [{"stdin": "7", "stdout": "49"}]}).status
    'pass'
    >>> code("```python\ndef add(a, b): ...\n```", {"tests": ["assert add(1, 2) == 3"]}).status
    'fail'
    """
    return _verdict(response, row, weak=False)


@register_verifier("code_weak", optional=_OPTIONAL, gold_response=_gold_program)
def code_weak(response: str, row: Mapping[str, Any]) -> Verdict:
    r"""Like `code`, with tests and program in one interpreter: can be forged.

    Rows that need no such thing are checked as by `code`.

    >>> code_weak("```python\ndef add(a, b):\n    return a + b\n```", {"tests": ["assert add(1, 2) == 3"]}).status
    'pass'
    """
    return _verdict(response, row, weak=True)


def _verdict(response: str, row: Mapping[str, Any], *, weak: bool) -> Verdict:
    start = time.perf_counter()
    try:
        task = read_task(row)
        source = extract_code(response, task.language)
        if source is None:
            return Verdict(0.0, "unparsed", "no fenced code block outside the thinking block")
        result = check_weak(current_backend(), source, task) if weak else check(current_backend(), source, task)
    except (RowError, MissingTool, SandboxError) as error:
        return Verdict(None, "error", str(error), time.perf_counter() - start)
    return _score(result, task, time.perf_counter() - start)


def _score(result: Result, task: Task, seconds: float) -> Verdict:
    label = f"{result.passed} of {result.total} tests"
    if result.passed == result.total:
        return Verdict(1.0, "pass", result.detail or label, seconds)
    detail = f"{label}; {result.detail}"
    if task.partial_credit and result.passed:
        return Verdict(result.passed / result.total, "pass", detail, seconds)
    return Verdict(0.0, "timeout" if result.timed_out else "fail", detail, seconds)
