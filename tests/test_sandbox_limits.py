"""Every limit of a job, and every way a job can end, in each tier and for each kind of user.

All floods stop by themselves at small sizes, so that a missing protection fails a test and hurts nobody.
"""

from __future__ import annotations

import pytest

from tests.sandbox_modes import ATTEMPT, SMALL, assert_alive, assert_refused, printed, run, sandbox
from verifiers.sandbox import Job, Limits

__all__ = ["sandbox"]  # a fixture


# Limits


@pytest.mark.parametrize(
    "source",
    ["while True: pass", "9**9**9", "import re; re.match(r'(a+)+$', 'a' * 60 + 'b')"],
    ids=["infinite loop", "huge power", "catastrophic regex"],
)
def test_endless_computation_is_killed(sandbox, source):
    assert run(sandbox, source, cpu_s=0.2).status == "cpu_time"


def test_sleep_is_killed_at_the_wall_limit(sandbox):
    outcome = run(sandbox, "import time; time.sleep(60)", wall_s=0.2)
    assert outcome.status == "wall_time" and outcome.wall_s < 30


def test_ignored_signals_do_not_stretch_the_limit(sandbox):
    source = "import signal\nfor n in (1, 2, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: pass"
    assert run(sandbox, source, cpu_s=0.2).status == "cpu_time"


def test_fork_is_refused(sandbox):
    assert_refused(run(sandbox, ATTEMPT + "import os; attempt(os.fork)"))


def test_exec_is_refused(sandbox):
    assert_refused(run(sandbox, ATTEMPT + "import os; attempt(os.execv, '/bin/true', ['true'])"))


def test_threads_are_limited(sandbox):
    source = """
import threading, time
for _ in range(200):
    threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
time.sleep(5)
"""
    assert run(sandbox, source, memory_mb=4096).status == "processes"


def test_memory_is_limited(sandbox):
    assert run(sandbox, "kept = [bytearray(8 << 20) for _ in range(40)]").status == "memory"


def test_memory_outside_the_heap_is_limited(sandbox):
    source = "import mmap\nkept = [mmap.mmap(-1, 8 << 20) for _ in range(40)]\nfor m in kept: m.write(bytes(8 << 20))"
    assert run(sandbox, source).status == "memory"


def test_memory_files_are_refused(sandbox):
    assert_refused(run(sandbox, ATTEMPT + "import os; attempt(os.memfd_create, 'x')"))


def test_disk_is_limited(sandbox):
    source = "import time\nfor n in range(40):\n    open(str(n), 'wb').write(bytes(1 << 20)); time.sleep(0.03)"
    assert run(sandbox, source).status == "disk"


@pytest.mark.parametrize("kept", ["file", "mmap.mmap(file.fileno(), 4096)"], ids=["open", "mapped"])
def test_disk_of_deleted_files_is_limited(sandbox, kept):
    source = f"""
import mmap, os, time
kept = []
for n in range(16):
    with open(str(n), 'wb+') as file:
        os.unlink(str(n))
        file.write(bytes(3 << 20)); file.flush()
        kept.append(os.dup(file.fileno()) if {kept!r} == 'file' else {kept})
    time.sleep(0.05)
"""
    assert run(sandbox, source).status == "disk"


def test_file_size_is_limited(sandbox):
    assert (
        run(sandbox, "f = open('x', 'wb')\nfor _ in range(32): f.write(bytes(1 << 20)); f.flush()").status
        == "file_size"
    )


def test_number_of_files_is_limited(sandbox):
    source = "import time\nfor n in range(400):\n    open(str(n), 'w').close(); time.sleep(0.002)"
    assert run(sandbox, source).status == "disk"


def test_open_files_are_limited(sandbox):
    assert run(sandbox, "kept = [open('/dev/null') for _ in range(200)]").status == "open_files"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_flood_is_cut(sandbox, stream):
    source = f"import sys\nfor _ in range(64): sys.{stream}.write('x' * (1 << 20))"
    outcome = run(sandbox, source, output_mb=0.25)
    assert outcome.status == "output" and len(outcome.stdout) + len(outcome.stderr) <= 1 << 18


