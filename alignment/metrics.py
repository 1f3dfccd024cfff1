"""Everything a run says about itself: `metrics.jsonl`, `samples.jsonl`, the console, an optional tracker.

metrics.jsonl holds one JSON object a line: `{"step", "time", "kind": "train" | "eval", <name>: <float>, …}`, time in
unix seconds. JSON has no NaN or infinities: they are written as the strings "nan", "inf" and "-inf", and `read_metrics`
turns them back. samples.jsonl holds one completion a line: `{"step", "prompt", "completion", "reward", "reward_terms",
"finish_reason", …}`. environment.json says what the run ran on.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from alignment.console import RunConsole
from alignment.environment import describe_environment
from alignment.errors import UserError

RESERVED = ("step", "time", "kind")
NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class RunLog:
    """The log of one run. Only the main rank writes and prints; on other ranks every method does nothing.

    total_steps: optimizer steps of the whole run. tracker: called as `tracker(metrics, step)`, for instance with
    accelerate's `Accelerator.log`; evaluation metrics carry the prefix "eval/" there.
    resume_step: the step of the checkpoint a run goes on from. Lines of later steps are cut away, so that an
    interrupted and resumed run has one line per step. With None a new log starts, and an older one is kept as
    `metrics.previous.jsonl`. console=False prints nothing.

    Call `train` before the checkpoint of that step is saved, or the checkpoint could be newer than the log.
    """

    def __init__(
        self,
        output_dir: Path,
        total_steps: int,
        is_main: bool = True,
        tracker: Callable[[dict[str, float], int], None] | None = None,
        resume_step: int | None = None,
        console: bool = True,
    ) -> None:
        self._is_main = is_main
        self._tracker = tracker
        self._clock = time.perf_counter()
        self._console: RunConsole | None = None
        if not is_main:
            return
        output_dir = Path(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        metrics_path, samples_path = output_dir / "metrics.jsonl", output_dir / "samples.jsonl"
        for path in (metrics_path, samples_path):
            _start_log(path, resume_step)
        environment = json.dumps(describe_environment(), indent=2, ensure_ascii=False)
        replace_file(output_dir / "environment.json", environment + "\n")
        self._metrics_file = metrics_path.open("a", encoding="utf-8")
        self._samples_file = samples_path.open("a", encoding="utf-8")
        if console:
            self._console = RunConsole(total_steps, resume_step or 0)
            for line in read_metrics(metrics_path):
                self._console.remember(line["step"], line["kind"], _values_of(line))

    def train(self, step: int, metrics: dict[str, float], tokens: int) -> None:
        """One optimizer step. tokens: how many this step processed, over all ranks; `tokens` and
        `tokens_per_second` are added to the line. The clock runs from the previous `train` or `eval` call."""
        if not self._is_main:
            return
        seconds = self._lap()
        line = {**metrics, "tokens": float(tokens), "tokens_per_second": tokens / max(seconds, 1e-9)}
        self._write(step, "train", line)
        if self._console:
            self._console.train(step, line, tokens, seconds)

    def eval(self, step: int, metrics: dict[str, float]) -> None:
        """One evaluation, after optimizer step `step`."""
        if not self._is_main:
            return
        self._lap()
        self._write(step, "eval", metrics)
        if self._console:
            self._console.eval(step, metrics)

    def samples(self, step: int, records: list[dict[str, Any]]) -> None:
        """Sampled completions worth keeping; `step` is added to each record."""
        if not self._is_main:
            return
        for record in records:
            self._samples_file.write(_to_json({"step": step, **record}))
        self._samples_file.flush()

    def message(self, text: str) -> None:
        """A line for the person watching."""
        if self._console:
            self._console.message(text)

    def close(self) -> None:
        """Closes the files and prints the table of first, last and best values. Calling it again does nothing."""
        if not self._is_main or self._metrics_file.closed:
            return
        self._metrics_file.close()
        self._samples_file.close()
        if self._console:
            self._console.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lap(self) -> float:
        """Seconds since the previous call."""
        previous, self._clock = self._clock, time.perf_counter()
        return self._clock - previous

    def _write(self, step: int, kind: str, metrics: dict[str, float]) -> None:
        if clash := [name for name in RESERVED if name in metrics]:
            raise ValueError(f"metric name {clash[0]!r} is taken by the log itself; rename the metric")
        values: dict[str, float] = {}
        for name, value in metrics.items():
            try:
                values[name] = float(value)
            except (TypeError, ValueError):
                raise TypeError(f"metric {name!r} at step {step} is not a number: {value!r}") from None
        self._metrics_file.write(_to_json({"step": step, "time": round(time.time(), 3), "kind": kind, **values}))
        self._metrics_file.flush()
        if self._tracker:
            prefix = "eval/" if kind == "eval" else ""
            self._tracker({prefix + name: value for name, value in values.items()}, step)


def read_metrics(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl in file order, of one kind ("train" or "eval") or of both. A torn last line, as a
    killed process leaves it, is left out. Raises ValueError for any other line that is none of metrics."""
    lines = read_json_lines(Path(path))
    for number, line in enumerate(lines, 1):
        if not (isinstance(line.get("step"), int) and _is_time(line.get("time")) and isinstance(line.get("kind"), str)):
            raise ValueError(f"{path}, line {number}: a line of metrics has a step, a time in unix seconds and a kind")
        for name, value in line.items():
            if isinstance(value, str) and name not in RESERVED:
                line[name] = NON_FINITE.get(value, value)
    return [line for line in lines if kind is None or line["kind"] == kind]


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All objects of a JSON-lines log; a torn last line is left out. Raises ValueError for any other bad line."""
    texts = Path(path).read_bytes().split(b"\n")
    if not texts[-1]:
        texts.pop()
    objects: list[dict[str, Any]] = []
    for number, text in enumerate(texts, 1):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            if number == len(texts):
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error}); move the file away to go on") from None
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number}: not a JSON object; move the file away to go on")
        objects.append(value)
    return objects


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1e11


def _values_of(line: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name not in RESERVED and isinstance(value, float | int)}


def _start_log(path: Path, resume_step: int | None) -> None:
    if not path.exists():
        return
    if resume_step is None:
        os.replace(path, path.with_suffix(".previous.jsonl"))
        return
    try:
        kept = [line for line in read_json_lines(path) if line.get("step", 0) <= resume_step]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged, so the run cannot go on with it: {error}. Move it away") from error
    replace_file(path, "".join(map(_to_json, kept)))


def replace_file(path: Path, text: str) -> None:
    """Writes a file so that a crash leaves either the old content or the new."""
    aside = path.with_suffix(path.suffix + ".tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def _to_json(record: dict[str, Any]) -> str:
    return json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The value with NaN and infinities as strings."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [_finite(item) for item in value]
    return value
