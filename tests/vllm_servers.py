"""Real vLLM servers on this machine, from the environment that VLLM_PYTHON names (`make test-vllm` makes it)."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SERVE = ROOT / "alignment/rollout/vllm_server/serve.py"
START_S = 400
NAMES = ("first", "second", "lora")
SMALL = ("--enforce-eager", "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "64")

SHAPE = {"tie_word_embeddings": True, "head_dim": 32}
"""Of the servers' model: vLLM keeps a packed copy of a head that is tied, and on a CPU knows no narrower attention."""


def start_model():
    return tiny_model("qwen3", seed=4, **SHAPE)


@functools.cache
def running() -> dict[str, VllmProcess]:
    """Three servers for all tests of this process, started at once."""
    folder = Path(tempfile.mkdtemp(prefix="vllm-tests-"))
    start_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    lora = ("--enable-lora", "--max-lora-rank", "8")
    started = {name: VllmProcess(folder / "model", *(lora if name == "lora" else ())) for name in NAMES}

    def end() -> None:
        for process in started.values():
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return {name: process.wait() for name, process in started.items()}


def vllm_python() -> str:
    return os.environ.get("VLLM_PYTHON", str(ROOT / ".venv-vllm/bin/python"))


class VllmProcess:
    """A server and the processes it starts; `kill` ends all of them as a crash does."""

    def __init__(self, model: Path, *options: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.model, self.options, self.log = model, options, model.parent / f"vllm-{self.port}.log"
        self.start()

    def start(self) -> None:
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several servers must not sit on one core
            "OMP_NUM_THREADS": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        command = [vllm_python(), str(SERVE), str(self.model), "--port", str(self.port), *SMALL, *self.options]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **settings}, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> VllmProcess:
        """Until it answers."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        raise AssertionError(f"no vLLM server in {START_S} s:\n{self.log.read_text()[-3000:]}")

    def signal(self, number: int) -> None:
        """To every process of the server."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()
