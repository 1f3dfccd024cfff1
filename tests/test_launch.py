"""Every file of accelerate_configs/ launches what it says, as a user launches it, on CPUs."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.sharded_runs import CONFIGURATIONS
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SAYS: dict[str, tuple[str, int, int] | None] = {  # by what, and rank 0's percent of parameters and optimizer state
    "cpu": None,
    "single_gpu": None,
    "ddp": ("DDP", 100, 100),
    "zero1": ("DeepSpeed ZeRO-1", 100, 50),
    "zero2": ("DeepSpeed ZeRO-2", 100, 50),
    "zero3": ("DeepSpeed ZeRO-3", 50, 50),
    "zero3_offload": ("DeepSpeed ZeRO-3", 50, 50),
    "fsdp2": ("FSDP2", 50, 50),
    "multi_node": ("FSDP2", 50, 50),
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A model and a YAML with two steps of SFT on it."""
    folder = tmp_path_factory.mktemp("recipe")
    tiny_model("qwen3").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [{"prompt": f"What is {a} + 3?", "completion": f"{a} + 3 = {a + 3}."} for a in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"model_name_or_path": folder / "model", "dataset": folder / "rows.jsonl", "batch_size": 4}
    settings |= {"max_steps": 2, "learning_rate": 1e-3, "seed": 3, "max_length": 128, "dtype": "float32"}
    (folder / "sft.yaml").write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    return folder


def launch(recipe: Path, name: str, *more: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(CONFIGURATIONS / f"{name}.yaml"),
    ]
    command += [*more, "recipes/sft.py", "--config", str(recipe / "sft.yaml"), "--output_dir", str(recipe / name)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def launchers(recipe: Path, name: str) -> list[subprocess.Popen]:
    """Two processes; of multi_node one on each of two machines that are both this one."""
    if name in ("cpu", "single_gpu"):
        return [launch(recipe, name)]
    if name != "multi_node":
        return [launch(recipe, name, "--num_processes", "2", "--main_process_port", "0")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    return [launch(recipe, name, *where, "--machine_rank", str(machine)) for machine in (0, 1)]


@pytest.mark.parametrize("name", SAYS)
def test_a_configuration_runs_what_it_says_and_trains_the_same_model(recipe, name):
    running = launchers(recipe, name)
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert all(process.returncode == 0 for process in running), "\n".join(output[-3000:] for output in outputs)
    said = r"1 process\(es\) on cpu\n"
    if SAYS[name]:
        by, parameters, state = SAYS[name]
        said = rf"2 process\(es\) on cpu by {by}, .* {parameters}\.0% of the parameters, {state}\.0% of the optimizer"
    assert re.search(said, outputs[0]), outputs[0][-3000:]
    if name != "cpu":
        one, other = (load_file(recipe / n / "model" / "model.safetensors") for n in ("cpu", name))
        assert all(torch.allclose(one[n], other[n], atol=2e-4) for n in one)  # Adam magnifies rounding
