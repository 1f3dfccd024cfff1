"""Recipe scripts in processes of their own that are forked from one that has imported them: what `python
recipes/NAME.py` does, without its seconds of imports."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.tiny_recipes import run_script

NAMES = ("sft", "reward_model", "dpo", "online_dpo", "ppo", "grpo", "distill", "generate", "verify")
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload([f"recipes.{name}" for name in NAMES])
LIMIT_S = 300


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    returncode: int | None
    stdout: str
    stderr: str


def run_recipe(name: str, arguments: Sequence[str], cwd: str = "/") -> Ended:
    """Raises TimeoutError after five minutes. cwd: where a user's own modules are found."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else the tokenizers warn of the fork
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / stream) for stream in ("stdout", "stderr")]
        process = FORKED.Process(target=_work, args=(name, list(arguments), cwd, files))
        process.start()
        process.join(LIMIT_S)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"{name} {arguments} ran longer than {LIMIT_S} s")
        return Ended(process.exitcode, *(Path(file).read_text() for file in files))


def _work(name: str, arguments: list[str], cwd: str, files: list[str]) -> None:
    os.chdir(cwd)
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    run_script(name, arguments)
