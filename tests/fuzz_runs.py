"""Runs the cases of tests/fuzzing.py, each in a forked process in a folder of its own, without network.

A case is fine when it ends with exit code 0, or with exit code 2 and one message that is no traceback.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzzing import Case, Fuzzer
from tests.tiny_recipes import RECIPES, fork, run_script, wait_for

CPU_SECONDS, SECONDS = 60, 600.0
"""What a case may take: of one core, and by the clock."""


@dataclass
class Ending:
    case: Case
    code: int
    seconds: float
    output: str
    problems: list[str] = field(default_factory=list)

    @property
    def message(self) -> str:
        """The error without what differs from case to case."""
        found = re.search(r"^(?:error|align[^:\n]*): (?:error: )?(.*)", self.output, re.MULTILINE | re.DOTALL)
        return found[1].strip() if found else ""


def run_align(command_line: Sequence[str]) -> None:
    from alignment.cli import main

    sys.argv = ["align", *command_line]
    raise SystemExit(main())


def run_case(case: Case, folder: Path) -> Ending:
    """Run it to its end in `folder`."""
    output = folder / "output.txt"

    def work() -> None:
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 28, 1 << 28))
        if case.name.startswith("align "):
            run_align([case.name.removeprefix("align "), *case.command_line])
        run_script(case.name, case.command_line)

    started = time.monotonic()
    pid = fork(work, output)
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() - started > SECONDS:
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.003)
    code = wait_for(pid)
    text = output.read_text(encoding="utf-8", errors="backslashreplace") if output.exists() else ""
    ending = Ending(case, code, time.monotonic() - started, text)
    ending.problems = find_problems(ending)
    return ending


def find_problems(ending: Ending) -> list[str]:
    """Why an ending is not one that a user can act on."""
    problems = []
    if "Traceback (most recent call last)" in ending.output:
        problems.append("a traceback")
    passes = (0, 1, 2) if ending.case.name in ("align verify", "align doctor") else (0, 2)
    if ending.code not in passes:
        problems.append("too long" if ending.code in (-signal.SIGKILL, -signal.SIGXCPU) else f"exit code {ending.code}")
    if ending.code == 2 and not ending.message:
        problems.append("no message")
    if ending.code == 2 and len(ending.message) > 3000:
        problems.append(f"a message of {len(ending.message)} characters")
    return problems


def run_cases(seeds: Sequence[int], material: Path, base: Path, say: Callable[[Ending], None]) -> list[Ending]:
    endings = []
    os.environ["HF_HUB_OFFLINE"] = "1"
    for seed in seeds:
        folder = base / f"case-{seed}"
        folder.mkdir(parents=True)
        with contextlib.chdir(folder):
            case = Fuzzer(material, folder, seed).case()
        for name in RECIPES if not case.name.startswith("align") else ():
            importlib.import_module(f"recipes.{name}")
        endings.append(run_case(case, folder))
        say(endings[-1])
    return endings
