"""The four ways to check a program. Each returns how many tests passed, of how many, and what went wrong first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from verifiers.code import languages
from verifiers.code.compare import same_output, same_value
from verifiers.code.task import RowError, Task, defines, ends_unfinished
from verifiers.sandbox import Backend, Job, Outcome, SandboxError, codec

_GRACE_S = 2.0  # the tests' jail outlives the candidate's, so that it can report its end


@dataclass(frozen=True, slots=True)
class Result:
    passed: int
    total: int
    detail: str = ""
    timed_out: bool = False


def check(backend: Backend, code: str, task: Task) -> Result:
    """Raises RowError, languages.MissingTool or SandboxError when the check itself cannot be made."""
    if task.stdio:
        return _check_stdio(backend, code, task)
    if task.language != "python":
        raise RowError(
            f"only 'stdio' rows can be checked for {task.language}; tests in that language would share a process with "
            "the program, which could then forge the verdict (the verifier 'code_weak' runs them all the same)"
        )
    return _check_cases(backend, code, task) if task.cases else _check_tests(backend, code, task)


def full_source(code: str, task: Task) -> str:
    """The candidate's module: after the prompt's own source, or, when it does not define the function that the prompt
    leaves without a body, as its continuation."""
    if not task.prelude or code.lstrip().startswith("from __future__"):
        return code
    if defines(code, task.entry_point):
        return f"{task.prelude}\n\n{code}"
    return task.prelude.rstrip("\n") + "\n" + code if ends_unfinished(task.prelude) else code


def _ended(outcome: Outcome) -> str:
    last = outcome.stderr.decode(errors="replace").strip().split("\n")[-1][:300]
    return ": ".join(filter(None, (outcome.detail, last)))


def _timed_out(outcome: Outcome) -> bool:
    return outcome.status in ("wall_time", "cpu_time")


def _raise_if_setup(*outcomes: Outcome) -> None:
    for outcome in outcomes:
        if outcome.status == "setup":
            raise SandboxError(f"a jail could not be set up: {outcome.detail}")


def _check_tests(backend: Backend, code: str, task: Task) -> Result:
    """Assert-style tests in a second jail; see verifiers/sandbox/testing.py."""
    serve = Job("serve", {"source": full_source(code, task)}, task.limits)
    payload = {
        "setup": f"{task.prelude}\n\n{task.setup}",
        "test": task.test,
        "asserts": list(task.asserts),
        "entry_point": task.entry_point,
    }
    roomy = replace(task.limits, wall_s=task.limits.wall_s + _GRACE_S, memory_mb=max(512, task.limits.memory_mb))
    served, tested = backend.run_pair(serve, Job("tests", payload, roomy))
    _raise_if_setup(served, tested)
    total = len(task.asserts) + bool(task.test)
    if not tested.ok or not tested.stdout:
        return Result(0, total, f"the tests did not finish: {_ended(tested)}", _timed_out(tested) or _timed_out(served))
    report = codec.from_bytes(tested.stdout)
    if "broken" in report:
        raise RowError(report["broken"])
    if report["passed"] == report["total"] == total:
        return Result(total, total)
    detail = f"{served.detail}; {report['detail']}" if _timed_out(served) else report["detail"]
    return Result(report["passed"], total, detail, _timed_out(served))


def _check_cases(backend: Backend, code: str, task: Task) -> Result:
    """Inputs go in, plain data comes out, the expected values stay here."""
    try:
        calls = [[codec.encode(args), codec.encode(kwargs)] for args, kwargs, _ in task.cases]
    except codec.CodecError as error:
        raise RowError(f"'cases' holds an argument that is no plain data: {error}") from None
    payload = {"source": full_source(code, task), "entry_point": task.entry_point, "calls": calls}
    outcome = backend.run(Job("calls", payload, task.limits))
    _raise_if_setup(outcome)
    answers = outcome.stdout.split(b"\n")[:-1]
    verdicts = [_judge(a, expected, task.tolerance) for a, (_, _, expected) in zip(answers, task.cases)]
    passed = sum(not problem for problem in verdicts) if len(answers) <= len(task.cases) else 0
    first = next((f"case {n + 1}: {problem}" for n, problem in enumerate(verdicts) if problem), "")
    if len(answers) != len(task.cases):
        first = first or f"{len(answers)} answers to {len(task.cases)} cases; {_ended(outcome)}"
    return Result(passed, len(task.cases), first, _timed_out(outcome) and passed < len(task.cases))


def _judge(answer: bytes, expected: object, tolerance: float) -> str:
    """What is wrong with one answer, "" for nothing."""
    try:
        tree = codec.from_bytes(answer)
        if type(tree) is dict and "error" in tree:
            return f"raised {tree['error'][1]}"[:300]
        got = codec.decode(tree["ok"])
    except (codec.CodecError, TypeError, KeyError, IndexError) as error:
        return f"malformed answer ({error})"[:300]
    return "" if same_value(expected, got, tolerance) else f"wrong value of type {type(got).__name__}"


def _check_stdio(backend: Backend, code: str, task: Task) -> Result:
    passed, detail, timed_out = 0, "", False
    for number, (expected, outcome) in enumerate(_runs(backend, code, task)):
        _raise_if_setup(outcome)
        good = outcome.ok and same_output(expected, outcome.stdout.decode("utf-8", "replace"))
        passed += good
        if not good:
            detail = detail or f"case {number + 1}: {_ended(outcome) or 'wrong output'}"
            timed_out |= _timed_out(outcome)
            if not task.partial_credit:
                break
    return Result(passed, len(task.stdio), detail, timed_out)


def _runs(backend: Backend, code: str, task: Task) -> Iterator[tuple[str, Outcome]]:
    """(expected output, outcome) per case, each in a fresh jail."""
    if task.language == "python":
        for stdin, expected in task.stdio:
            yield expected, backend.run(Job("program", {"source": code, "stdin": stdin}, task.limits))
        return
    program = languages.build(backend, task.language, code, task.limits)
    for stdin, expected in task.stdio:
        if program.error:
            yield expected, Outcome("exit", program.error)
        else:
            yield expected, languages.run(backend, program, stdin, task.limits)
