"""Two sides of a comparison, each in a process of its own, stepping in turn.

The child builds its trainer and stops at a `Gate` after every step; the parent opens the gates one at a time
(A B A B …), so that a change of the machine's load hits all sides, memory peaks belong to one side each, and nothing
runs beside a step that is timed. Times of steps with other load on the machine are left out where enough others exist.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).parent.parent
CLEAN = 0.06
"""Share of the machine that may be busy with something else during a step that counts."""


CHECKED = ("loss", "grad_norm", "entropy")
PATIENCE = 600.0
"""Seconds after which a side that does not answer is taken to hang."""
QUIET_S, QUIET_LIMIT_S = 2.0, 120.0
"""How long nothing else may run before measuring starts, and how long that is waited for."""
FP32 = {"bf16": False, "gradient_checkpointing": False}
BF16 = {"bf16": True, "gradient_checkpointing": False}


class Differ(AssertionError):
    """The two sides do not compute the same thing, so their times may not be compared."""


class Skipped(Exception):
    """A case that cannot be measured here; its message says what is missing."""


def settings_of(settings: dict[str, Any] | str) -> dict[str, Any]:
    """What both sides are told; with "defaults" nothing, so that each keeps its own."""
    return {} if settings == "defaults" else settings  # type: ignore[return-value]


def cores() -> int:
    return len(os.sched_getaffinity(0))


def memory_mb(key: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def reset_peak_memory() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _machine_busy() -> float:
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Stopwatch:
    """Wall seconds, this process's CPU seconds, and the share of the machine that others used meanwhile."""

    def __init__(self):
        self._start = (time.perf_counter(), time.process_time(), _machine_busy())

    def read(self) -> dict[str, float]:
        wall, cpu, busy = self._start
        seconds, own = time.perf_counter() - wall, time.process_time() - cpu
        other = max(0.0, _machine_busy() - busy - own) / (seconds * os.cpu_count())  # type: ignore[operator]
        return {"seconds": seconds, "cpu_seconds": own, "other_load": other}


class Gate:
    """The child's end: stops after every step until the parent lets it go on. Its first wait is `ready`."""

    def __init__(self):
        self._pipe = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever the trainers print goes to the log
        self._watch = Stopwatch()
        self.phases: dict[str, float] = {}

    def ready(self) -> None:
        reset_peak_memory()
        self._wait({"rss_mb": memory_mb("VmRSS")})

    def step(self, **values: float) -> None:
        record = self._watch.read() | {"peak_mb": memory_mb("VmHWM"), "phases": self.phases}
        self._wait(record | {name: float(value) for name, value in values.items()})

    def mark(self, phase: str, seconds: float) -> None:
        """Add to the seconds of a phase of this step."""
        self.phases[phase] = self.phases.get(phase, 0.0) + seconds

    def elapsed(self) -> float:
        """Seconds since this step began."""
        return self._watch.read()["seconds"]

    def _wait(self, record: dict[str, Any]) -> None:
        print(json.dumps(record), file=self._pipe, flush=True)
        if sys.stdin.readline().strip() != "go":
            os._exit(0)
        self.phases = {}
        self._watch = Stopwatch()


def serve(ours: Callable[[dict, Gate], None], theirs: Callable[[dict, Gate], None] | None = None) -> None:
    """The child's whole program: runs the way that the spec on the command line names."""
    spec = json.loads(sys.argv[2])
    run = ours if theirs is None or spec["way"] == "ours" else theirs
    run(spec, Gate())


