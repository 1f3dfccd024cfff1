"""Real vLLM servers on this machine, from the environment that VLLM_PYTHON names (`make test-vllm` makes it)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVE = ROOT / "alignment/rollout/vllm_server/serve.py"
START_S = 400
SMALL = ("--enforce-eager", "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "64")


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
        python = os.environ.get("VLLM_PYTHON", str(ROOT / ".venv-vllm/bin/python"))
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several servers must not sit on one core
            "OMP_NUM_THREADS": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        command = [python, str(SERVE), str(self.model), "--port", str(self.port), *SMALL, *self.options]
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
