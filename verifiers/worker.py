"""A killable worker process: one function called in a child that is restarted when a call runs out of time.

For checks that cannot be interrupted from inside (computer algebra). The child is persistent, so that its imports are
paid once. It may be called from any thread; a process made by `fork` starts a child of its own; the child ends with
its owner (at exit it is killed and waited for; when the owner is killed, the child sees that and leaves).

Covered: endless computation, memory (RLIMIT_AS), crashes. Not covered: hostile code. The worker runs trusted functions
on untrusted *data*; code that a model wrote belongs in `verifiers.sandbox`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

_HEADER_BYTES = 8
_START_TIMEOUT_S = 120.0
_OWNER_POLL_S = 1.0
_BOOT = (
    "import json,sys; a=json.loads(sys.argv[1]); sys.path[:]=a['path']; from verifiers.worker import serve; serve(a)"
)


class WorkerTimeoutError(Exception):
    """The call took longer than allowed; the child was killed."""


class WorkerCrashError(Exception):
    """The child died during the call, or cannot be started."""


class Worker:
    """Calls `target` ("package.module:function", taking and returning JSON values) in a child process.

    timeout_s: wall time per call; start-up (imports) does not count. memory_bytes: the child's address space.
    max_calls: the child is replaced after so many calls, which bounds what its caches hold.
    """

    def __init__(self, target: str, timeout_s: float, memory_bytes: int = 4 << 30, max_calls: int = 20_000) -> None:
        self.target, self.timeout_s = target, timeout_s
        self._memory_bytes, self._max_calls = memory_bytes, max_calls
        self._process: subprocess.Popen[bytes] | None = None
        self._calls = 0
        self._lock = threading.Lock()
        _workers.add(self)

    def call(self, argument: Any) -> Any:
        """Raises WorkerTimeoutError, WorkerCrashError, or RuntimeError with the text of an exception of `target`."""
        with self._lock:
            try:
                reply = self._exchange(argument)
            except BaseException:
                self._stop()  # also on KeyboardInterrupt: a reply left in the pipe would answer the next call
                raise
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["value"]

    def close(self) -> None:
        """End the child; the next call starts a new one."""
        with self._lock:
            self._stop()

    def _exchange(self, argument: Any) -> dict[str, Any]:
        if self._process is not None and self._calls >= self._max_calls:
            self._stop()
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        self._calls += 1
        deadline = time.monotonic() + self.timeout_s
        try:
            _write_message(self._process.stdin.fileno(), argument)
            return _read_message(self._process.stdout.fileno(), deadline)
        except (EOFError, BrokenPipeError) as error:
            raise WorkerCrashError(f"the worker for {self.target} died during a call") from error

    def _start(self) -> None:
        argument = {"target": self.target, "path": sys.path, "owner": os.getpid(), "memory": self._memory_bytes}
        command = [sys.executable, "-c", _BOOT, json.dumps(argument)]
        pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
        # An own session keeps a terminal's Ctrl-C from the child; bufsize=0 leaves nothing to flush after a fork.
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=quiet, bufsize=0, start_new_session=True
        )
        self._calls = 0
        assert self._process.stdout is not None
        try:
            ready = _read_message(self._process.stdout.fileno(), time.monotonic() + _START_TIMEOUT_S)
        except (EOFError, WorkerTimeoutError) as error:
            raise WorkerCrashError(f"the worker for {self.target} did not start") from error
        if "error" in ready:
            raise WorkerCrashError(f"the worker for {self.target} did not start: {ready['error']}")

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        _close_pipes(process)

    def _forget(self) -> None:
        """In a forked child: drop the parent's worker without touching it."""
        process, self._process = self._process, None
        self._lock = threading.Lock()
        if process is not None:
            process.returncode = 0  # not our child: nothing to wait for
            _close_pipes(process)


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _stop_all() -> None:
    for worker in list(_workers):
        worker._stop()  # not `close`: a daemon thread may hold the lock for ever


def _forget_all() -> None:
    for worker in list(_workers):
        worker._forget()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_forget_all)


def _write_message(fd: int, value: Any) -> None:
    body = json.dumps(value).encode()
    data = memoryview(len(body).to_bytes(_HEADER_BYTES, "big") + body)
    while data:
        data = data[os.write(fd, data) :]


def _read_message(fd: int, deadline: float | None) -> Any:
    size = int.from_bytes(_read_exactly(fd, _HEADER_BYTES, deadline), "big")
    return json.loads(_read_exactly(fd, size, deadline))


def _read_exactly(fd: int, size: int, deadline: float | None) -> bytes:
    parts: list[bytes] = []
    while size:
        if deadline is not None:
            poll = select.poll()  # not select.select, which fails for descriptors above 1023
            poll.register(fd, select.POLLIN)
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not poll.poll(remaining * 1000):
                raise WorkerTimeoutError
        part = os.read(fd, size)
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def serve(settings: dict[str, Any]) -> None:
    """The child: answer calls until standard input closes or the owner is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, replies = os.dup(0), os.dup(1)
    sink = os.open(os.devnull, os.O_RDWR)
    os.dup2(sink, 0)
    os.dup2(sink, 1)  # whatever the target prints must not enter the protocol
    threading.Thread(target=_leave_with_owner, args=(settings["owner"],), daemon=True).start()
    try:
        module, _, name = settings["target"].partition(":")
        function: Callable[[Any], Any] = getattr(importlib.import_module(module), name)
        _limit_memory(settings["memory"])
    except Exception as error:
        _write_message(replies, {"error": f"{type(error).__name__}: {error}"})
        return
    _write_message(replies, {"value": "ready"})
    while True:
        try:
            argument = _read_message(requests, None)
        except EOFError:
            return
        try:
            reply = {"value": function(argument)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        _write_message(replies, reply)


def _limit_memory(size: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or size < hard:
        resource.setrlimit(resource.RLIMIT_AS, (size, hard))


def _leave_with_owner(owner: int) -> None:
    # End of file on the pipe is not enough: a process forked from the owner may hold its other end open.
    while os.getppid() == owner:
        time.sleep(_OWNER_POLL_S)
    os._exit(0)
