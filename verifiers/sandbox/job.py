"""What a sandbox is asked and what it answers: Limits, Job, Outcome. All three travel as JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

Kind = Literal["program", "calls", "serve", "tests", "command"]
Status = Literal[
    "ok",
    "exit",
    "signal",
    "wall_time",
    "cpu_time",
    "memory",
    "processes",
    "open_files",
    "file_size",
    "disk",
    "output",
    "stopped",
    "setup",
]

# A worker that ends with an uncaught error says by its exit code which limit was hit. A candidate can fake these; all
# of them mean failure.
EXIT_BY_STATUS: dict[str, int] = {"memory": 91, "processes": 92, "open_files": 93, "file_size": 94, "disk": 95}
STATUS_BY_EXIT: dict[int, Status] = {code: name for name, code in EXIT_BY_STATUS.items()}  # type: ignore[misc]


class SandboxError(RuntimeError):
    """The sandbox itself cannot work here or failed; never the fault of the code inside."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Per job. Sizes in MiB, times in seconds. `processes` counts processes and threads together.

    `memory_mb` bounds address space beyond the bare interpreter for Python code, resident memory (polled) for other
    programs. `output_mb` bounds result and standard output together with standard error.
    """

    wall_s: float = 10.0
    cpu_s: float = 10.0
    memory_mb: int = 512
    processes: int = 64
    open_files: int = 64
    file_mb: int = 16
    disk_mb: int = 64
    files: int = 512
    output_mb: float = 4.0


@dataclass(frozen=True, slots=True)
class Job:
    """One jail's work. `payload` by kind:

    program: source, stdin.                              Python text run as `__main__`; answers on standard output
    calls:   source, entry_point, calls [[args, kwargs]] a function on encoded inputs; answers one JSON line per call
    serve:   source                                      answers calls from the jail at the other end of its peer socket
    tests:   setup, test, asserts, entry_point           trusted test code whose functions live in the serving jail
    command: argv, stdin, files {name: base64}, keep     an executable; `keep` names a file to return in place of stdout
    """

    kind: Kind
    payload: Mapping[str, Any]
    limits: Limits = field(default_factory=Limits)
    processes: bool = False  # may fork and exec (`namespaces` tier only)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "payload": dict(self.payload),
            "limits": asdict(self.limits),
            "processes": self.processes,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Job:
        """Raises TypeError or KeyError when `data` is not a job."""
        if data["kind"] not in ("program", "calls", "serve", "tests", "command"):
            raise KeyError(f"unknown kind of job {data['kind']!r}")
        return Job(data["kind"], dict(data["payload"]), Limits(**data["limits"]), bool(data["processes"]))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended. `setup` alone is the sandbox's own failure; every other status is the code's doing.

    `stdout` holds the result or the standard output, `stderr` the rest that was printed.
    """

    status: Status
    detail: str = ""
    exit_code: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    max_rss_mb: float = 0.0

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "stdout": base64.b64encode(self.stdout).decode(),
            "stderr": base64.b64encode(self.stderr).decode(),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Outcome:
        raw = {name: base64.b64decode(data[name]) for name in ("stdout", "stderr")}
        return Outcome(**{**data, **raw})


class Backend(Protocol):
    """Where jobs run: this machine (`Sandbox`) or others (`RemoteSandbox`). Safe to use from many threads."""

    @property
    def tier(self) -> str: ...

    def find(self, tool: str) -> str | None:
        """The path of an executable that jails can run, None when there is none."""
        ...

    def run(self, job: Job) -> Outcome:
        """Run one job. Raises SandboxError when the backend itself does not work."""
        ...

    def run_pair(self, serve: Job, tests: Job) -> tuple[Outcome, Outcome]:
        """Run two jobs joined by a socket. When `tests` ends, `serve` is stopped."""
        ...

    def close(self) -> None: ...
