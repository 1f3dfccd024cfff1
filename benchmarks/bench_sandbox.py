"""Programs per second and processor time per program: the sandbox against `python -I` and a runner in the style of
OpenAI's human-eval, on the same programs, in one run.

    python benchmarks/bench_sandbox.py [--jobs 300] [--workers 2] [--tier namespaces]

Processor time counts the host, the template and all jails (or child processes).
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from verifiers.code import code, use_backend
from verifiers.sandbox import TIERS, Job, Sandbox, SandboxError

SOURCE = "def add(a, b):\n    return a + b\n"
TEST = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n"
ROW = {"entry_point": "add", "test": TEST}
PROGRAM = Job("program", {"source": SOURCE + TEST + "check(add)\n", "stdin": ""})


def in_one_jail(sandbox: Sandbox) -> None:
    assert sandbox.run(PROGRAM).ok


def in_two_jails(sandbox: Sandbox) -> None:
    assert code(f"```python\n{SOURCE}```", ROW).status == "pass"


def by_python_isolated(_: object) -> None:
    subprocess.run([sys.executable, "-I", "-c", PROGRAM.payload["source"]], check=True, timeout=10)


def _execute(source: str, result: multiprocessing.connection.Connection) -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        try:
            exec(source, {})
            result.send("passed")
        finally:
            os.chdir("/")


def by_process_and_exec(_: object) -> None:
    """A process per program that runs program and tests by `exec` and says itself whether they passed."""
    read, write = multiprocessing.Pipe(False)
    process = multiprocessing.get_context("fork").Process(target=_execute, args=(PROGRAM.payload["source"], write))
    process.start()
    assert read.recv() == "passed"
    process.join(10)


def processor_seconds(template: int | None) -> float:
    own = sum(os.times()[:4])
    if template is None:
        return own
    with open(f"/proc/{template}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return own + sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def measure(name: str, work: Callable, sandbox: Sandbox | None, jobs: int, workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, [sandbox] * workers))  # warm
        template = sandbox._process.pid if sandbox and sandbox._process else None
        cpu, start = processor_seconds(template), time.perf_counter()
        list(pool.map(work, [sandbox] * jobs))
        wall, cpu = time.perf_counter() - start, processor_seconds(template) - cpu
    print(
        f"{name:34s} {jobs / wall:8.0f} /s {1e3 * cpu / jobs:8.2f} CPU-ms {1e3 * wall / jobs:8.2f} ms wall", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tier", choices=TIERS, action="append")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}, {options.workers} workers, {options.jobs} jobs")
    for tier in options.tier or TIERS:
        try:
            sandbox = Sandbox(tier, options.workers)
        except SandboxError as error:
            print(error)
            continue
        use_backend(sandbox)
        measure(f"{tier}, one jail", in_one_jail, sandbox, options.jobs, options.workers)
        measure(f"{tier}, two jails", in_two_jails, sandbox, options.jobs, options.workers)
        sandbox.close()
    measure("python -I (no protection)", by_python_isolated, None, options.jobs // 3, options.workers)
    measure("process + exec (no protection)", by_process_and_exec, None, options.jobs // 3, options.workers)


if __name__ == "__main__":
    main()