@dataclass
class Side:
    """The parent's end of one process: `python -m MODULE SPEC`."""

    name: str
    module: str
    spec: dict[str, Any]
    threads: int = field(default_factory=cores)
    python: str = sys.executable
    steps: list[dict] = field(default_factory=list)
    rss_mb: float = 0.0

    def start(self) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  open as long as the process runs
        environment = {
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_OFFLINE": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
            "OMP_NUM_THREADS": str(self.threads),
            "MKL_NUM_THREADS": str(self.threads),
            "OMP_DYNAMIC": "false",
        }
        self._process = subprocess.Popen(
            [self.python, "-m", self.module, "--side", json.dumps(self.spec)],
            cwd=ROOT,
            env={**os.environ, **environment, **self.spec.get("environment", {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ready(self) -> None:
        self.rss_mb = self._read()["rss_mb"]

    def step(self) -> dict:
        self._say("go")
        self.steps.append(self._read())
        return self.steps[-1]

    def stop(self) -> None:
        try:
            self._say("stop")
            self._process.wait(timeout=30)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
        self._log.close()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict:
        assert self._process.stdout is not None
        watchdog = threading.Timer(PATIENCE, self._process.kill)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            tail = self._log.read()[-3000:]
            raise RuntimeError(f"{self.name} ended with exit code {code}:\n{tail}")
        return json.loads(line)

    def result(self, warm: int, used: list[int]) -> dict[str, Any]:
        """Means over the steps `used`, and the peak of memory over all."""
        steps = [self.steps[warm + i] for i in used]
        mean = {name: fmean(s[name] for s in steps) for name in ("seconds", "cpu_seconds", "other_load")}
        names = {name for s in steps for name in s["phases"]}
        peak = max(s["peak_mb"] for s in self.steps)
        return {
            **mean,
            "best_seconds": min(s["seconds"] for s in self.steps[warm:]),
            "steps": len(used),
            "phases": {name: fmean(s["phases"].get(name, 0.0) for s in steps) for name in sorted(names)},
            "peak_mb": peak,
            "before_mb": self.rss_mb,
            "working_mb": peak - self.rss_mb,
            "first_step": {name: self.steps[0][name] for name in CHECKED if name in self.steps[0]},
        }


def _clean_rounds(sides: list[Side], warm: int) -> list[int]:
    """Rounds in which no side was disturbed; every side counts the same ones, so they did the same work."""
    rounds = range(len(sides[0].steps) - warm)
    return [i for i in rounds if all(side.steps[warm + i]["other_load"] < CLEAN for side in sides)]


def compare(
    sides: list[Side],
    same: dict[str, tuple[float, float]],
    warm: int = 2,
    want: int = 5,
    budget_s: float = 60.0,
) -> dict[str, dict[str, Any]]:
    """Step all sides in turn until `want` rounds were undisturbed, or the time is up after two rounds at least.

    same: quantities of the first step that must agree with the first side, with (relative, absolute) tolerances.
    Raises Differ when they do not.
    """
    try:
        for side in sides:
            side.start()
        for side in sides:
            side.ready()
        for i in range(warm):
            for side in sides:
                side.step()
            if i == 0:
                for side in sides[1:]:
                    _check_same(sides[0], side, same)
        start = time.perf_counter()
        for rounds in range(1, 8 * want):
            for side in sides:
                side.step()
            clean = _clean_rounds(sides, warm)
            if len(clean) >= want or (rounds >= 2 and time.perf_counter() - start > budget_s):
                break
        disturbed = len(clean) < 2
        used = list(range(rounds)) if disturbed else clean
        return {side.name: side.result(warm, used) | {"disturbed": disturbed} for side in sides}
    finally:
        for side in sides:
            side.stop()


def _check_same(ours: Side, theirs: Side, same: dict[str, tuple[float, float]]) -> None:
    for name, (relative, absolute) in same.items():
        a, b = ours.steps[0][name], theirs.steps[0][name]
        if not abs(a - b) <= max(absolute, relative * max(abs(a), abs(b))):
            raise Differ(f"{name} of the first step: {ours.name} {a:.8g}, {theirs.name} {b:.8g}")


def wait_until_quiet() -> bool:
    """Wait for a machine with nothing else on it; False when the time limit passed first."""
    start, quiet = time.monotonic(), 0.0
    while time.monotonic() - start < QUIET_LIMIT_S:
        watch = Stopwatch()
        time.sleep(0.5)
        quiet = quiet + 0.5 if watch.read()["other_load"] < CLEAN else 0.0
        if quiet >= QUIET_S:
            return True
    return False
