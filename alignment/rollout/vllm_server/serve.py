"""`vllm serve` as training needs it. Run it with the Python of vLLM's environment, by its path:

    .venv-vllm/bin/python alignment/rollout/vllm_server/serve.py MODEL --port 8001 [options of vllm serve]

It switches on what updates weights, log-probabilities of the distribution that is really sampled from, and leaves
sampling settings to the requests. The endpoints that update weights have no password: bind to a private address.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

WORKER = "alignment_vllm_worker.WeightUpdates"
DEFAULTS = {
    "--host": "127.0.0.1",
    "--worker-extension-cls": WORKER,
    "--logprobs-mode": "processed_logprobs",
    "--max-logprobs": "1024",
    "--generation-config": "vllm",
}
SWITCH = "--enable-scale-out"  # the endpoint that takes and gives token ids


def command(arguments: list[str]) -> list[str]:
    """The server's command line; options that are given take the place of the defaults."""
    given = {argument.split("=")[0] for argument in arguments}
    defaults = [part for name, value in DEFAULTS.items() if name not in given for part in (name, value)]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *arguments, SWITCH, *defaults]


def environment() -> dict[str, str]:
    """With the development endpoints, which update weights, and this folder to find the worker's class in."""
    path = [str(Path(__file__).resolve().parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    switches = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    return {**os.environ, **switches, "PYTHONPATH": os.pathsep.join(path)}


if __name__ == "__main__":
    os.execve(sys.executable, command(sys.argv[1:]), environment())
