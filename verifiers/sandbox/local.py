"""`Sandbox`: the host's side. Starts the template, sends jobs, reads their output within caps, says how they ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from . import jail
from .job import EXIT_BY_STATUS, STATUS_BY_EXIT, Job, Limits, Outcome, SandboxError, Status
from .syscall_numbers import ARCH

TIERS = ("namespaces", "flat")
_BOOT = """
import sys, types
package = types.ModuleType("_jail")
package.__path__ = [sys.argv[1]]
sys.modules["_jail"] = package
from _jail import template
template.main(sys.argv[2])
"""
_START_TIMEOUT_S = 60.0
_PATH = "/usr/local/bin:/usr/bin:/bin"
_MESSAGES: dict[str, str] = {
    "wall_time": "ran longer than {0.wall_s:g} s",
    "cpu_time": "used more than {0.cpu_s:g} s of processor time",
    "memory": "used more than {0.memory_mb} MiB of memory",
    "processes": "started more than {0.processes} processes or threads",
    "open_files": "opened more than {0.open_files} files",
    "file_size": "wrote a file larger than {0.file_mb} MiB",
    "disk": "filled its directory ({0.disk_mb} MiB, {0.files} files)",
    "output": "printed more than {0.output_mb:g} MiB",
    "stopped": "stopped, because its partner ended",
}


@dataclass(slots=True)
class _Reading:
    """One job's pipes as the host reads them."""

    job: Job
    ends: dict[int, bytearray]  # result and errors by descriptor, in this order
    sizes: int = 0
    report: dict[str, Any] = field(default_factory=dict)


