"""Ways to run the sandbox in tests: each tier, as this user and, when this is root, as an ordinary one; and the small
jobs that attacks are made of."""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from verifiers.sandbox import Job, Limits, Outcome, Sandbox, SandboxError

NOBODY = 65534
# "own users": root in `flat` with an interpreter that all can read, so that every slot has a user of its own
MODES = ("namespaces", "flat", "namespaces-as-nobody", "flat-as-nobody", "flat-with-own-users")
_DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from verifiers.sandbox import Job, Sandbox, SandboxError
try:
    sandbox = Sandbox(sys.argv[2], workers=1)
except SandboxError as error:
    print(json.dumps(str(error)), flush=True)
    raise SystemExit
print(json.dumps(""), flush=True)
for line in sys.stdin:
    jobs = [Job.from_json(job) for job in json.loads(line)]
    outcomes = [sandbox.run(jobs[0])] if len(jobs) == 1 else sandbox.run_pair(*jobs)
    print(json.dumps([outcome.to_json() for outcome in outcomes]), flush=True)
sandbox.close()
"""


class Driver:
    """A sandbox run by another user, in a process of its own that speaks JSON lines."""

    def __init__(self, tier: str, user: int) -> None:
        self.tier = tier
        self.lock = threading.Lock()
        self.home = tempfile.mkdtemp()
        os.chmod(self.home, 0o755)
        package = Path(sys.modules["verifiers"].__file__ or "").parent
        shutil.copytree(package, Path(self.home, "verifiers"), ignore=shutil.ignore_patterns("__pycache__"))
        command = [reachable_python(), "-c", _DRIVER, self.home, tier]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, user=user, group=user, extra_groups=[], cwd="/", text=True, **pipes)  # type: ignore[call-overload]
        refusal = json.loads(self.process.stdout.readline() or '"the driver did not start"')
        if refusal:
            self.close()
            raise SandboxError(refusal)

    def _ask(self, jobs: list[Job]) -> list[Outcome]:
        with self.lock:
            self.process.stdin.write(json.dumps([job.to_json() for job in jobs]) + "\n")
            self.process.stdin.flush()
            return [Outcome.from_json(data) for data in json.loads(self.process.stdout.readline())]

    def find(self, tool: str) -> str | None:
        return shutil.which(tool)

    def run(self, job: Job) -> Outcome:
        return self._ask([job])[0]

    def run_pair(self, serve: Job, tests: Job) -> tuple[Outcome, Outcome]:
        first, second = self._ask([serve, tests])
        return first, second

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()
        shutil.rmtree(self.home, ignore_errors=True)


def reachable_python() -> str:
    """An interpreter that an ordinary user can execute."""
    for candidate in (getattr(sys, "_base_executable", sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"):
        path = os.path.realpath(candidate)
        if os.path.exists(path) and all(os.stat(p).st_mode & 1 for p in [path, *map(str, Path(path).parents)]):
            return path
    raise SandboxError("no interpreter that an ordinary user can execute")


def open_mode(mode: str) -> Sandbox | Driver:
    """Raises SandboxError when this machine or user cannot offer the mode."""
    tier, _, who = mode.partition("-")
    if not who:
        return Sandbox(tier, workers=1)
    if os.geteuid() != 0:
        raise SandboxError("only root can become another user")
    return Driver(tier, NOBODY if who == "as-nobody" else 0)


SMALL = {
    "wall_s": 20.0,
    "cpu_s": 5.0,
    "memory_mb": 64,
    "processes": 16,
    "open_files": 32,
    "file_mb": 4,
    "disk_mb": 8,
    "files": 64,
}
RAW = """
import ctypes, os
def raw(number, *args):
    ctypes.set_errno(0)
    result = ctypes.CDLL(None, use_errno=True).syscall(number, *args)
    return result if result >= 0 else os.strerror(ctypes.get_errno())
"""
ATTEMPT = """
def attempt(action, *args):
    try:
        print("REACHED", action(*args))
    except OSError as error:
        print("refused", error.strerror)
"""


@pytest.fixture(scope="module", params=MODES)
def sandbox(request: pytest.FixtureRequest) -> Iterator:
    try:
        backend = open_mode(request.param)
    except SandboxError as error:
        pytest.skip(str(error))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def secret() -> Iterator[str]:
    """A host file that any user may read and write, in a directory that any user may change."""
    directory = f"/var/tmp/sandbox-test-{os.getpid()}"
    os.mkdir(directory)
    os.chmod(directory, 0o777)
    path = f"{directory}/secret"
    with open(path, "w") as file:
        file.write("TOP SECRET")
    os.chmod(path, 0o666)
    yield path
    for left in glob.glob(f"{directory}/*"):
        os.unlink(left)
    os.rmdir(directory)


def run(sandbox, source: str, stdin: str = "", processes: bool = False, **limits) -> Outcome:
    job = Job("program", {"source": source, "stdin": stdin}, Limits(**{**SMALL, **limits}), processes=processes)
    return sandbox.run(job)


def printed(outcome: Outcome) -> str:
    assert outcome.status == "ok", outcome
    return outcome.stdout.decode()


def assert_refused(outcome: Outcome) -> None:
    text = printed(outcome)
    assert "refused" in text and "REACHED" not in text


def assert_alive(sandbox) -> None:
    assert printed(run(sandbox, "print(6 * 7)")) == "42\n"
