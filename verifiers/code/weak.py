"""Tests and program in one process, for test code in other languages. A program can forge such a verdict, by exiting
early for instance; `weak` stands in the detail of every one."""

from __future__ import annotations

from verifiers.code import languages
from verifiers.code.check import Result, check
from verifiers.code.task import Task
from verifiers.sandbox import Backend, SandboxError


def check_weak(backend: Backend, code: str, task: Task) -> Result:
    """Append the tests to the program and run both; passed means exit code 0. Python and `stdio` rows do not need this
    and are checked as by `code`."""
    if task.language == "python" or task.stdio:
        return check(backend, code, task)
    source = "\n".join([code, task.setup, task.test, *task.asserts])
    program = languages.build(backend, task.language, source, task.limits)
    if program.error:
        return Result(0, 1, f"weak: {program.error}")
    outcome = languages.run(backend, program, "", task.limits)
    if outcome.status == "setup":
        raise SandboxError(f"a jail could not be set up: {outcome.detail}")
    timed_out = outcome.status in ("wall_time", "cpu_time")
    return Result(int(outcome.ok), 1, f"weak: {outcome.detail or 'tests and program shared a process'}", timed_out)