class Sandbox:
    """Runs jobs on this machine, `workers` at a time, from any thread; a forked process starts its own template.

    tier: "namespaces" or "flat"; None takes the best that works here. Raises SandboxError when none (or not the one
    asked for) works; it never runs code with less than a whole tier.
    modules: import these once in the template, for programs that need them (numpy, sympy).
    paths: further directories that jails may read and import from, such as the one these modules are installed in.
    """

    def __init__(
        self,
        tier: str | None = None,
        workers: int | None = None,
        modules: Sequence[str] = (),
        paths: Sequence[str] = (),
        _off: Sequence[str] = (),
    ) -> None:
        if unknown := set(_off) - jail.SWITCHES:
            raise ValueError(f"unknown protections {sorted(unknown)}")
        self.workers = workers or len(os.sched_getaffinity(0))
        self._config: dict[str, Any] = {
            "modules": list(modules),
            "extra": [os.path.realpath(p) for p in paths],
            "off": list(_off),
        }
        self._config["slots"] = 2 * self.workers
        self._free = threading.BoundedSemaphore(self.workers)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._tier = ""
        self._start((tier,) if tier else TIERS)

    @property
    def tier(self) -> str:
        return self._tier

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the template and all its jails."""
        with self._lock:
            self._stop()

    def find(self, tool: str) -> str | None:
        return shutil.which(tool, path=_PATH)

    def run(self, job: Job) -> Outcome:
        return self._run([job])[0]

    def run_pair(self, serve: Job, tests: Job) -> tuple[Outcome, Outcome]:
        first, second = self._run([serve, tests])
        return first, second

    def _start(self, tiers: Sequence[str]) -> None:
        if not ARCH:
            raise SandboxError(f"no sandbox for {sys.platform} on {os.uname().machine}: needs Linux on x86-64 or arm64")
        refusals = []
        for tier in tiers:
            refusal = self._start_tier(tier)
            if not refusal:
                self._tier = tier
                return
            refusals.append(f"{tier}: {refusal}")
        raise SandboxError("no sandbox tier works on this machine, so no code is run. " + "; ".join(refusals))

    def _start_tier(self, tier: str) -> str:
        """Start a template; returns the reason why this tier does not work, or ""."""
        if tier not in TIERS:
            raise ValueError(f"unknown sandbox tier {tier!r}; choose from {', '.join(TIERS)}")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._work = ""
        if tier == "flat" or self._config["off"]:
            self._work = tempfile.mkdtemp(prefix="sandbox-", dir=_roomy_memory(self._config["slots"]))
        config = json.dumps({**self._config, "tier": tier, "work": self._work})
        # sys._base_executable: the interpreter without the virtual environment's packages.
        python = getattr(sys, "_base_executable", None) or sys.executable
        command = [python, "-S", "-s", "-P", "-B", "-X", "utf8", "-c", _MOVE_CONTROL + _BOOT, os.path.dirname(__file__)]
        self._process = subprocess.Popen(
            [*command, config, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            env={
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                "PATH": _PATH,
                "LANG": "C.UTF-8",
                "PYTHONHASHSEED": "0",
                "LD_BIND_NOW": "1",  # or every jail would look up the same functions
            },
            cwd="/",
            start_new_session=True,
        )
        theirs.close()
        self._control, self._owner = ours, os.getpid()
        ours.settimeout(_START_TIMEOUT_S)
        try:
            answer = json.loads(ours.recv(1 << 16) or b"{}")
        except OSError as error:
            answer = {"refused": f"the template did not start: {error}"}
        ours.settimeout(None)
        if answer.get("ready"):
            return ""
        assert self._process.stderr is not None
        refusal = answer.get("refused")
        self._process.kill()
        refusal = refusal or "the template ended: " + self._process.stderr.read().decode(errors="replace")[-500:]
        self._stop()
        return refusal

    def _stop(self) -> None:
        if self._process is None or self._owner != os.getpid():
            return
        self._control.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr:
            self._process.stderr.close()
        self._process = None
        if self._work:
            shutil.rmtree(self._work, ignore_errors=True)

    def _ready_control(self) -> socket.socket:
        """The template's socket, after a restart if this is a forked copy or the template has ended."""
        with self._lock:
            if self._owner != os.getpid():
                self._control.close()
                self._process = None
                self._start([self._tier])
            elif self._process is None or self._process.poll() is not None:
                self._stop()
                self._start([self._tier])
            return self._control

    def _run(self, jobs: list[Job]) -> list[Outcome]:
        if self._tier == "flat" and any(job.processes for job in jobs):
            raise SandboxError("a job that starts processes needs the namespaces tier; this machine offers flat only")
        if self._owner != os.getpid():  # another thread may have held these at the fork
            self._lock, self._free = threading.Lock(), threading.BoundedSemaphore(self.workers)
        with self._free:
            control = self._ready_control()
            status, readings = _send(control, self._lock, jobs)
            with contextlib.closing(status):
                try:
                    _read_all(status, readings)
                finally:
                    for reading in readings:
                        for fd in reading.ends:
                            os.close(fd)
        return [_outcome(reading) for reading in readings]


def _roomy_memory(slots: int) -> str | None:
    """/dev/shm when every slot may fill its directory there at the default limit (containers often have 64 MiB)."""
    try:
        space = os.statvfs("/dev/shm")
    except OSError:
        return None
    roomy = space.f_bavail * space.f_frsize >= slots * Limits().disk_mb << 20
    return "/dev/shm" if roomy and os.access("/dev/shm", os.W_OK) else None


def probe() -> dict[str, str]:
    """For each tier "" when it works on this machine, else the reason why not. Starts and ends a template for each."""
    found = {}
    for tier in TIERS:
        try:
            Sandbox(tier, workers=1).close()
            found[tier] = ""
        except SandboxError as error:
            found[tier] = str(error).rpartition(f"{tier}: ")[2]
    return found


_MOVE_CONTROL = "import os, sys; os.dup2(int(sys.argv[3]), 3)"


