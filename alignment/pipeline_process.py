"""The processes of a pipeline: a stage, whose output goes to its log and to the console, and services beside it.

Each leads a process group of its own. Linux ends its first process when the pipeline's dies, however that happens; a
trainer that is asked to end so saves a checkpoint first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from alignment.errors import UserError
from alignment.pipeline import Service

_POLL_S = 0.1
_SERVICE_END_S = 10.0
_PR_SET_PDEATHSIG = 1


class Interrupted(Exception):
    """The pipeline was asked to stop, by Ctrl-C or SIGTERM."""


def _start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    parent = os.getpid()

    def end_with_the_parent() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it died before we could ask
                os._exit(1)

    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        file.write(f"\n$ {' '.join(command)}\n".encode())
        file.flush()
        try:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=end_with_the_parent,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"{command[0]} cannot be started: {error.strerror}") from error


def run_process(command: Sequence[str], log: Path, started: Callable[[int], None]) -> int:
    """Run a command to its end and return its exit code, showing what it adds to the log. started: gets its process
    group.

    On Ctrl-C or SIGTERM the group is asked to end, waited for, and Interrupted raised; at a second one it is killed.
    """
    before = log.stat().st_size if log.exists() else 0
    with _asked_to_stop() as asked:
        process = _start(command, log)
        started(process.pid)
        told = 0
        with log.open("rb") as shown:
            shown.seek(before)
            while process.poll() is None:
                _copy(shown)
                if asked() > told:
                    told = asked()
                    _signal(process.pid, signal.SIGTERM if told == 1 else signal.SIGKILL)
                time.sleep(_POLL_S)
            _copy(shown)
        while told and group_is_alive(process.pid, time.time()):  # what a launcher has left behind may be saving
            if asked() > 1:
                _signal(process.pid, signal.SIGKILL)
            time.sleep(_POLL_S)
        if told:
            raise Interrupted
    return process.returncode


def _copy(stream) -> None:
    text = stream.read().decode(errors="replace")
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[Callable[[], int]]:
    """Yields a function that tells how often Ctrl-C or SIGTERM came; the handlers from before are restored."""
    came: list[int] = []
    previous = {n: signal.signal(n, lambda number, frame: came.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: len(came)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def services_running(services: Sequence[Service], folder: Path) -> Iterator[None]:
    """The services, ready; they are ended afterwards. Their logs are `service-NAME.log` in the folder.

    Raises UserError when one ends or is not ready in time, or when its port is taken.
    """
    with contextlib.ExitStack() as stack:
        for service in services:
            if _answers(service.ready):
                raise UserError(f"service {service.name!r}: something else answers at {service.ready} already")
            log = folder / f"service-{service.name}.log"
            python = [sys.executable] if service.command[0] == "python" else service.command[:1]
            process = _start([*python, *service.command[1:]], log)
            stack.callback(_end, process)
            deadline = time.monotonic() + service.ready_s
            while not _answers(service.ready):
                if process.poll() is not None:
                    raise UserError(f"service {service.name!r} ended with exit code {process.returncode}; see {log}")
                if time.monotonic() > deadline:
                    raise UserError(f"service {service.name!r} is not ready after {service.ready_s:g} s; see {log}")
                time.sleep(_POLL_S)
        yield


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    _signal(process.pid, signal.SIGTERM)
    try:
        process.wait(_SERVICE_END_S)
    except subprocess.TimeoutExpired:
        _signal(process.pid, signal.SIGKILL)
        process.wait()


def group_is_alive(group: int, recorded: float) -> bool:
    """Whether a process of this group, begun before its record was written (unix time), still lives: numbers are used
    again."""
    for process in psutil.process_iter(["create_time", "status"]):
        with contextlib.suppress(OSError, psutil.Error):
            young = process.info["create_time"] > recorded + 1
            if os.getpgid(process.pid) == group and not young and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False