def test_result_flood_is_cut(sandbox):
    payload = {"source": "def f(): return 'x' * (16 << 20)", "entry_point": "f", "calls": [[[], {"d": []}]]}
    outcome = sandbox.run(Job("calls", payload, Limits(**{**SMALL, "memory_mb": 512}, output_mb=0.25)))
    assert outcome.status == "output" and len(outcome.stdout) <= 1 << 18


def test_rlimits_cannot_be_raised(sandbox):
    source = """
import resource
for which in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
    try:
        resource.setrlimit(which, (-1, -1)); print("REACHED", which)
    except (ValueError, OSError): print("refused")
"""
    assert_refused(run(sandbox, source))


@pytest.mark.parametrize(
    ("source", "limits", "status", "detail"),
    [
        ("import time; time.sleep(60)", {"wall_s": 0.2}, "wall_time", "ran longer than 0.2 s"),
        ("while True: pass", {"cpu_s": 0.2}, "cpu_time", "used more than 0.2 s of processor time"),
        ("kept = bytearray(1 << 28)", {}, "memory", "used more than 64 MiB of memory"),
        (
            "import threading, time\nfor _ in range(99): threading.Thread(target=time.sleep, args=(5,)).start()",
            {"memory_mb": 4096},
            "processes",
            "started more than 16 processes or threads",
        ),
        ("kept = [open('/dev/null') for _ in range(99)]", {}, "open_files", "opened more than 32 files"),
        ("open('x', 'wb').write(bytes(5 << 20))", {}, "file_size", "wrote a file larger than 4 MiB"),
        (
            "import time\nfor n in range(400):\n    open(str(n), 'w').close(); time.sleep(0.002)",
            {},
            "disk",
            "filled its directory (8 MiB, 64 files)",
        ),
        ("print('x' * (1 << 20))", {"output_mb": 0.25}, "output", "printed more than 0.25 MiB"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_each_limit_has_a_status_and_a_message_of_its_own(sandbox, source, limits, status, detail):
    outcome = run(sandbox, source, **limits)
    assert (outcome.status, outcome.detail) == (status, detail)


# Ends


@pytest.mark.parametrize(
    ("source", "status", "code"),
    [
        ("import sys; sys.exit(0)", "ok", 0),
        ("import sys; sys.exit(3)", "exit", 3),
        ("import os; os._exit(4)", "exit", 4),
        ("raise SystemExit('no')", "exit", 1),
        ("1 / 0", "exit", 1),
        ("import ctypes; ctypes.string_at(0)", "signal", None),
        ("import os; os.abort()", "signal", None),
    ],
)
def test_end_is_reported_as_it_was(sandbox, source, status, code):
    outcome = run(sandbox, source, memory_mb=256)
    assert (outcome.status, outcome.exit_code) == (status, code)


def test_threads_are_waited_for_and_exit_functions_called(sandbox):
    source = """
import atexit, threading, time
def main():
    time.sleep(0.1)
    print("thread")
atexit.register(print, "exit")
threading.Thread(target=main).start()
print("main")
"""
    assert printed(run(sandbox, source)) == "main\nthread\nexit\n"


def test_unbounded_recursion_ends_the_job_only(sandbox):
    source = "import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()"
    assert run(sandbox, source).status in ("memory", "signal")
    assert_alive(sandbox)


def test_no_state_reaches_the_next_job(sandbox):
    run(
        sandbox,
        "import builtins, json, sys; builtins.len = json.dumps = None; sys.modules['math'] = None; open('left', 'w')",
    )
    source = "import json, math, os; print(len(json.dumps([math.pi])), os.listdir('.'))"
    assert printed(run(sandbox, source)) == "19 []\n"


def test_jobs_draw_different_random_numbers(sandbox):
    first, second = (printed(run(sandbox, "import random; print(random.random())")) for _ in range(2))
    assert first != second


def test_garbage_is_collected(sandbox):
    loop = "for _ in range(20_000):\n    n = Node(); n.own = n; n.text = bytearray(10_000)\n"
    assert printed(run(sandbox, f"class Node: pass\n{loop}print(1)")) == "1\n"
