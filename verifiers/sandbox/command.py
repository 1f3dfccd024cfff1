"""Jobs that execute a program of the machine: compilers, node, the JVM, shells, compiled code."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from . import jail, worker


def run(payload: dict[str, Any], *, pid_one: bool) -> None:
    """Write the files, then execute `argv`. Never returns.

    As process 1 of a PID namespace this stays to reap, and to send the kept file; elsewhere it becomes the program.
    """
    os.set_inheritable(jail.STDIN, True)
    worker.put_stdin(payload["stdin"])
    worker.unpack_files(payload["files"])
    argv, keep = payload["argv"], payload["keep"]
    if not pid_one:
        _execute(argv)
    child = os.fork()
    if child == 0:
        if keep:
            os.dup2(jail.STDERR, jail.STDOUT)
        os.close(jail.RESULT)
        _execute(argv)
    code = _reap(child)
    if keep and code == 0:
        with open(keep, "rb") as source, os.fdopen(jail.RESULT, "wb") as out:
            while part := source.read(1 << 20):
                out.write(part)
    os._exit(code)


def _execute(argv: list[str]) -> None:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these; programs expect the default
        signal.signal(number, signal.SIG_DFL)
    try:
        path = os.path.realpath(_find(argv[0]))
        # The loader finds libraries beside a program through /proc or, without it, through this variable.
        os.execve(path, argv, {**os.environ, "LD_ORIGIN_PATH": os.path.dirname(path)})
    except OSError as error:
        sys.stderr.write(f"cannot execute {argv[0]}: {error}\n")
        sys.stderr.flush()
        os._exit(127)


def _find(name: str) -> str:
    if "/" in name:
        return name
    found = (os.path.join(folder, name) for folder in os.get_exec_path())
    return next((path for path in found if os.access(path, os.X_OK)), name)


def _reap(child: int) -> int:
    """The child's exit code, shell style (128 + signal). Other descendants are reaped along the way."""
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
