"""Kills training processes at random moments and checks that nothing is lost. `python -m benchmarks.kill_resume`

Every method is trained once without interruption. Then the same command is started, killed with SIGKILL (every second
time within a save), and started again until it ends; when it has ended before its share of the kills is used up, it
begins anew in another folder. The final weights of every part, the optimizer's state, the best model and the losses of
all steps have to be those of the uninterrupted run, bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignment.checkpoint import checkpoints
from alignment.metrics import read_metrics
from tests.tiny_recipes import arguments, settings, start_recipe, wait_for, write_material

METHODS = ("sft", "reward_model", "dpo", "ppo", "grpo", "distill")
STEPS = 8


@dataclass
class Result:
    """What one method went through."""

    method: str
    runs: int = 0
    kills: int = 0
    in_a_save: int = 0
    before_a_checkpoint: int = 0
    resumed: int = 0
    differences: list[str] = field(default_factory=list)


def command_line(method: str, material: Path, output: Path) -> list[str]:
    chosen = {**settings(method, material, output), "max_steps": STEPS, "save_every": 1, "keep_checkpoints": 2}
    chosen["lr_schedule"] = "cosine"
    if method in ("sft", "reward_model", "dpo"):
        chosen |= {"eval_dataset": chosen["dataset"], "eval_every": 2}
    return arguments(chosen)


def state_of(folder: Path) -> dict[str, str]:
    """A hash of everything that a run has come to, by name."""
    out = {}
    for weights in sorted(folder.glob("*/*.safetensors")):
        out[str(weights.relative_to(folder))] = hashlib.sha256(weights.read_bytes()).hexdigest()
    last = checkpoints(folder / "checkpoints")[-1]
    for name in ("optimizer.pt", "state-rank-0.pt"):
        digest = hashlib.sha256()
        for key, value in _leaves(torch.load(last / name, weights_only=False)):
            digest.update(f"{key}={value}".encode() if not isinstance(value, bytes) else key.encode() + value)
        out[name] = digest.hexdigest()
    out["trainer.json"] = (last / "trainer.json").read_text()
    for line in read_metrics(folder / "metrics.jsonl"):
        figures = {k: v for k, v in line.items() if not k.startswith("time") and k != "tokens_per_second"}
        out[f"metrics, {line['kind']} of step {line['step']}"] = json.dumps(figures, sort_keys=True)
    return out


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Scalars, and the bytes of tensors and arrays, within nested containers."""
    if isinstance(value, torch.Tensor | np.ndarray):
        yield key, np.ascontiguousarray(value.numpy() if isinstance(value, torch.Tensor) else value).tobytes()
    elif isinstance(value, dict):
        for name in sorted(value, key=str):
            yield from _leaves(value[name], f"{key}/{name}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{key}/{i}")
    else:
        yield key, value


def half_written(folder: Path, since: float = 0.0) -> set[str]:
    """What a save in progress, or a kill within one, has left; with `since` (unix seconds) if it was touched later."""
    paths = [*folder.glob("checkpoints/.*-step-*"), *folder.glob(".writing-*")]
    with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
        return {path.name for path in paths if not since or path.stat().st_mtime > since}
    return set()


def kill_at_random(pid: int, folder: Path, seconds: float, in_save: bool, rng: np.random.Generator) -> int:
    """Kill the process unless it ends before that; its exit code.

    seconds: how long an uninterrupted run takes. A kill within a save comes up to 10 ms after a save has begun.
    """
    begin, wait, known = time.monotonic(), float(rng.uniform(0, seconds)), half_written(folder)
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        waited = time.monotonic() - begin
        writing = half_written(folder)
        if in_save and waited > wait / 2 and writing - known:
            time.sleep(float(rng.uniform(0, 0.01)))
            break
        if not in_save and waited > wait:
            break
        known &= writing
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    return wait_for(pid)


def check_end(method: str, code: int, log: Path) -> None:
    if code:
        raise SystemExit(f"{method} ended with code {code}:\n{log.read_text()[-3000:]}")


def torment(method: str, kills: int, material: Path, base: Path, rng: np.random.Generator, say: Callable) -> Result:
    """Kill and resume `method` until it has been killed `kills` times and all runs have ended."""
    result = Result(method)
    expected: dict[str, str] = {}
    for name in ("warm", "straight"):  # the first run of a method takes longer
        started, log = time.monotonic(), base / f"{name}.log"
        check_end(method, wait_for(start_recipe(method, command_line(method, material, base / name), log)), log)
        seconds, before, expected = time.monotonic() - started, expected, state_of(base / name)
    if before != expected:
        raise SystemExit(f"{method}: two uninterrupted runs differ")
    while result.kills < kills:
        folder = base / f"run-{result.runs}"
        line, log = command_line(method, material, folder), base / f"run-{result.runs}.log"
        while True:
            resumed = bool(checkpoints(folder / "checkpoints"))
            begin, pid = time.time(), start_recipe(method, line, log)
            killing = result.kills < kills
            code = kill_at_random(pid, folder, seconds, bool(result.kills % 2), rng) if killing else wait_for(pid)
            if code != -signal.SIGKILL:
                check_end(method, code, log)
                break
            result.kills += 1
            result.resumed += resumed
            result.in_a_save += bool(half_written(folder, begin))
            result.before_a_checkpoint += not checkpoints(folder / "checkpoints")
        result.runs += 1
        found = state_of(folder)
        differing = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
        result.differences += [f"run {result.runs}: {name}" for name in sorted(differing)]
        say(f"{method}: {result.kills} kills, {result.runs} runs, {len(result.differences)} differences")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="over all methods")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    options = parser.parse_args()
    shares = [options.kills // len(options.methods)] * len(options.methods)
    for i in range(options.kills % len(options.methods)):
        shares[i] += 1
    results = []
    with tempfile.TemporaryDirectory() as folder:
        material = write_material(Path(folder) / "material")
        for number, (method, share) in enumerate(zip(options.methods, shares, strict=True)):
            base = Path(folder) / method
            base.mkdir()
            rng = np.random.default_rng([options.seed, number])
            results.append(torment(method, share, material, base, rng, lambda text: print(text, flush=True)))
    print(json.dumps([asdict(result) for result in results], indent=1))
    if options.out:
        options.out.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    raise SystemExit(any(result.differences for result in results))


if __name__ == "__main__":
    main()