def _send(control: socket.socket, lock: threading.Lock, jobs: list[Job]) -> tuple[socket.socket, list[_Reading]]:
    status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    header, fds, readings = [], [theirs.fileno()], []
    peers = [end.detach() for end in socket.socketpair()] if len(jobs) == 2 else []
    for index, job in enumerate(jobs):
        payload = os.memfd_create("payload", os.MFD_CLOEXEC)
        with open(payload, "wb", closefd=False) as file:
            file.write(json.dumps(job.payload).encode())
        out, out_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        err, err_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for fd in (out_write, err_write):
            os.set_blocking(fd, True)
        fds += [payload, out_write, err_write, *peers[index : index + 1]]
        spec = job.to_json()
        del spec["payload"]
        header.append({**spec, "peer": bool(peers)})
        readings.append(_Reading(job, {out: bytearray(), err: bytearray()}))
    try:
        with lock:
            socket.send_fds(control, [json.dumps(header).encode()], fds)
    except OSError as error:
        status.close()
        for fd in (fd for reading in readings for fd in reading.ends):
            os.close(fd)
        raise SandboxError(f"the sandbox's template is gone: {error}") from error
    finally:
        theirs.close()
        for fd in fds[1:]:
            os.close(fd)
    return status, readings


def _read_all(status: socket.socket, readings: list[_Reading]) -> None:
    """Until every job has been reported and its pipes are empty. A job that prints too much is killed.

    Their end is not waited for: a process that the host forked meanwhile may hold a copy of the writing end.
    """
    poller = select.poll()
    poller.register(status, select.POLLIN)
    owner = {fd: (index, reading) for index, reading in enumerate(readings) for fd in reading.ends}
    for fd in owner:
        poller.register(fd, select.POLLIN)
    reports = 0
    longest = max(r.job.limits.wall_s for r in readings)
    deadline = time.monotonic() + longest + 60.0
    while reports < len(readings):
        for fd, _ in poller.poll(1000):
            if fd == status.fileno():
                try:
                    message = status.recv(1 << 16)
                except ConnectionResetError:  # a word of ours was not read any more; what came before is still there
                    continue
                if not message:
                    raise SandboxError("the sandbox's template ended during a job")
                report = json.loads(message)
                readings[report["index"]].report.update(report)
                reports += "code" in report
            elif not _read_end(fd, *owner[fd], status):
                poller.unregister(fd)
        if time.monotonic() > deadline:
            raise SandboxError("the sandbox's template does not answer")
    for fd, (index, reading) in owner.items():
        while _read_end(fd, index, reading, status):
            pass


def _read_end(fd: int, index: int, reading: _Reading, status: socket.socket) -> bool:
    """Read what there is; False when that is nothing."""
    try:
        part = os.read(fd, 1 << 18)
    except BlockingIOError:
        return False
    if not part:
        return False
    room = int(reading.job.limits.output_mb * (1 << 20)) - reading.sizes
    reading.sizes += len(part)
    if room > 0:
        reading.ends[fd] += part[:room]
    if len(part) > room >= 0:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            status.send(b"%d output" % index)
    return True


def _outcome(reading: _Reading) -> Outcome:
    report, limits = reading.report, reading.job.limits
    stdout, stderr = (bytes(content) for content in reading.ends.values())
    figures = {"wall_s": report["wall_s"], "cpu_s": report["cpu_s"], "max_rss_mb": report["rss_mb"]}
    if "setup" in report:
        return Outcome("setup", report["setup"], **figures)
    status, detail = _classify(report, reading)
    if not detail and status in _MESSAGES:
        detail = _MESSAGES[status].format(limits)
    code = report["code"] if report["code"] >= 0 else None
    return Outcome(status, detail, code, stdout, stderr, **figures)


def _classify(report: dict[str, Any], reading: _Reading) -> tuple[Status, str]:
    code, limits = report["code"], reading.job.limits
    if reading.sizes > limits.output_mb * (1 << 20):
        return "output", ""
    if report["reason"]:
        return report["reason"], ""
    if code == 0:
        return "ok", ""
    if code < 0 or code > 128:
        signal_number = -code if code < 0 else code - 128
        if signal_number in (9, 24) and report["cpu_s"] >= limits.cpu_s / 2:
            return "cpu_time", ""
        if signal_number == 25:
            return "file_size", ""
        return "signal", f"ended by signal {signal_number}"
    if code in STATUS_BY_EXIT and reading.job.kind != "command":
        return STATUS_BY_EXIT[code], ""
    return "exit", f"exit code {code}"


assert set(EXIT_BY_STATUS) <= set(_MESSAGES)
