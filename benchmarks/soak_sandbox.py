"""What a long row of jobs leaves behind: processes, descriptors, files, mounts and memory of the sandbox itself,
counted after its first jobs, after a tenth of all jobs and at the end.

    python -m benchmarks.soak_sandbox --jobs 100000 [--tier flat] [--json soak.json]

The jobs are of twelve kinds: good ones, crashes, signals, floods, threads, daemons, limits of several sorts, and pairs
of jails. Other work on the machine does not count: processes are those of a control group of this program's own, and,
where none can be made, its descendants, orphans among them. Exit code 1 when something was left.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from verifiers.code import code, use_backend
from verifiers.sandbox import TIERS, Job, Limits, Sandbox, SandboxError

FAST = Limits(cpu_s=0.1, memory_mb=64)
DAEMON = (
    "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: os.execv('/bin/sleep', ['sleep', '99'])\n"
)


def _program(source: str, limits: Limits = Limits(), processes: bool = False, stdin: str = "") -> Job:  # noqa: B008
    return Job("program", {"source": source, "stdin": stdin}, limits, processes)


# (job, status that it must end with)
KINDS = [
    (_program("print(sum(map(int, input().split())))", stdin="1 2"), "ok"),
    (_program("import os; os._exit(3)"), "exit"),
    (_program("open('x', 'w').write('1' * 10000); 1 / 0"), "exit"),
    (_program("import ctypes; ctypes.string_at(0)"), "signal"),
    (_program("import threading; threading.Thread(target=lambda: 1).start()", stdin="x" * 10000), "ok"),
    (_program("print('x' * 200000)", Limits(output_mb=0.1)), "output"),
    (_program("kept = bytearray(1 << 28)", FAST), "memory"),
    (_program("kept = [open('/dev/null') for _ in range(99)]"), "open_files"),
    (_program("import os\nfor n in '0123456789':\n    open(n, 'w').write('1')\n    if n > '4': os.unlink(n)"), "ok"),
]
PAIR = {"tests": ["assert f(1) == 2", "assert f(2) == 3"]}


def one(sandbox: Sandbox, number: int) -> str:
    """Run job `number` of the row; returns what ended otherwise than it should, "" for nothing."""
    if number % 4 == 0:
        status, wanted = code("```python\ndef f(x): return x + 1\n```", PAIR).status, "pass"
    elif number % 500 == 1:
        status, wanted = sandbox.run(_program("while True: pass", FAST)).status, "cpu_time"
    elif number % 500 == 3 and sandbox.tier == "namespaces":
        status, wanted = sandbox.run(_program(DAEMON, processes=True)).status, "ok"
    else:
        job, wanted = KINDS[number % len(KINDS)]
        status = sandbox.run(job).status
    return "" if status == wanted else f"{status} instead of {wanted}"


class Group:
    """A control group for this process and all that it starts, where one can be made (as root)."""

    def __init__(self, controller: str) -> None:
        self.path: Path | None = None
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, inside = line.split(":", 2)
            root = Path("/sys/fs/cgroup", controller) if names else Path("/sys/fs/cgroup")
            if controller in names.split(",") or (not names and (root / "cgroup.controllers").exists()):
                path = root / inside.strip("/") / f"soak-{os.getpid()}"
                try:
                    path.mkdir(exist_ok=True)
                    (path / "cgroup.procs").write_text(str(os.getpid()))
                    self.path = path
                    return
                except OSError:
                    continue

    def read(self, *names: str) -> int | None:
        for name in names:
            if self.path and (self.path / name).exists():
                return int((self.path / name).read_text())
        return None


def descendants(pid: int) -> int:
    count = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        count += sum(1 + descendants(int(child)) for child in children)
    return count


def anonymous_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous"))


def files_under(path: str) -> int:
    return sum(len(names) for _, _, names in os.walk(path)) if path else 0


def state(sandbox: Sandbox, pids: Group, memory: Group) -> dict[str, int]:
    """What could leak, counted. The host is this process, the template is the sandbox's."""
    assert sandbox._process
    template = sandbox._process.pid
    counts: dict[str, int | None] = {
        "processes and threads in the group": pids.read("pids.current"),
        "descendants of the host": descendants(os.getpid()),
        "descriptors of the host": len(os.listdir("/proc/self/fd")),
        "descriptors of the template": len(os.listdir(f"/proc/{template}/fd")),
        "mounts the template sees": Path(f"/proc/{template}/mountinfo").read_text().count("\n"),
        "files in jails' directories": files_under(sandbox._work),
        "host memory, KiB": anonymous_kib(os.getpid()),
        "template memory, KiB": anonymous_kib(template),
        "kernel memory of the group, KiB": (memory.read("memory.kmem.usage_in_bytes") or 0) >> 10 or None,
    }
    return {name: count for name, count in counts.items() if count is not None}


def soak(tier: str, jobs: int, workers: int) -> dict[str, Any]:
    """Raises SandboxError when the machine does not offer the tier."""
    pids, memory = Group("pids"), Group("memory")
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans become children of this process
    wrong: Counter[str] = Counter()
    states = []
    with Sandbox(tier, workers) as sandbox, ThreadPoolExecutor(workers) as pool:
        use_backend(sandbox)
        start = time.perf_counter()
        for first, last in ((0, 100), (100, jobs // 10), (jobs // 10, jobs)):
            for batch in range(first, last, 100):  # a long queue would grow this process
                numbers = range(batch, min(batch + 100, last))
                wrong.update(filter(None, pool.map(lambda number: one(sandbox, number), numbers)))
            time.sleep(1.0)  # the kernel frees namespaces behind
            states.append(state(sandbox, pids, memory))
        seconds = time.perf_counter() - start
        use_backend(None)
        folder = sandbox._work
    wrong.update(["a process after the end"] * descendants(os.getpid()))
    wrong.update(["a folder after the end"] * bool(folder and os.path.exists(folder)))
    return {"tier": tier, "jobs": jobs, "seconds": round(seconds), "wrong": dict(wrong), "states": states}


def left_behind(result: dict[str, Any]) -> list[str]:
    """What may not grow and did. Memory of processes may move by 1 MiB, the kernel's (caches) by 32."""
    _, tenth, end = result["states"]
    room = {"host memory, KiB": 1024, "template memory, KiB": 1024, "kernel memory of the group, KiB": 32 << 10}
    return [f"{name}: {tenth[name]} -> {end[name]}" for name in end if end[name] > tenth[name] + room.get(name, 0)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tier", choices=TIERS, action="append")
    parser.add_argument("--json", help="write the counts to this file")
    options = parser.parse_args()
    results, left = [], []
    for tier in options.tier or TIERS:
        try:
            result = soak(tier, options.jobs, options.workers)
        except SandboxError as error:
            print(error)
            continue
        results.append(result)
        left += [*left_behind(result), *result["wrong"]]
        print(f"{tier}: {options.jobs} jobs in {result['seconds']} s; unexpected: {result['wrong'] or 'nothing'}")
        for name, counts in zip(result["states"][0], zip(*(s.values() for s in result["states"]))):
            print(f"    {name:38s}" + "".join(f"{count:10d}" for count in counts), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
    print("left behind: " + ("; ".join(left) or "nothing"))
    return int(bool(left) or not results)


if __name__ == "__main__":
    raise SystemExit(main())
