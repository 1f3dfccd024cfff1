"""The killable worker: restarts, threads, forks, and nothing left behind."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from verifiers.worker import Worker, WorkerCrashError, WorkerTimeoutError


def echo(value):
    return value


def pid(_):
    return os.getpid()


def sleep(seconds):
    time.sleep(seconds)
    return "slept"


def chatter(value):
    print("noise on standard output", flush=True)
    return value


def leave(_):
    os._exit(3)


def too_much_memory(_):
    return len(bytearray(1 << 33))


def fail(_):
    raise KeyError("broken")


def make(function, timeout_s=20.0, **settings):
    return Worker(f"{__name__}:{function.__name__}", timeout_s, **settings)


def test_values_come_back_and_the_child_is_kept():
    worker = make(pid)
    assert worker.call(None) == worker.call(None) != os.getpid()
    worker.close()


def test_a_call_that_runs_out_of_time_is_killed_and_the_next_one_works():
    worker = make(sleep, timeout_s=1.0)
    assert worker.call(0) == "slept"
    old = worker._process
    with pytest.raises(WorkerTimeoutError):
        worker.call(60)
    assert old.returncode is not None and not psutil.pid_exists(old.pid)
    assert worker.call(0) == "slept"
    worker.close()


def test_an_exception_of_the_target_is_reported_and_the_child_survives():
    worker = make(fail)
    with pytest.raises(RuntimeError, match="KeyError"):
        worker.call(1)
    first = worker._process.pid
    with pytest.raises(RuntimeError, match="broken"):
        worker.call(1)
    assert worker._process.pid == first
    worker.close()


def test_a_dying_child_is_a_crash_and_output_does_not_enter_the_protocol():
    worker = make(leave)
    with pytest.raises(WorkerCrashError):
        worker.call(None)
    noisy = make(chatter)
    assert [noisy.call(i) for i in range(3)] == [0, 1, 2]
    noisy.close()


def test_memory_is_limited():
    worker = make(too_much_memory, memory_bytes=1 << 30)
    with pytest.raises(RuntimeError, match="MemoryError"):
        worker.call(None)
    worker.close()


def test_a_target_that_cannot_be_imported_names_the_reason():
    with pytest.raises(WorkerCrashError, match="no_such_module"):
        Worker("no_such_module:f", 1.0).call(None)


def test_the_child_is_replaced_after_max_calls():
    worker = make(pid, max_calls=2)
    pids = [worker.call(None) for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]
    worker.close()


def test_threads_get_their_own_answers():
    worker, seen = make(echo), {}

    def ask(i):
        seen[i] = [worker.call([i, j]) for j in range(20)]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert seen == {i: [[i, j] for j in range(20)] for i in range(8)}
    worker.close()


def test_a_forked_process_starts_a_child_of_its_own_and_the_parents_stays():
    worker = make(pid)
    mine = worker.call(None)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, str(worker.call(None)).encode())
            worker.close()
        finally:
            os._exit(0)
    os.close(write)
    theirs = int(os.read(read, 100))
    os.waitpid(child, 0)
    assert theirs != mine and worker.call(None) == mine
    worker.close()


@pytest.mark.parametrize("ending", ["pass", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
def test_the_child_ends_with_its_owner(ending):
    code = "from tests.test_verifiers_worker import *; w = make(pid); print(w.call(None), flush=True); " + ending
    root = str(Path(__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    left = int(done.stdout)
    deadline = time.monotonic() + 20
    while _runs(left) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs(left)


def _runs(process_id):
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE  # a container may lack a reaping init
    except psutil.NoSuchProcess:
        return False
