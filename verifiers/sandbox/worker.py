"""The code that runs inside a jail, after the doors are shut: reads its payload and does one of five kinds of work.

In the jails of kinds `program`, `calls` and `serve` nothing here is trusted any more once the candidate's first line
has run; whatever such a jail sends is only ever compared with, or called by, code elsewhere.
"""

from __future__ import annotations

import atexit
import base64
import builtins
import contextlib
import errno
import gc
import os
import socket
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

from . import codec, jail, wire
from .job import EXIT_BY_STATUS

# The modules that programs use most; loaded once in the template instead of once per job.
_COMMON = """abc array ast bisect calendar cmath collections collections.abc contextlib copy dataclasses datetime
decimal enum fractions functools heapq inspect io itertools json math numbers operator random re
statistics string struct textwrap threading time traceback types typing"""


def preload() -> None:
    """In the template: load what jails need, so that a jail loads and creates as little as can be."""
    global _reseed
    # What `random` and `threading` do in a forked child, in Python, takes a tenth of a job's time. `run` does the
    # first's work with less; the second's is for threads, of which the template has one.
    register, os.register_at_fork = os.register_at_fork, _register_nothing  # type: ignore[assignment]
    try:
        from . import command, serving, testing  # noqa: F401 (they import this module)

        for name in _COMMON.split():
            __import__(name)
    finally:
        os.register_at_fork = register
    generator = sys.modules["random"].seed.__self__
    _reseed = super(type(generator), generator).seed
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    _make_streams()


def _register_nothing(**_: Any) -> None:
    pass


def _reseed() -> None:
    """Replaced by the generator's own method in `preload`."""


def _make_streams() -> None:
    """The text streams of all jails. They are made over a file and pipes, as a jail has them at these descriptors, and
    not used here."""
    file = os.memfd_create("stdin")
    end, pipe = os.pipe()
    saved = [os.dup(fd) for fd in (jail.STDIN, jail.STDOUT, jail.STDERR)]
    for fd, like in ((jail.STDIN, file), (jail.STDOUT, pipe), (jail.STDERR, pipe)):
        os.dup2(like, fd)
    sys.stdin = os.fdopen(jail.STDIN, encoding="utf-8", errors="surrogateescape")
    sys.stdout = os.fdopen(jail.STDOUT, "w", encoding="utf-8", errors="surrogateescape")
    sys.stderr = os.fdopen(jail.STDERR, "w", encoding="utf-8", errors="backslashreplace")
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    for fd, original in enumerate(saved):
        os.dup2(original, fd)
    for fd in (file, end, pipe, *saved):
        os.close(fd)


def run(kind: str, *, pid_one: bool) -> None:
    """Do the work and end the process: 0 when it went well, a code of EXIT_BY_STATUS at a limit, else 1."""
    _reseed()
    payload = codec.from_bytes(os.pread(jail.PAYLOAD, os.fstat(jail.PAYLOAD).st_size, 0))
    os.close(jail.PAYLOAD)
    if kind == "command":
        from . import command

        command.run(payload, pid_one=pid_one)
    work = {"program": _program, "calls": _calls, "serve": _serve, "tests": _tests}[kind]
    code = _code_of(lambda: work(payload))
    if kind == "program":
        code = _code_of(_end_as_python_does) or code
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            code = code or 1
    os._exit(code)


def _code_of(work: Callable[[], None]) -> int:
    try:
        work()
    except SystemExit as error:
        return exit_code(error)
    except BaseException as error:
        with contextlib.suppress(BaseException):
            traceback.print_exc(limit=-6)
        return _limit_code(error)
    return 0


def _end_as_python_does() -> None:
    """Wait for the program's threads, which may do all its work, then call what it registered for its end."""
    import threading

    while threads := [t for t in threading.enumerate() if t is not threading.current_thread() and not t.daemon]:
        for thread in threads:
            thread.join()
    atexit._run_exitfuncs()


def exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    sys.stderr.write(str(error.code) + "\n")
    return 1


def _limit_code(error: BaseException) -> int:
    if isinstance(error, MemoryError):
        return EXIT_BY_STATUS["memory"]
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EAGAIN or "can't start new thread" in str(error):
        return EXIT_BY_STATUS["processes"]
    names = {errno.EMFILE: "open_files", errno.EFBIG: "file_size", errno.ENOSPC: "disk", errno.ENOMEM: "memory"}
    return EXIT_BY_STATUS[names[number]] if number in names else 1


def put_stdin(text: str) -> None:
    """Standard input as a file, so that no side ever waits for the other."""
    fd = os.open("stdin", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(text.encode("utf-8", "surrogateescape"))
    os.unlink("stdin")
    os.lseek(fd, 0, os.SEEK_SET)
    os.dup2(fd, jail.STDIN)
    os.close(fd)


def _module(name: str) -> dict[str, Any]:
    """The namespace of a new module for foreign code. From here on garbage is collected, of what comes from here on."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    gc.freeze()
    gc.enable()
    return module.__dict__


def _program(payload: dict[str, Any]) -> None:
    put_stdin(payload["stdin"])
    sys.argv = ["solution.py"]
    exec(compile(payload["source"], "solution.py", "exec"), _module("__main__"))


def load(source: str) -> dict[str, Any]:
    """The namespace of the candidate's module. Not `__main__`, so guarded example code does not run."""
    code, namespace = compile(source, "solution.py", "exec"), _module("solution")
    exec(code, namespace)
    return namespace


def resolve(namespace: dict[str, Any], entry_point: str) -> Any:
    """`name`, or `Class.method` on a fresh instance."""
    name, _, method = entry_point.partition(".")
    if name not in namespace:
        raise NameError(f"the program does not define {name!r}")
    found = namespace[name]
    return getattr(found(), method) if method else found


def _calls(payload: dict[str, Any]) -> None:
    with os.fdopen(jail.RESULT, "wb", buffering=0) as out:
        function = resolve(load(payload["source"]), payload["entry_point"])
        for args, kwargs in payload["calls"]:
            try:
                value = function(*codec.decode(args), **codec.decode(kwargs))
                answer = {"ok": codec.encode(value)}
            except Exception as error:
                answer = {"error": wire.describe(error)}
            out.write(codec.to_bytes(answer) + b"\n")


def _serve(payload: dict[str, Any]) -> None:
    from . import serving

    serving.serve(socket.socket(fileno=jail.PEER), payload["source"])


def _tests(payload: dict[str, Any]) -> None:
    from . import testing

    gc.enable()
    result = testing.run_tests(socket.socket(fileno=jail.PEER), payload)
    os.write(jail.RESULT, codec.to_bytes(result))


def unpack_files(files: dict[str, str]) -> None:
    for name, content in files.items():
        with open(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700), "wb") as file:
            file.write(base64.b64decode(content))
