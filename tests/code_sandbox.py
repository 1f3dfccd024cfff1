"""A real sandbox for the `code` verifier while tests run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.sandbox_modes import Driver
from verifiers.code import code, use_backend
from verifiers.sandbox import Sandbox, SandboxError
from verifiers.verdict import Verdict


@contextlib.contextmanager
def judged_in(open_sandbox: Callable[[], Sandbox | Driver]) -> Iterator[Sandbox | Driver]:
    """The verifier runs its programs there meanwhile. Skips the test where this machine cannot offer it."""
    try:
        sandbox = open_sandbox()
    except SandboxError as error:
        pytest.skip(str(error))
    use_backend(sandbox)
    try:
        yield sandbox
    finally:
        use_backend(None)
        sandbox.close()


@pytest.fixture(scope="module", autouse=True)
def backend() -> Iterator[Sandbox | Driver]:
    """For all tests of a module that imports it: the best tier of this machine."""
    with judged_in(lambda: Sandbox(workers=2)) as sandbox:
        yield sandbox


def judge(source: str, row: dict, language: str = "python") -> Verdict:
    return code(f"Here it is.\n```{language}\n{source}\n```\nDone.", row)
