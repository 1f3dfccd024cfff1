"""What a run ran on: versions, processor, threads, accelerator, git commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = ("alignment-toolkit", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "deepspeed", "vllm")


def describe_environment() -> dict[str, str]:
    """Readable facts about this process and machine, in display order. Imports nothing heavy: threads and
    accelerators are reported when torch is already loaded."""
    facts = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    facts["cpu"] = f"{_cpu_name()}, {_usable_cores()} usable cores"
    facts["memory"] = f"{psutil.virtual_memory().total / 2**30:.1f} GiB"
    if torch := sys.modules.get("torch"):
        facts["threads"] = str(torch.get_num_threads())
        facts["accelerators"] = ", ".join(_accelerators(torch)) or "none"
    if "WORLD_SIZE" in os.environ:
        facts["ranks"] = os.environ["WORLD_SIZE"]
    if commit := _git_commit(Path.cwd()):
        facts["git commit"] = commit
    return facts


def _accelerators(torch) -> list[str]:
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _usable_cores() -> int:
    """Cores this process may use; macOS and Windows offer no affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git_commit(directory: Path) -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(directory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit} with local changes" if changed else commit
